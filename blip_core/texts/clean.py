"""Texts as they are stored: decoded, in NFC, with single spaces, and never empty."""

import re
import unicodedata
from collections.abc import Callable, Iterable

from blip_core.config.intake import TextLimits
from blip_core.files.rejected import Rejected

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")  # the other control characters are white space to str.split
_MARKS = re.compile(r"[.!\"()*#:;~]")  # BLIP's authors drop them from texts
_MOST_WORDS = 50  # of a question


def lines_of(data: bytes) -> list[str]:
    """The texts of a file that holds a text a line, without empty lines; a single empty one of an empty file, so that it is told. Bytes
    that are no UTF-8 become lone surrogates, which no text may hold: a wrong guess at an encoding would put mojibake into the training
    set."""
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()] or [""]


def clean_text(text: str, limits: TextLimits) -> str:
    """The text as it is stored, at least one visible character long; Rejected says what is wrong with it."""
    return by_rule(tidy(text, limits), limits)


def usable(texts: Iterable[str], limits: TextLimits, set_aside: Callable[[Rejected], None]) -> list[tuple[str, str]]:
    """Those of a picture's texts that can be used, each once, as found (`tidy`) and as stored; `set_aside` is told of every other."""
    found: dict[str, str] = {}
    for text in texts:
        try:
            raw = tidy(text, limits)
            stored = by_rule(raw, limits)
            if stored in found:
                raise Rejected("duplicate_text", repr(stored[:100]))
            found[stored] = raw
        except Rejected as e:
            set_aside(e)
    return [(raw, stored) for stored, raw in found.items()]


def lost_texts(rejected: Rejected) -> int:
    """How many texts are lost with one that is set aside: none where the picture has the same already."""
    return int(rejected.reason != "duplicate_text")


def tidy(text: str, limits: TextLimits) -> str:
    """The text in NFC with single spaces, its capitals and punctuation as they were found: what the screens judge."""
    if "\0" in text:
        raise Rejected("nul_text", f"at character {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        found = ord(text[e.start])
        what = f"byte {found - 0xDC00:#04x}" if 0xDC80 <= found <= 0xDCFF else f"lone surrogate {found:#06x}"
        raise Rejected("bad_encoding", f"{what} at character {e.start} is not UTF-8") from None
    if not text.strip():
        raise Rejected("empty_text")
    clean = " ".join(_CONTROL.sub(" ", text).split())
    _check_length(clean, 4 * limits.max_chars)  # NFC shortens to a quarter at most, and its time can grow with the square of the length
    clean = unicodedata.normalize("NFC", clean)
    if not _is_visible(clean):
        raise Rejected("control_text", f"{text[:20]!a}")
    _check_length(clean, limits.max_chars)
    return clean


def by_rule(text: str, limits: TextLimits) -> str:
    """What `limits.rule` makes of a tidy text; Rejected when that is nothing, or too long."""
    if limits.rule == "keep":
        return text
    clean = pre_caption(text, limits.max_words)
    if not _is_visible(clean):
        raise Rejected("empty_text", f"nothing left of {text[:20]!r} by the paper's rule")
    _check_length(clean, limits.max_chars)  # the small letter of a Turkish İ is two characters
    return clean


def pre_caption(text: str, max_words: int) -> str:
    """BLIP's rule for captions: lower case, .!"()*#:;~ become spaces, cut to `max_words`."""
    return without_marks(text.lower(), max_words)


def without_marks(text: str, max_words: int) -> str:
    """The same but for case, which is the tokenizer's matter."""
    text = _MARKS.sub(" ", text)
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def _is_visible(text: str) -> bool:
    """Whether there is more than white space and characters without a shape, as U+200B."""
    return any(unicodedata.category(c)[0] not in "CZ" for c in text)


def _check_length(text: str, most: int) -> None:
    if len(text) > most:
        raise Rejected("text_too_long", f"{len(text)} characters, at most {most} are allowed: {text[:20]!r}...")


def clean_question(question: str) -> str:
    """BLIP's rule for questions: .!"()*#:;~ go without a space in their place, at most 50 words. Case is the tokenizer's matter."""
    return " ".join(_MARKS.sub("", question).rstrip(" ").split(" ")[:_MOST_WORDS])
