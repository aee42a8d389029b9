"""What the source says of a picture beside its texts, in lines for a person."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from blip_core.metadata.fields import KEY, OTHERS, as_text
from blip_core.metadata.folder import ASIDE, metadata_of

MOST_CHARS = 200  # of a value
_MOST_NAMED = 20
_WHY = {"not_kept": "left out by ingest.metadata.keep", "too_long": "left out for ingest.metadata.max_bytes"}


def told(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields that have a value, as short texts."""
    return {name: _short(as_text(value)) for name, value in row.items() if value is not None and name != KEY}


def _short(text: str) -> str:
    """On one line, its end left out where it is long; the whole stands in the table."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARS else f"{line[:MOST_CHARS]}… ({len(text):,} characters)"


def source_lines(key: str, metadata: Path, shard: str | None) -> list[str]:
    """Of a picture of this shard; None: of one that was set aside as a copy. Nothing where there is no such folder or no field."""
    if not metadata.exists():
        return []
    rows = metadata_of(metadata, shard, [key]).to_pylist() if shard else _aside(key, metadata)
    fields = [f"  {name}: {text}" for row in rows for name, text in told(row).items()]
    return ["its source says:", *fields] if fields else []


def _aside(key: str, metadata: Path) -> list[dict[str, Any]]:
    path = metadata / ASIDE
    return pq.read_table(path, filters=[(KEY, "==", key)]).to_pylist() if path.exists() else []


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """Of `metadata.folder.accounted`, what is no plain column: the rare fields, those of several types, and what was left out."""
    lines = []
    if rare := account.get("other_fields"):
        pictures = sum(rare["pictures"].values())
        lines.append(f"{rare['fields']:,} rarer fields stand as JSON in `{OTHERS}`, at {pictures:,} pictures")
    for name, kinds in account.get("mixed", {}).items():
        found = ", ".join(f"{kind} at {n:,}" for kind, n in kinds.items())
        lines.append(f"{name} has values of several types ({found} pictures) and is {account['fields'][name]['type']}")
    for why, counts in account.get("left_out", {}).items():
        named = ", ".join(f"{name} at {n:,}" for name, n in list(counts.items())[:_MOST_NAMED])
        more = f" and {len(counts) - _MOST_NAMED} further fields" if len(counts) > _MOST_NAMED else ""
        lines.append(f"{_WHY[why]}: {named}{more} (pictures)")
    return lines
