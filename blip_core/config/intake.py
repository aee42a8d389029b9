"""The sections `ingest` and `validate`: what is let in, and what must hold of it."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip_core.config.base import Config, Positive, Precision, Share
from blip_core.config.screens import PicturesConfig, Screen, WebScreensConfig

Place = str | tuple[str, ...]
Format = Literal["webdataset", "karpathy", "salesforce", "coco", "imagefolder", "parquet", "table", "sidecar"]  # blip_core/intake/formats


class ImageLimits(Config):
    """What ingest accepts as an image; checked on the header, before any pixel is decoded."""

    min_side: Positive = Field(description="pixels; smaller images are set aside as too_small")
    max_side: Positive = Field(description="pixels")
    max_pixels: Positive = Field(description="width x height; more is set aside as bomb")
    max_aspect: float = Field(ge=1, description="long side / short side")
    max_bytes: Positive = Field(description="of the encoded file")


class TextLimits(Config):
    """What ingest accepts as a text, and how it is normalised."""

    max_chars: Positive
    rule: Literal["keep", "paper"] = Field(description="keep: NFC and single spaces; paper: BLIP's pre_caption on top of that")
    max_words: Positive = Field(description="the paper's rule cuts a caption to this many words")


class CsvConfig(Config):
    """How a CSV is written, where its first lines do not show it; null looks at them (blip_core/intake/formats/dialect.py)."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quote: Annotated[str, Field(max_length=1)] | None = Field(None, description="empty: a quote is a sign like others")
    escape: Annotated[str, Field(max_length=1)] | None = Field(None, description="before a quote within quotes; empty: it is doubled")


class FieldsConfig(Config):
    """Columns or keys by name, where the names in use (blip_core/intake/formats/columns.py) do not find the right ones; null searches."""

    image: str | None = Field(description="in tars the ending of the picture among members of several kinds, as rgb.png")
    text: str | None
    split: str | None
    csv: CsvConfig | None = None


Cosine = Annotated[float, Field(gt=0, le=1)]


class MeaningConfig(Config):
    """A second look for near copies, by what an image encoder makes of the pictures (blip_core/intake/embedder.py, alike.py).

    The smaller a cosine, the more copies are found and the more pictures that only look alike. Which cosine suits depends on the model."""

    model: Path = Field(
        description="folder of transformers: any image encoder with its image processor, as CLIP, SigLIP, DINOv2, BLIP; DVC watches frozen/"
    )
    heldout_cosine: Cosine | None = Field(
        description="pictures this near to a held-out one, or to its mirror image, leave the training side; null: nobody looks"
    )
    web: Screen = Field(description="pictures of the crawl this near to an earlier one: as near_copies.web, which goes first")
    web_cosine: Cosine
    batch_size: Positive
    precision: Precision

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heldout_cosine is None and self.web == "off":
            raise ValueError("neither heldout_cosine nor web asks for anything; set one of them, or meaning: null")
        return self


class NearCopiesConfig(Config):
    """Copies of a picture whose bytes differ: encoded anew, resized, cropped a little (blip_core/intake/duplicates.py).

    Distances are the bits that may differ in each of two hashes of 64: the more, the more copies are found and the more pictures that
    are none."""

    heldout_distance: int | None = Field(
        ge=0, le=16, description="copies of held-out pictures, mirrored ones too, leave the training side; null: only equal bytes do"
    )
    web: Screen = Field(
        description="copies within the crawl, all but the first of each. mark: they count as one picture (image_id), so that their texts "
        "are never each other's negatives; drop: they are set aside with their texts; copies of the same bytes stay in any case"
    )
    web_distance: int = Field(ge=0, le=16)
    meaning: MeaningConfig | None = Field(None, description="embeddings as a second fingerprint, beside the hashes; null: the hashes alone")

    @property
    def look(self) -> bool:
        """Whether anything wants the hashes."""
        return self.heldout_distance is not None or self.web != "off"


