"""The fields of all shards under one schema, as the second half of ingest puts them into place."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.config.intake import MetadataConfig
from blip_core.intake.units import Task, fields_path
from blip_core.metadata.fields import KEY, OTHERS, SCREENS
from blip_core.metadata.folder import ASIDE
from blip_core.metadata.keeping import most_named
from blip_core.metadata.schema import Survey, conform, rare
from blip_core.tables.captions import read_table, write_table


class FieldTables:
    """Writes one table a shard into `folder`; those of pictures that are set aside here go together into a table of their own.

    `staged`: every staged shard as (folder of its unit, its stem). One shard's table is in memory at a time."""

    def __init__(self, folder: Path, staged: Iterable[tuple[Path, str]], cfg: MetadataConfig, *, screened: bool):
        """`screened`: whether screens mark pictures, so that there is the field SCREENS."""
        self.folder, self._survey = folder, Survey()
        for unit, stem in staged:
            self._survey.add(read_table(fields_path(unit, stem)))
        self.schema = self._survey.schema(max_fields=cfg.max_fields)
        if screened:
            self.schema = self.schema.append(pa.field(SCREENS, pa.list_(pa.string())))
        self._pictures: Counter[str] = Counter()  # by split
        self._having: dict[str, Counter[str]] = defaultdict(Counter)  # by field and split
        self._rare = np.empty(0, np.int64)  # hashes of the fields without a column
        self._aside: pq.ParquetWriter | None = None

    def place(self, unit: Path, staged: str, stem: str, *, dropped: Iterable[str], marked: Mapping[str, list[str]]) -> None:
        """One shard's table under its final stem, without the dropped keys; none of a shard that is dropped whole.

        `marked`: by key the names of the screens that hit the picture."""
        table = conform(read_table(fields_path(unit, staged)), self.schema)
        if marked:
            marks = pa.array([marked.get(key) for key in table[KEY].to_pylist()], pa.list_(pa.string()))
            table = table.set_column(table.column_names.index(SCREENS), self.schema.field(SCREENS), marks)
        gone = pc.is_in(table[KEY], pa.array(dropped, pa.string()))
        self._set_aside(table.filter(gone))
        table, split = table.filter(pc.invert(gone)), stem.rpartition("-")[0]
        if not table.num_rows:
            return
        self._pictures[split] += table.num_rows
        for name in self.schema.names[1:]:
            if having := table.num_rows - table[name].null_count:
                self._having[name][split] += having
        self._rare = np.union1d(self._rare, rare(table))
        write_table(table, self.folder / f"{stem}.parquet")

    def finish(self, tasks: Iterable[Task]) -> dict[str, Any]:
        """Close the folder's files; returns what its manifest is to tell."""
        if self._aside:
            self._aside.close()
        columns = {own.name: {"type": str(own.type), "pictures": dict(self._having[own.name])} for own in self.schema if own.name != KEY}
        others = {"fields": len(self._rare), **columns.pop(OTHERS)} if OTHERS in columns else None
        mixed = {name: kinds for name, kinds in self._survey.mixed.items() if name in columns}
        return {
            "pictures": dict(self._pictures),
            "fields": columns,
            "other_fields": others,
            "mixed": mixed,
            "left_out": _left_out(tasks),
        }

    def _set_aside(self, table: pa.Table) -> None:
        if table.num_rows:
            self._aside = self._aside or pq.ParquetWriter(self.folder / ASIDE, self.schema, compression="zstd", write_page_checksum=True)
            self._aside.write_table(table)


def _left_out(tasks: Iterable[Task]) -> dict[str, dict[str, int]]:
    """Of all units: for each reason the fields and of how many pictures."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        for why, counts in json.loads((task.folder / "counts.json").read_text())["left_out"].items():
            found[why].update(counts)
    return {why: most_named(counts) for why, counts in found.items() if counts}
