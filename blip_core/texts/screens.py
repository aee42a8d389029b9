"""Texts that say nothing of their picture, told without a look at it: boilerplate, file names, markup, loops, other languages; and
texts with personal data.

`fill` writes what each screen says into the text's columns, `hits` reads them, `decide` turns them into reasons. What a text says
alone is judged as it was found, before a rule takes capitals and punctuation away. Boilerplate shows only over all tables:
`common` counts in a first pass, `mark_common` marks in a second.
"""

import html.entities
import math
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.screens import ScreensConfig, WebScreensConfig
from blip_core.tables.captions import KEPT, NO_TEXT, SCHEMA, SCREENS
from blip_core.tables.counting import Walk, frequent
from blip_core.texts import scripts
from blip_core.texts.personal import has_card, has_email, has_phone

UNKNOWN = "und"  # language that can't be told

_LOOP_WORDS = 4  # of the longest loop that is looked for

_ENDS = "jpe?g|jfif|png|gif|webp|bmp|tiff?|heic|heif|avif|svg|ico|psd|raw|cr2|nef|arw|dng|eps|pdf|mp4|mov|avi"
_COUNTED = (
    "_?img|imag|image|imagen|immagine|photo|foto|picture|pict?|bild|_?dsc[fn]?|dcim|_mg|sam|[ch]p?img|hpim|mvi|mov|vid|video|gopr|pxl|pano|"
    "burst|scan|screen ?shot|screen ?capture|capture|snip|captura de pantalla|bildschirmfoto|untitled|unbenannt|sans titre|unnamed|"
    "download|default|thumb(?:nail)?|figure|fig|slide|page|wp|fb[ _]img|mmexport|received|signal|whatsapp[ _]image|"
    "截图|截屏|屏幕截图|微信图片|微信截图|qq图片|qq截图|图片|图像|照片|未命名|无标题|スクリーンショット|画像|写真|스크린샷|사진|무제"
)
_TAIL = (
    "at|am|pm|um|of|von|de|copy|kopie|copia|edit(?:ed)?|hdr|resized?|rotated|cropped|scaled|small|medium|large|thumb|web|px|jpe?g|png|x|e|v"
)
# what programs write where there is no text
_NOTHING = (
    r"[<(\[\#]?(?:nan|null|none|nil|n[/.]?a|undefined|unknown|untitled|missing|placeholder|not\savailable|alt\stext|"
    r"no\s(?:caption|description|title|alt|alt\stext|text|image)(?:\savailable)?)[>)\]]? | \\n"
)
_FILE_NAME = re.compile(
    rf"""(?:{_NOTHING})[.!]?
    | .*\S\.(?:{_ENDS})(?:[?#]\S*)?[\W\d_x]*            # whatever ends as a file
    | (?:{_COUNTED})(?=.*\d)(?:[\W\d_]|(?<![^\W\d_])(?:{_TAIL})(?![^\W\d_]))+   # IMG_1234, Screenshot 2021-03-04 at 10.11.12
    | [^\W\d_]{{1,5}}[-_]?\d{{5,}}                          # P1010023 and the like of other cameras
    | (?:[\W\d_]|(?<=\d)x(?=\d))+                           # no letter: numbers, dates, 640x480, signs
    | (?=.*\d)[0-9a-f]{{10,}} | [0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}  # hashes
    | (?=\S{{8}})\S*(?:\d[^\W\d_]+){{2}}\d\S*               # 71kZ8xQ9L""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_TAGS = (
    "a|abbr|article|b|big|blockquote|body|br|button|caption|center|code|dd|div|dl|dt|em|embed|figure|figcaption|font|footer|form|h[1-6]|"
    "head|header|hr|html|i|iframe|img|input|label|li|link|meta|nav|noscript|object|ol|option|p|picture|pre|script|section|select|small|"
    "ref|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|th|thead|title|tr|u|ul|video|wbr"
)
_MARKUP = re.compile(
    rf"""</?(?:{_TAGS})\s*/?> | <(?:{_TAGS})\s+[a-z-]+\s*= | <!-- | <!doctype
    | &\#(?:\d{{1,7}}|x[0-9a-f]{{1,6}}); | \b(?:https?|ftp):// | \bwww\.\w | [\w.+-]+@[\w-]+\.[a-z]{{2,}}
    | `[^`\n]+`__?(?!\w) | ``(?!\s)(?:(?!'')[^`\n])+(?<!\s)`` | (?:^|\n)\s*\.\.\s[\w-]+::  # reST; ``x'' are quotation marks
    | :[a-z][\w.+-]*(?::[\w.+-]+)?:`[^`\n]+`                    # :doc:`x`, :py:func:`x`
    | \[\[[^\[\]\n]+\]\] | \{{\{{[^{{}}\n]+\}}\}} | ^\s*(={{2,6}})[^=\n]+\1\s*$  # wiki
    | !?\[[^\[\]\n]*\]\([^()\s]+\) | (?<!\w)\*\*(?=\S)[^*\n]+(?<=\S)\*\*(?!\w) | ^\#{{1,6}}\s\S  # Markdown
    | \[/(?:b|i|u|s|url|img|code|color|list|quote|size)\]      # BBCode
    | (?<![\w'])'{{2,3}}(?=[^\s'])(?:[^'\n]|'(?!'))+(?<!\s)'{{2,3}}(?![\w'])  # ''x'', where 5'' x 7'' are inches
    | \\[a-z]+\*?\s?[{{\[] | \\\([^\n]+?\\\) | \\\[[^\n]+?\\\]  # LaTeX
    | \$(?=[^$\n]*\$)[^$\n]*?\\[a-z] | \$[^$\s]*\^[^$\s]*\$    # its mathematics, where $5 to $10 is a price""",
    re.IGNORECASE | re.VERBOSE,
)
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,30};)")


def is_file_name(text: str) -> bool:
    """Nothing but the name of a file, a camera's counter, a number, an id or signs."""
    return _FILE_NAME.fullmatch(text.strip()) is not None


def has_markup(text: str) -> bool:
    """HTML tags and entities, URLs, e-mail addresses; what reST, wikis, LaTeX, Markdown and forums write. CC12M's <PERSON> is none."""
    return _MARKUP.search(text) is not None or any(name in html.entities.html5 for name in _ENTITY.findall(text))


BY_TEXT = {"file_name": is_file_name, "email": has_email, "card": has_card, "markup": has_markup}


def by_text(cfg: ScreensConfig) -> dict[str, Callable[[str], bool]]:
    """The screens that look at one text alone."""
    return {**BY_TEXT, "phone": partial(has_phone, regions=cfg.phone_regions)}


def language(text: str, min_confidence: float) -> str:
    """ISO 639-1 code, or UNKNOWN for a text that is too short to tell.

    Languages that have a code of three letters alone are left out: they are seldom written, and their small or kindred vocabularies
    (Kikuyu, Wu Chinese) take short texts from those that are."""
    code, confidence = _identifier().classify(text)
    return code if confidence >= min_confidence else UNKNOWN


def known_languages() -> set[str]:
    return set(_identifier().labels)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found.set_languages([label for label in found.labels if len(label) == 2])
    return found


def normalised(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as one compares them: lower case, letters and digits, single spaces."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{N}\p{M}]+", " "))


def loops(words: pa.ChunkedArray, max_repeat: int) -> pa.Array:
    """Those of the texts (`normalised`), each once, that say up to four words this many times in a row; in scripts without spaces two to
    eight characters."""
    by_words = rf"(?<!\S)(\S+(?: \S+){{0,{_LOOP_WORDS - 1}}})(?: \1){{{max_repeat - 1}}}(?!\S)"
    again = re.compile(rf"{by_words}|([{scripts.PYTHON}]{{2,{2 * _LOOP_WORDS}}})\2{{{max_repeat - 1}}}")
    return pa.array([t for t in pc.unique(words).to_pylist() if t and again.search(t)], pa.string())


# columns


def fill(table: pa.Table, cfg: ScreensConfig, *, max_repeat: int, raw: list[str] | None = None) -> pa.Table:
    """The table with the columns of the screens that are on, boilerplate aside. `raw`: its texts as they were found."""
    raw = table["text"].to_pylist() if raw is None else raw
    for name, hit in by_text(cfg).items():
        if getattr(cfg, name) != "off":
            table = _set(table, name, [hit(t) for t in raw])
    if cfg.repeats != "off":
        words = normalised(pa.chunked_array([pa.array(raw, pa.string())]))
        table = _set(table, "repeats", pc.is_in(words, value_set=loops(words, max_repeat)))
    if cfg.language != "off":
        table = _set(table, "language", [language(t, cfg.min_confidence) for t in raw])
    return table


def hits(table: pa.Table, cfg: ScreensConfig) -> dict[str, pa.ChunkedArray]:
    """By screen, whether it hits each text; a column that nobody filled hits none."""
    found = {name: pc.fill_null(table[name], False) for name in SCREENS[:-1]}
    stay = pa.array([*(cfg.languages or ()), UNKNOWN, ""], pa.string())
    elsewhere = pc.invert(pc.is_in(pc.fill_null(table["language"], ""), value_set=stay))
    found["language"] = elsewhere if cfg.languages else pa.chunked_array([pa.repeat(False, table.num_rows)])
    return found


def decide(table: pa.Table, cfg: ScreensConfig) -> pa.Table:
    """The table with the reason of texts that a screen drops: of several screens the first of SCREENS. Kept human texts stay."""
    judged = pc.and_(pc.equal(table["reason"], KEPT), pc.not_equal(table["source"], "human"))
    reason = table["reason"]
    for name, hit in reversed(hits(table, cfg).items()):
        if getattr(cfg, name) == "drop":
            reason = pc.if_else(pc.and_(judged, hit), name, reason)
    return _set(table, "reason", reason)


def screened(table: pa.Table) -> pa.ChunkedArray:
    """Whether there is nothing to score: a screen took the text before that (it has a screen's reason and no filter's score), or there
    is none."""
    return pc.and_(pc.is_in(table["reason"], value_set=pa.array([NO_TEXT, *SCREENS])), pc.equal(pc.fill_null(table["filter"], ""), ""))


def _set(table: pa.Table, name: str, values: list[Any] | pa.ChunkedArray) -> pa.Table:
    field = SCHEMA.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type) if isinstance(values, list) else values)


def tally(table: pa.Table, cfg: ScreensConfig) -> dict[str, int]:
    """How many texts each screen that is on has hit, and how many it has dropped."""
    on, found = [name for name in SCREENS if getattr(cfg, name) != "off"], hits(table, cfg)
    marked = {f"marked_{name}": pc.sum(found[name], min_count=0).as_py() for name in on}
    return marked | {f"dropped_{name}": pc.sum(pc.equal(table["reason"], name), min_count=0).as_py() for name in on}


# boilerplate


def completion(tables: Walk, cfg: WebScreensConfig) -> Callable[[pa.Table], pa.Table]:
    """What completes a table of the crawl that `fill` has seen: boilerplate, and the reasons of what is dropped. `tables`: all of them."""
    if cfg.boilerplate == "off":
        return lambda table: decide(table, cfg)
    texts = common(tables, max_images=cfg.max_images, max_share=cfg.max_share)
    return lambda table: decide(mark_common(table, texts), cfg)


def common(tables: Walk, *, max_images: int | None, max_share: float) -> pa.Array:
    """The texts (`normalised`) that stand at more than so many images, or at more than this share of them, and at two at least."""
    num_images = 0

    def pairs() -> Iterator[pa.Table]:
        """Each text of an image once."""
        nonlocal num_images
        num_images = 0
        for table in tables:
            num_images += pc.count_distinct(table["key"]).as_py()
            table = table.filter(pc.not_equal(table["reason"], NO_TEXT))
            yield pa.table({"key": table["key"], "words": normalised(table["text"])}).group_by(["key", "words"]).aggregate([])

    def limit() -> float:
        return max(1, min(max_share * num_images, math.inf if max_images is None else max_images))

    return frequent(Walk(pairs), "words", more_than=limit)


def mark_common(table: pa.Table, texts: pa.Array) -> pa.Table:
    """The table with its column `boilerplate`: whether the text is one of these. A picture without a text has none that could be."""
    hit = pc.and_(pc.is_in(normalised(table["text"]), value_set=texts), pc.not_equal(table["reason"], NO_TEXT))
    return _set(table, "boilerplate", hit)
