"""Licences as sources write them, counted: spellings of one licence stand together, and each is still told."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

NONE = "none told"
FURTHER = "further spellings"
_FIELD = re.compile(r"licen[cs]e|(?:^|_)rights(?:_|$)", re.IGNORECASE)
_COMMONS = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([\w+-]+)/([\d.]+).*", re.IGNORECASE)
_MOST = 1000  # spellings that are told apart
_SHOWN_SPELLINGS, _SHOWN_LICENCES, _SHOWN_CHARS = 5, 50, 80


def names_licence(field: str) -> bool:
    """Whether a field of this name tells of a licence."""
    return _FIELD.search(field) is not None


def normalised(licence: str) -> str:
    """The same for spellings that differ in case, signs and spaces alone: CC_BY-4.0 and cc by 4.0; of Creative Commons' addresses the
    licence. A view to count by, never stored."""
    if match := _COMMONS.fullmatch(licence.strip()):
        licence = f"cc0 {match[2]}" if match[1].lower() == "zero" else f"cc {match[1]} {match[2]}"
    words = re.findall(r"[^\W_]+(?:\.\d+)*", unicodedata.normalize("NFKC", licence).casefold())
    return " ".join(words)


class Spellings:
    """How many pictures have each spelling."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, value: Any) -> None:
        text = NONE if value is None or value == "" else str(value)
        self.counts[text if text in self.counts or len(self.counts) < _MOST else FURTHER] += 1

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """Licence, pictures, and how it is written, by pictures."""
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for written, count in self.counts.items():
            groups[normalised(written) or written][written] = count
        ordered = sorted(groups.items(), key=lambda group: (-group[1].total(), group[0]))
        for licence, own in ordered[:_SHOWN_LICENCES]:
            told = [f"{written[:_SHOWN_CHARS]} ({n:,})" for written, n in own.most_common(_SHOWN_SPELLINGS)]
            more = [f"{len(own) - _SHOWN_SPELLINGS} further spellings"] if len(own) > _SHOWN_SPELLINGS else []
            yield licence[:_SHOWN_CHARS], own.total(), "; ".join([*told, *more])
        if rest := ordered[_SHOWN_LICENCES:]:
            yield f"{len(rest)} further licences", sum(own.total() for _, own in rest), ""