class SplitConfig(Config):
    """Train, val and test of the clean set."""

    by: Literal["declared", "dealt"] = Field(
        description="declared: by field, file or folder name, and images without a word of it are dealt; dealt: all are"
    )
    train: float = Field(gt=0, description="share of the images that are dealt; all texts of an image go together")
    val: float = Field(gt=0)
    test: float = Field(gt=0)
    seed: int = Field(ge=0, description="another seed deals otherwise")


class MetadataConfig(Config):
    """The fields of a source beside picture and text, kept in artifacts/metadata (blip_core/metadata)."""

    keep: Literal["all", "none"] | tuple[str, ...] = Field(
        "all", description="all, none, or names and patterns of fields, as [url, 'licen?e*', p*]; what is left out is counted by name"
    )
    max_fields: Positive = Field(200, description="columns of a table at most; rarer fields go together into one column of JSON")
    max_bytes: Positive = Field(1 << 18, description="of one picture's fields together; beyond it the longest values are left out")


class RemoteConfig(Config):
    """How objects are fetched from S3 (storage.py) and elsewhere (elsewhere.py). Endpoint and credentials come from the environment."""

    attempts: Positive = Field(description="of a request, and of an answer that breaks before its first byte; waits grow exponentially")
    timeout: Positive = Field(description="seconds without a byte")
    connections: Positive = Field(description="ranges that a process fetches side by side")


class IngestConfig(Config):
    web: Place = Field(description="the noisy crawl: a folder below the data folder, s3://… or another URL, or tars (sources.py)")
    clean: Place = Field(description="the clean set with human captions, likewise")
    web_format: Format | None = Field(description="of the crawl; null takes the first format that recognises its files")
    clean_format: Format | None = Field(description="of the clean set; null as above")
    web_fields: FieldsConfig
    clean_fields: FieldsConfig
    split: SplitConfig
    shard_images: Positive = Field(description="images in a shard at most")
    short_side: Positive | None = Field(description="larger images are resized to this short side; null keeps their size")
    format: Literal["keep", "jpeg"] = Field(
        description="keep: what needs no change keeps its pixels, as JPEG, PNG or WebP; jpeg: PNG and WebP become JPEG (images.py)"
    )
    quality: int = Field(ge=50, le=100, description="of JPEGs that must be encoded anew")
    images: ImageLimits
    texts: TextLimits
    screens: WebScreensConfig
    pictures: PicturesConfig = PicturesConfig()
    near_copies: NearCopiesConfig
    remote: RemoteConfig
    metadata: MetadataConfig = MetadataConfig()
    without_text: Literal["caption", "reject"] = Field(
        "caption", description="a picture of the crawl without a usable text: caption: it stays, and gets its texts from a captioner"
    )
    max_rejected: Share = Field(
        description="a larger share of either part's texts that is set aside, or lies in files that are not understood, fails the stage"
    )
    vocab: Path | None = Field(
        description="a tokenizer: a folder of transformers, a tokenizer.json or a vocab.txt of BERT; null builds one of the ingested texts"
    )
    vocab_kind: Literal["uncased", "accents", "cased", "bytes"] = Field(
        description="of a vocabulary that is built: WordPiece as bert-base-uncased, lower case without accents; accents: lower case with "
        "them; cased: both as they are; bytes: byte-level BPE, both as they are, for any script",
    )
    vocab_size: int = Field(ge=50, description="entries of a vocabulary that is built, at most; of bytes 261 at least")
    max_unknown: Share = Field(description="a larger share of the tokens that the vocabulary lacks ([UNK]) fails the stage")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        keep = {"all": ("*",), "none": ()}[self.metadata.keep] if isinstance(self.metadata.keep, str) else self.metadata.keep
        for screen in self.pictures.of_sources():
            if not any(fnmatchcase(screen.field.lower(), pattern.lower()) for pattern in keep):
                raise ValueError(f"pictures.screens: {screen.name} wants the field {screen.field}, which metadata.keep leaves out")
        return self


class ValidateConfig(Config):
    min_images: Positive = Field(description="of each source, web and human")
    min_heldout_images: Positive = Field(description="of each held-out split, val and test")
    max_empty: Share = Field(description="share of texts without a single letter or digit")
    max_duplicate: Share = Field(description="share of web images whose bytes occur more than once")
