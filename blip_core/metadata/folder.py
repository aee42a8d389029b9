"""The metadata folder of a project: `artifacts/metadata`, one table a shard with the shard's stem, sealed by a manifest.

Pictures never change after ingest, and so do their fields: no generation has a copy of the folder, each finds its rows by shard and key.
All tables have one schema. manifest.json tells for each field its type and how many pictures of each part have a value.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.metadata.fields import KEY
from blip_core.tables.captions import read_table
from blip_core.tables.manifest import read_manifest

NAME = "metadata"  # of the folder among the artifacts
ASIDE = "aside.parquet"  # fields of the pictures that were set aside as copies; of no shard


Keys: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str]


def metadata_of(folder: Path, shard: str, keys: Keys, fields: Sequence[str] | None = None) -> pa.Table:
    """The fields of these pictures of a shard: a row for each of `keys`, in their order, with `key` and the asked fields (None: all).

    A value is null where the source has none. ValueError names a field or a key that the shard does not have; `field_types` tells which
    there are."""
    path = folder / f"{shard}.parquet"
    if fields is not None:
        known = field_types(folder)
        if lacking := [name for name in fields if name not in known]:
            raise ValueError(f"{folder}: no field {', '.join(lacking)}; the sources have {', '.join(known) or 'none'}")
    table = read_table(path, None if fields is None else list(dict.fromkeys([KEY, *fields])))
    wanted = pa.array(keys, pa.string()) if isinstance(keys, Sequence) else keys
    rows = pc.index_in(wanted, value_set=table[KEY].combine_chunks())
    if rows.null_count:
        raise ValueError(f"{path}: no row of {wanted.filter(rows.is_null())[0].as_py()!r}; metadata and shards are not of one ingest")
    return table.take(rows)


def field_types(folder: Path) -> dict[str, pa.DataType]:
    """Every field of the tables with its type, in their order; empty where no source has one."""
    names = [name for name in sorted(read_manifest(folder)["files"]) if name != ASIDE]
    schema = pq.read_schema(folder / names[0]) if names else pa.schema([])
    return {field.name: field.type for field in schema if field.name != KEY}


def accounted(folder: Path) -> dict[str, Any]:
    """What the manifest tells: `pictures` by part; `fields`: type and pictures by part of each; `other_fields`, `left_out`, `mixed`.
    Empty where there is no such folder, as in a project whose ingest is older."""
    return read_manifest(folder) if folder.exists() else {}
