"""What a folder that no format recognises seems to be, and what it lacks: the first thing that its owner wants to know."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.intake.formats.columns import IMAGE_ENDS, TEXTS
from blip_core.intake.formats.rows import PARQUET_FAULTS
from blip_core.intake.walk import Below, below

_ARCHIVES = (".zip", ".7z", ".rar")
_SHOWN = 3


def nearest(path: Path) -> str:
    """A sentence; empty where nothing can be said."""
    found = below(path)
    names = [name for name in found.names if not name.rpartition("/")[2].startswith(".")]
    ends = Counter(Path(name).suffix.lower() for name in names)
    for look in (_saved_to_disk, _archives, _lists_of_pictures, _bare_pictures):
        if said := look(found, names, ends):
            return said
    return ""


def _saved_to_disk(found: Below, names: list[str], ends: Counter[str]) -> str:
    if not ends[".arrow"] or not any(name.rpartition("/")[2] in ("state.json", "dataset_info.json") for name in names):
        return ""
    return (
        "This is a folder of datasets' save_to_disk. Write it as Parquet, which is read: "
        "datasets.load_from_disk(FOLDER).to_parquet(FILE), for a DatasetDict each split"
    )


def _archives(found: Below, names: list[str], ends: Counter[str]) -> str:
    packed = [name for name in names if name.lower().endswith(_ARCHIVES)]
    return f"There are archives that must be unpacked first: {', '.join(packed[:_SHOWN])}" if packed else ""


def _lists_of_pictures(found: Below, names: list[str], ends: Counter[str]) -> str:
    """A Parquet file with several pictures in a row."""
    for path in found.paths(".parquet")[:_SHOWN]:
        try:
            schema = pq.read_schema(path)
        except PARQUET_FAULTS:
            continue
        for field in schema:
            if _is_list(field.type) and pa.types.is_struct(field.type.value_type) and "bytes" in {f.name for f in field.type.value_type}:
                return f"Nearest is parquet, but {path.name} holds lists of pictures under {field.name!r}; write one picture a row"
    return ""


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _bare_pictures(found: Below, names: list[str], ends: Counter[str]) -> str:
    pictures = [name for name in names if name.lower().endswith(IMAGE_ENDS)]
    if not pictures:
        return ""
    tables = [name for name in names if Path(name).suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".parquet")]
    if not tables:
        return f"Nearest is sidecar, but no .txt or .caption lies beside any of {len(pictures)} pictures, as {_beside(pictures[0])}"
    wanted = ", ".join(TEXTS[:4])
    return f"Nearest is table, but none of {', '.join(tables[:_SHOWN])} names the pictures in one column and texts ({wanted}, …) in another"


def _beside(name: str) -> str:
    return f"{name.rpartition('.')[0]}.txt beside {name}"
