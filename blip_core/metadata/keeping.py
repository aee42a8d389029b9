"""What of a picture's fields is kept, by the parameters, and counts of what is not."""

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from blip_core.config.intake import MetadataConfig
from blip_core.metadata.fields import Fields, as_text, clean

MORE = "(further fields)"  # stands for the names that are too many to tell
_MOST_NAMED = 1000
WHY = ("not_kept", "too_long")


class Keeping:
    """`left_out`: for each of WHY the fields by name, and of how many pictures."""

    def __init__(self, cfg: MetadataConfig):
        self.cfg = cfg
        self.left_out: dict[str, Counter[str]] = {why: Counter() for why in WHY}
        self._kept = cache(self._keeps) if isinstance(cfg.keep, tuple) else lambda name: cfg.keep == "all"

    def of(self, fields: Fields) -> Fields:
        """The fields that stay, with names and texts that any file can hold."""
        values: dict[str, Any] = {}
        for name, value in fields.values.items():
            if value is None:
                continue
            if self._kept(clean(name)):
                values[clean(name)] = clean(value) if isinstance(value, str) else value
            else:
                self._count("not_kept", clean(name))
        for name in self._too_long(values):
            self._count("too_long", name)
            del values[name]
        return Fields(values, fields.types)

    def _keeps(self, name: str) -> bool:
        return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in self.cfg.keep)

    def _too_long(self, values: dict[str, Any]) -> Iterator[str]:
        """The longest, until the others fit."""
        sizes = {name: _size(value) for name, value in values.items()}
        size = sum(sizes.values())
        for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
            if size <= self.cfg.max_bytes:
                return
            size -= sizes[name]
            yield name

    def _count(self, why: str, name: str) -> None:
        counts = self.left_out[why]
        counts[name if name in counts or len(counts) < _MOST_NAMED else MORE] += 1


def most_named(counts: Counter[str]) -> dict[str, int]:
    """Of what many units left out, the fields at the most pictures by name, the others together."""
    named = dict(counts.most_common(_MOST_NAMED))
    further = counts.total() - sum(named.values())
    return named | ({MORE: named.get(MORE, 0) + further} if further else {})


def _size(value: Any) -> int:
    """Bytes, or characters of a text."""
    if isinstance(value, str | bytes):
        return len(value)
    return len(as_text(value)) if isinstance(value, list | tuple | dict) else 8
