"""What is not plain in the fields that ingest kept, in lines for a person."""

from collections.abc import Mapping
from typing import Any

from blip_core.metadata.fields import OTHERS

_MOST_NAMED = 20
_WHY = {"not_kept": "left out by ingest.metadata.keep", "too_long": "left out for ingest.metadata.max_bytes"}


def kept_line(account: Mapping[str, Any]) -> str:
    """The fields, and how many pictures have each."""
    counts = {name: sum(own["pictures"].values()) for name, own in account["fields"].items()}
    named = [f"{name} at {n:,}" for name, n in sorted(counts.items(), key=lambda found: (-found[1], found[0]))]
    more = [f"{len(named) - _MOST_NAMED} further ones"] if len(named) > _MOST_NAMED else []
    pictures = sum(account["pictures"].values())
    return f"{', '.join([*named[:_MOST_NAMED], *more]) or 'none'} of {pictures:,} pictures"


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """Of `metadata.folder.accounted`, what is no plain column: the rare fields, those of several types, and what was left out."""
    lines = []
    if rare := account.get("other_fields"):
        pictures = sum(rare["pictures"].values())
        lines.append(f"{rare['fields']:,} rarer fields stand as JSON in `{OTHERS}`, at {pictures:,} pictures")
    for name, kinds in list(account.get("mixed", {}).items())[:_MOST_NAMED]:
        found = ", ".join(f"{kind} {n:,}" for kind, n in kinds.items())
        lines.append(f"{name} has values of several types, of so many pictures: {found}; it is kept as {account['fields'][name]['type']}")
    for why, counts in account.get("left_out", {}).items():
        named = ", ".join(f"{name} {n:,}" for name, n in list(counts.items())[:_MOST_NAMED])
        more = f" and {len(counts) - _MOST_NAMED} further fields" if len(counts) > _MOST_NAMED else ""
        lines.append(f"{_WHY[why]}, of so many pictures: {named}{more}")
    return lines
