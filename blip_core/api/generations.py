"""A generation for a notebook: its texts with their scores and decisions, one shard at a time, and their pictures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from blip_core.explain.history import hint, rows_of
from blip_core.explain.image import explain
from blip_core.tables.captions import KEPT, SCHEMA, each_table, kept, table_paths
from blip_core.tables.manifest import read_manifest
from blip_core.tables.shards import ShardImages

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Generation:
    """The texts of a generation, or of another sealed folder of caption tables, as the held-out set; `open_generation` makes it.

    Nothing is held in memory but what you ask for. The columns are those of `blip_core.tables.captions.SCHEMA`, and `shard`.

    Attributes:
        folder: Where it lies.
        shards: The folder of its pictures; None where none was found.
        only_kept: Whether it is the view that `kept` gives.
    """

    folder: Path
    shards: Path | None
    only_kept: bool = False

    @property
    def manifest(self) -> dict[str, Any]:
        """What was written last: the files with their sha256, the parents, and of a round the rule that chose."""
        return read_manifest(self.folder)

    def kept(self) -> "Generation":
        """Only the texts that a model may train on."""
        return replace(self, only_kept=True)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The texts, a table for each shard, read when its turn comes. Checksums are verified.

        Args:
            columns: Those that are wanted; None is all.

        Raises:
            ValueError: There is no such column, or a file is broken.
        """
        if unknown := [name for name in columns or () if name not in (*SCHEMA.names, "shard")]:
            raise ValueError(f"no column {', '.join(unknown)}; there are {', '.join(SCHEMA.names)}, shard")
        stored = None if columns is None else [name for name in dict.fromkeys([*columns, "reason"]) if name != "shard"]
        for table in each_table(self.folder, stored):
            table = kept(table) if self.only_kept else table
            yield table if columns is None else table.select(columns)

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pandas.DataFrame":
        """All of them in memory, as a table of pandas. `columns` as in `tables`."""
        return pa.concat_tables(self.tables(columns)).to_pandas()

    def counts(self) -> dict[str, dict[str, int]]:
        """How many texts there are of each source with each reason: `{"web": {"kept": 9, "below_threshold": 3}, …}`.

        The reasons are `blip_core.tables.captions.REASONS`; `kept` is one of them."""
        found: Counter[tuple[str, str]] = Counter()
        for table in self.tables(["source", "reason"]):
            for row in table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
                found[row["source"], row["reason"]] += row["count_all"]
        return {source: {r: n for (s, r), n in sorted(found.items()) if s == source} for source in sorted({s for s, _ in found})}

    def texts(self, key: str) -> list[dict[str, Any]]:
        """Every text of a picture, a row of the table each. ValueError when there is no such picture."""
        rows = rows_of(key, self.folder)
        if not rows:
            raise ValueError(f"{self.folder}: holds no picture {key!r}; {hint(key, table_paths(self.folder))}")
        return [row for row in rows if row["reason"] == KEPT or not self.only_kept]

    def explain(self, key: str) -> str:
        """Why each text of a picture was kept or dropped, in words, by the rule that the manifest keeps.

        ValueError when there is no such picture, or no round made this generation: g0 has no rule, but its texts have reasons."""
        return explain(key, self.folder)

    def picture(self, key: str) -> Image.Image:
        """The picture that a key names, RGB, as it is stored. ValueError when there is none."""
        from blip_core.compute.pixels import read_picture  # brings torch, for which texts need not wait

        shard = replace(self, only_kept=False).texts(key)[0]["shard"]
        return Image.fromarray(read_picture(self._images, shard, key))

    @cached_property
    def _images(self) -> ShardImages:
        if self.shards is None:
            raise ValueError(f"{self.folder}: no folder `shards` near it; name it: open_generation(folder, shards=…)")
        return ShardImages(self.shards)


def open_generation(folder: str | Path, *, shards: str | Path | None = None) -> Generation:
    """A generation of a chain, to look at.

    Args:
        folder: As `artifacts/generations/g1`. An earlier version comes into a folder by `python -m blip_core generations get`.
        shards: The folder of its pictures, as `artifacts/shards`; None finds it beside the folder or the one above.

    Raises:
        ValueError: There is no such folder, it is unfinished, a file of it has another size than its manifest says, or a placeholder
            stands in its place because the rounds stopped before it; then the message says why they did.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a generation, as artifacts/generations/g1")
    read_manifest(folder)
    if shards is None:
        near = (parent / "shards" for parent in folder.resolve().parents[:2])
        shards = next((found for found in near if (found / "manifest.json").exists()), None)
    return Generation(folder, None if shards is None else Path(shards))
