"""What a look finds of the fields beside picture and text: how many pictures have each, and of what type."""

from collections import Counter, defaultdict
from typing import Any

from blip_core.config.intake import MetadataConfig
from blip_core.metadata.columns import stored
from blip_core.metadata.fields import Fields
from blip_core.metadata.keeping import MORE, Keeping
from blip_core.preview.field_account import account_lines

_MOST_SHOWN = 30
_MOST_NAMED = 10_000
_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text"}


class FieldFindings:
    def __init__(self, cfg: MetadataConfig):
        self.cfg, self.pictures = cfg, 0
        self._keeping = Keeping(cfg)
        self._kinds: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, fields: Fields) -> None:
        self.pictures += 1
        kept = self._keeping.of(fields)
        for name, value in kept.values.items():
            own = name if name in self._kinds or len(self._kinds) < _MOST_NAMED else MORE
            kind = kept.types.get(name)
            self._kinds[own][str(stored(kind)) if kind is not None else _word(value)] += 1

    def lines(self) -> list[str]:
        ordered = sorted(self._kinds.items(), key=lambda found: (-found[1].total(), found[0]))
        lines = [f"fields       {len(ordered)} beside picture and text" if ordered else "fields       none beside picture and text"]
        for name, kinds in ordered[:_MOST_SHOWN]:
            types = " and ".join(f"{kind} at {n}" for kind, n in kinds.most_common()) if len(kinds) > 1 else next(iter(kinds))
            lines.append(f"  {kinds.total():6d}  of {self.pictures}: {name}, {types}")
        if len(ordered) > _MOST_SHOWN:
            lines.append(f"          and {len(ordered) - _MOST_SHOWN} further ones, of which none is at more pictures")
        if len(ordered) > self.cfg.max_fields:
            lines.append(f"          the {self.cfg.max_fields} that most pictures have get a column, the rarer ones one of JSON together")
        return lines + [f"          {line}" for line in account_lines({"left_out": {w: c for w, c in self._keeping.left_out.items() if c}})]


def _word(value: Any) -> str:
    return _WORDS.get(type(value), "JSON")
