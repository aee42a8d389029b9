"""How captions are parted into tokens before they are scored. The references say which of two ways it is, once for the whole set.

ptb: Penn Treebank, as coco-caption (ptb.py): for languages that put spaces between words.
characters: in scripts that don't (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and in Korean, whose words carry their particles, each
character with its marks is a token, as sacreBLEU's `zh` has it; words and numbers of other scripts among them stay whole. Lower case,
full-width letters as plain ones, and no punctuation, as with ptb.
given: the texts are tokens already, with spaces between them.

By words a Chinese caption is one long token, so that all scores are 0, or 1 for a copy.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

from blip_core.evaluation import ptb
from blip_core.texts import scripts

Tokenization = Literal["ptb", "characters", "given"]
_ALONE = re.compile(f"[{scripts.PYTHON}{scripts.HANGUL}]")


def tokenization_of(texts: Iterable[str]) -> Tokenization:
    """characters where half of the letters are of scripts without spaces; else ptb."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return "characters" if letters and 2 * sum(map(_stands_alone, letters)) >= len(letters) else "ptb"


def characters(text: str) -> str:
    """The tokens joined by single spaces."""
    parted: list[str] = []
    for c in unicodedata.normalize("NFKC", text).lower():
        if _stands_alone(c):
            parted += [" ", c, "\0"]  # marks may follow it, letters may not
        elif unicodedata.category(c)[0] == "M":
            parted[-1:] = [c, "\0"] if parted[-1:] == ["\0"] else [*parted[-1:], c]
        else:
            parted.append(c if c.isalnum() else " ")
    return " ".join("".join(parted).replace("\0", " ").split())


TOKENIZE: dict[Tokenization, Callable[[str], str]] = {"ptb": ptb.tokenize, "characters": characters, "given": str}


@cache
def _stands_alone(c: str) -> bool:
    return unicodedata.category(c)[0] in "LN" and bool(_ALONE.match(c))
