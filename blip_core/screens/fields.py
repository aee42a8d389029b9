"""Which pictures a screen hits: their fields against a limit, a list of values, or hosts."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa

from blip_core.config.screens import PictureScreen
from blip_core.metadata.fields import KEY, OTHERS, as_text
from blip_core.metadata.licences import normalised

REASON = "picture_"  # before a screen's name: why a picture was set aside, by choice
_MOST_SHOWN = 100  # characters of a value

Outcome = Literal["hit", "clear", "missing", "mistyped"]


@dataclass
class Screened:
    """`dropped`: by key the reason and a detail. `marked`: by key the names of the screens that hit the picture. `counts`: metrics."""

    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)
    marked: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def screen_pictures(table: pa.Table, screens: Iterable[PictureScreen]) -> Screened:
    """Of a shard's fields. Of several screens that drop a picture the first is the reason."""
    found, keys = Screened(), table[KEY].to_pylist()
    for screen in screens:
        if screen.then != "off":
            found.counts.update({f"{what}_{REASON}{screen.name}": 0 for what in ("marked", "dropped", "missing", "mistyped")})
            judge = Judge(screen)
            for key, value in zip(keys, values_of(table, screen.field), strict=True):
                _note(found, screen, key, value, judge(value))
    return found


def _note(found: Screened, screen: PictureScreen, key: str, value: Any, outcome: Outcome) -> None:
    if outcome == "clear":
        return
    found.counts[f"{'marked' if outcome == 'hit' else outcome}_{REASON}{screen.name}"] += 1
    if outcome == "hit":
        found.marked.setdefault(key, []).append(screen.name)
    drops = screen.then == "drop" if outcome == "hit" else screen.missing == "drop"
    if drops and key not in found.dropped:
        found.dropped[key] = (REASON + screen.name, detail(screen, value, outcome))
        found.counts[f"dropped_{REASON}{screen.name}"] += 1


def values_of(table: pa.Table, name: str) -> list[Any]:
    """Those of a field, also where it is too rare for a column; null where there is none."""
    if name in table.column_names:
        return table[name].to_pylist()
    if OTHERS in table.column_names:
        return [json.loads(text).get(name) if text else None for text in table[OTHERS].to_pylist()]
    return [None] * table.num_rows


class Judge:
    """What a screen says of a field's value. Its lists, which may be long, are read once and not for each picture."""

    def __init__(self, screen: PictureScreen):
        self.screen = screen
        self._domains = frozenset(domain.lower().strip(".") for domain in screen.hosts or ())
        self._listed = frozenset(map(_spelled, screen.among or screen.outside or ()))

    def __call__(self, value: Any) -> Outcome:
        """A list is hit where one of its values is. Nulls, NaN and empty texts are missing; mistyped is what the screen can't compare."""
        values = [v for v in _each(value) if v is not None and v == v and v != ""]
        if not values:
            return "missing"
        try:
            return "hit" if any(map(self._hits, values)) else "clear"
        except TypeError:
            return "mistyped"

    def _hits(self, value: Any) -> bool:
        """TypeError where the value is of another type than the screen compares."""
        screen = self.screen
        if screen.hosts is not None:
            return not self._domains.isdisjoint(_domains_of(_host(value)))
        if screen.among is not None or screen.outside is not None:
            if isinstance(value, Mapping):
                raise TypeError
            return (_spelled(value) in self._listed) == (screen.among is not None)
        number = _number(value)
        return (screen.above is not None and number > screen.above) or (screen.below is not None and number < screen.below)


def detail(screen: PictureScreen, value: Any, outcome: Outcome) -> str:
    """For a person, why a picture was set aside."""
    if outcome == "missing":
        return f"no {screen.field}, and the screen's `missing` is drop"
    shown = as_text(value)[:_MOST_SHOWN]
    return f"{screen.field} is {shown}: {'of a type that can not be compared' if outcome == 'mistyped' else rule(screen)}"


def rule(screen: PictureScreen) -> str:
    """Of what value a picture is hit, in words."""
    if screen.hosts is not None:
        return "of a host that is blocked"
    if screen.among is not None:
        return "one of those that the screen names"
    if screen.outside is not None:
        return "none of those that the screen lets in"
    limits = ((side, limit) for side, limit in (("above", screen.above), ("below", screen.below)) if limit is not None)
    return " or ".join(f"{side} {limit:g}" for side, limit in limits)


def _each(value: Any) -> list[Any]:
    """The values of a list, also where it stands as JSON, as a source's without a type of its own; of any other value itself."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    return value if isinstance(value, list) else [value]


def _number(value: Any) -> float:
    """Of numbers, and of texts that are one, as CSV has them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    try:
        return float(value)
    except ValueError:
        raise TypeError from None


def _spelled(value: Any) -> str:
    """The same for spellings that differ in case, signs and spaces alone: CC_BY-4.0 and cc by 4.0."""
    text = as_text(value)
    return normalised(text) or text


def _host(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    try:
        host = urlsplit(value if "//" in value else f"//{value}").hostname
    except ValueError:
        host = None
    if not host:
        raise TypeError
    return host.rstrip(".")


def _domains_of(host: str) -> list[str]:
    """The host itself, and every domain that it lies below."""
    labels = host.split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]
