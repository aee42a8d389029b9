"""What the columns of a table mean, by the names that are in use, in any case, or by those that the parameters declare."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from blip_core.config.intake import FieldsConfig

# whose bytes are looked at; what they turn out to be decides. Where a list names no ending, they are tried in this order
IMAGE_ENDS = tuple(".jpg .jpeg .png .webp .gif .jpe .jfif .bmp .tif .tiff .avif .heic .heif .jp2".split())
SEARCH = FieldsConfig(image=None, text=None, split=None)

# in the order of looking: a table may hold several
FILES = tuple("file_name filepath file_path filename image_path image_file image_name img_path path image img file name".split())
TEXTS = tuple("caption captions text texts title raw sentence sentences description comment prompt txt alt_text".split())
URLS = ("url", "image_url", "img_url", "urls", "image_urls", "image_link")
SPLITS = ("split", "set", "subset")
_NUMBERED = re.compile(rf"(?:{'|'.join(TEXTS)})[ _-]?\d+")  # caption_0 to caption_4, as Flickr8k is often passed on
# blip_caption, caption_en: taken where a table has one such column and none of the names above
SUFFIXED = r"(?:[a-z0-9]+_)+(?:caption|captions|text|title|description)|(?:caption|text|title|description)_[a-z]{2}"
NAME_IT = "name it in ingest.web_fields.text or clean_fields, or inspect --text"
_MOST_SHOWN = 40  # characters of a column's name in a message
_MOST_LISTED = 1 << 17  # characters of a list in a cell
IMAGE_FILE = rb'"[^"]{1,2000}\.(?:jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?)"'  # as a value in JSON
_FLICKR_NUMBER = re.compile(r"(.+\.(?:jpe?g|png))#\w+", re.IGNORECASE)  # 1000268201_693b08cb0e.jpg#0


def column(names: list[str] | tuple[str, ...], meaning: tuple[str, ...], declared: str | None = None) -> str | None:
    """The column of this meaning, or the declared one, as the file writes it."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(plain(name), name)
    return next((found[m] for m in ((plain(declared),) if declared else meaning) if m in found), None)


def plain(name: str) -> str:
    """Image Path and image-path are image_path."""
    return re.sub(r"[ -]+", "_", name.strip().lower())


def text_columns(names: list[str] | tuple[str, ...], declared: str | None = None) -> tuple[str, ...]:
    """The columns of texts: the declared ones (several by commas, all of which must be there), one by its name, numbered ones, or the
    only one that ends in such a name."""
    if declared:
        found = [column(names, (), part) for part in declared.split(",")]
        return tuple(f for f in found if f is not None) if None not in found else ()
    one = column(names, TEXTS)
    if one:
        return (one,)
    ending = suffixed(names)
    return tuple(n for n in names if _NUMBERED.fullmatch(plain(n))) or (ending if len(ending) == 1 else ())


def suffixed(names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Columns such as blip_caption and caption_en; which of several holds the texts is not plain."""
    return tuple(n for n in names if re.fullmatch(SUFFIXED, plain(n)))


def shown(names: tuple[str, ...]) -> str:
    """The first names of columns for a message; the first row of a table without names may hold anything."""
    return ", ".join(repr(name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}…") for name in names[:12]) or "none"


def is_url(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def is_image_name(value: object) -> bool:
    return isinstance(value, str) and not is_url(value) and without_number(value).lower().endswith(IMAGE_ENDS)


def without_number(name: str) -> str:
    """An image's name; Flickr's lists count the captions of an image behind it."""
    match = _FLICKR_NUMBER.fullmatch(name)
    return match[1] if match else name


def texts_of(value: object, *, written: bool = False) -> tuple[str, ...] | None:
    """The texts in a cell: a text or a list of texts; none for null; None for a number and the like. `written`: of a CSV, which has no
    lists, so that one stands there as JSON or Python writes it; elsewhere such a text is a text."""
    if value is None or (isinstance(value, float) and value != value):
        return ()
    if isinstance(value, str):
        return (_texts_listed(value) if written else ()) or (value,)
    if isinstance(value, list):
        found = [v.get("raw", v.get("caption", v.get("text"))) if isinstance(v, dict) else v for v in value]
        if all(isinstance(v, str | None) for v in found):
            return tuple(v for v in found if v is not None)
    return None


def texts_in(values: Mapping[str, object], columns: tuple[str, ...], *, written: bool = False) -> tuple[str, ...] | None:
    """The texts of a row; None when a cell holds something else."""
    found = [texts_of(values.get(c), written=written) for c in columns]
    return tuple(text for texts in found for text in texts or ()) if None not in found else None


def _texts_listed(text: str) -> tuple[str, ...]:
    value = list_in(text) if text.startswith(('["', "['")) else ()
    return tuple(value) if all(isinstance(v, str) for v in value) else ()


def list_in(text: str) -> list[Any]:
    """What a cell lists; nothing where it is no list. Flickr30k's table holds its five captions as JSON; pandas writes as Python does."""
    if not text.startswith("[") or not text.rstrip().endswith("]") or len(text) > _MOST_LISTED:
        return []
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else []
    return []
