"""The pictures that no training sees: test for evaluation, val for calibration, controls and the choice of rounds."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from blip_core.files.content import hash64
from blip_core.tables.captions import read_table, table_paths


@dataclass(frozen=True)
class Picture:
    shard: str
    key: str
    image_id: str
    texts: list[str]


def heldout_pictures(heldout: Path, split: str) -> list[Picture]:
    """The pictures of a held-out split, val or test, in order of key."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in heldout_tables(heldout, split, ["key", "image_id", "text"]):
        for row in table.to_pylist():
            groups[row["key"]].append(row)
    return [Picture(rows[0]["shard"], key, rows[0]["image_id"], [r["text"] for r in rows]) for key, rows in sorted(groups.items())]


def heldout_tables(heldout: Path, split: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The caption tables of a held-out split, with `shard`. `columns`: those that are read; None reads all."""
    for path in table_paths(heldout):
        if path.stem.startswith(f"{split}-"):
            table = read_table(path, columns)
            yield table.append_column("shard", pa.array([path.stem] * table.num_rows, pa.string()))


def heldout_halves(heldout: Path) -> tuple[list[Picture], list[Picture]]:
    """The pictures of the held-out split val in two disjoint halves: one calibrates, the other controls."""
    items = heldout_pictures(heldout, "val")
    return [p for p in items if hash64(p.image_id) % 2 == 0], [p for p in items if hash64(p.image_id) % 2]


def num_true_controls(heldout: Path, per_image: int) -> int:
    """How many true pairs `score` plants: up to so many captions of each picture of its half."""
    return sum(min(len(picture.texts), per_image) for picture in heldout_halves(heldout)[1])
