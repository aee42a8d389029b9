"""What the source says of a picture beside its texts, in lines for a person."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from blip_core.metadata.fields import KEY, as_text
from blip_core.metadata.folder import ASIDE, metadata_of

MOST_CHARS = 200  # of a value


def told(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields that have a value, as short texts."""
    values = {name: value for name, value in row.items() if value is not None and name != KEY}
    return {_short(name): "NaN" if value != value else _short(as_text(value)) for name, value in values.items()}


def _short(text: str) -> str:
    """On one line, without what a terminal would act upon, its end left out where it is long; the whole stands in the table."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
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
