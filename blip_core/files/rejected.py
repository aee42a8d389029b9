"""Why ingest sets something aside. The names are closed: metrics, quarantine table and error messages use these and no others."""

REASONS = {
    "not_an_image": "no JPEG, PNG, WebP or GIF",
    "truncated": "the image file ends early",
    "corrupt": "the image file is damaged or of a kind that no decoder here reads",
    "bomb": "more pixels are announced than allowed, or the file has too many scans, segments or chunks",
    "decoder_crash": "decoding it ends the process",
    "too_small": "a side is shorter than images.min_side",
    "too_large": "a side is longer than images.max_side",
    "extreme_aspect": "long side / short side is above images.max_aspect",
    "too_many_bytes": "a file or an archive member is larger than allowed",
    "empty_text": "nothing is left after white space (and what the paper's rule removes) is gone",
    "control_text": "control and invisible characters only",
    "nul_text": "a NUL character in the text",
    "bad_encoding": "not UTF-8",
    "text_too_long": "more than texts.max_chars characters",
    "missing_text": "an image without a text",
    "duplicate_text": "a text that the image has already; set aside without loss, so that it does not count as a fault",
    "missing_image": "a text without its image",
    "missing_in_tar": "the side table or statistics count it as a success, the tar or folder does not hold it",
    "bad_json": "a sample's JSON that cannot be read, or holds no caption where one is needed",
    "bad_row": "an entry of the annotation file that lacks a needed field",
    "bad_table": "a table of images and captions that cannot be read, or a part of one",
    "bad_side_table": "a Parquet or statistics file beside a tar that cannot be read",
    "other_modality": "members of another kind beside the picture (depth, masks, features); they are no loss and count as no fault",
    "not_listed": "a picture that no row of the list names",
    "not_understood": "a file that no reader of this format understands",
    "bad_link": "a link that leads nowhere, or to what is read already; or what is neither file nor folder",
    "unknown_split": "a split that is neither train, restval, val nor test",
    "duplicate_key": "the key was seen before in this part",
    "duplicate_member": "two images, or two texts, of one sample in the tar",
    "dotted_key": "a dot in the key: WebDataset readers disagree on where such a key ends",
    "unsafe_key": "a key with other characters than A-Z a-z 0-9 _ -, or a name that leaves its folder",
    "not_regular": "a link or a device where a file is expected",
    "not_a_tar": "the file is no tar archive",
    "empty_tar": "a tar without any member",
    "truncated_tar": "the tar ends early; the rest of its samples is lost",
    "corrupt_tar": "a damaged header in the tar; the rest of its samples is lost",
    "trailing_data": "data after the end-of-archive mark (two archives joined?); it was not read",
    "failed_to_download": "img2dataset could not get the image",
    "failed_to_resize": "img2dataset could not read the image",
    "failed_upstream": "the side table has another status than success",
    "leaks_heldout": "the same picture, byte by byte, is held out for evaluation",
    "heldout_near_copy": "nearly the same picture, or its mirror image, is held out for evaluation",
    "heldout_near_copy_by_meaning": "by its embedding nearly the same picture, or its mirror image, is held out for evaluation",
    "near_copy": "nearly the same picture comes earlier in the crawl; set aside by choice, so that it does not count as a fault",
    "near_copy_by_meaning": "by its embedding nearly the same picture comes earlier in the crawl; set aside by choice as well",
}


class Rejected(ValueError):
    """One image, text or row that is set aside; it stops nothing but itself."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Rejected"], tuple[str, str]]:
        return Rejected, (self.reason, self.detail)
