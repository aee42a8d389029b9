"""One shard between the two halves of ingest."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.intake.units import Task
from blip_core.tables.captions import read_table
from blip_core.tables.shards import index_path


@dataclass
class Staged:
    """One shard as its unit left it, and what the whole says of its images."""

    task: Task
    stem: str
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)  # key -> reason, detail
    same_as: dict[str, str] = field(default_factory=dict)  # key -> image_id of the picture that it is a near copy of
    marked: dict[str, list[str]] = field(default_factory=dict)  # key -> the screens of pictures that hit it
    counts: Counter[str] = field(default_factory=Counter)  # metrics: what the screens of pictures and near copies count

    @property
    def tar(self) -> Path:
        return self.task.folder / f"{self.stem}.tar"

    def index(self, *columns: str) -> pa.Table:
        return read_table(index_path(self.task.folder, self.stem), list(columns))

    def stays(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether each of these is not dropped."""
        return pc.invert(pc.is_in(keys, pa.array(self.dropped, pa.string())))

    def texts(self) -> pa.Table:
        """Its caption table as the whole wants it."""
        return self.kept(read_table(self.task.folder / f"{self.stem}.parquet"))

    def kept(self, table: pa.Table) -> pa.Table:
        """Rows of these images that stay, with the identity of their picture."""
        if self.dropped:
            table = table.filter(self.stays(table["key"]))
        if self.same_as:
            rows = zip(table["key"].to_pylist(), table["image_id"].to_pylist(), strict=True)
            ids = pa.array([self.same_as.get(key, image_id) for key, image_id in rows], pa.string())
            table = table.set_column(table.column_names.index("image_id"), "image_id", ids)
        return table
