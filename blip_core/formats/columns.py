"""What the columns of a table mean, by the names that are in use, in any case."""

import json

from blip_core.formats.files import IMAGE_ENDS

# in the order of looking: a table may hold several
FILES = tuple("file_name filepath file_path filename image_path image_file image_name img_path path image img file name".split())
TEXTS = tuple("caption captions text texts title raw sentence sentences description comment prompt txt alt_text".split())
URLS = ("url", "image_url", "img_url", "urls", "image_urls", "image_link")
SPLITS = ("split", "set", "subset")


def column(names: list[str] | tuple[str, ...], meaning: tuple[str, ...]) -> str | None:
    """The column of this meaning as the file writes it."""
    lower = {}
    for name in names:
        lower.setdefault(name.strip().lower(), name)
    return next((lower[m] for m in meaning if m in lower), None)


def is_url(value: object) -> bool:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def is_image_name(value: object) -> bool:
    return isinstance(value, str) and not is_url(value) and value.lower().endswith(IMAGE_ENDS)


def texts_of(value: object) -> tuple[str, ...] | None:
    """The texts in a cell: a text, a list of texts, JSON of such a list; none for null; None for a number and the like."""
    if value is None or isinstance(value, float) and value != value:
        return ()
    if isinstance(value, str):
        return _listed(value) or (value,)
    if isinstance(value, list):
        found = [v.get("raw", v.get("caption")) if isinstance(v, dict) else v for v in value]
        if all(isinstance(v, str | None) for v in found):
            return tuple(v for v in found if v is not None)
    return None


def _listed(text: str) -> tuple[str, ...]:
    """Flickr30k's table holds its five captions as JSON."""
    if not text.startswith('["'):
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(value) if all(isinstance(v, str) for v in value) else ()
