"""What a folder that no format recognises seems to be, and what it lacks: the first thing that its owner wants to know."""

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.intake.formats.columns import IMAGE_ENDS, TEXTS
from blip_core.intake.formats.parquet import holds_image
from blip_core.intake.formats.rows import PARQUET_FAULTS
from blip_core.intake.walk import Below, below

_ARCHIVE = re.compile(r".*\.(?:zip|7z|rar|gz|bz2|xz|zst|lz4|z|tgz|tbz2?|txz|tar(?:\..*)?)(?:\.\d+)?", re.IGNORECASE)
_OTHERS = {
    "datasets.Dataset.from_file(FILE).to_parquet(FILE)": (".arrow", ".feather"),
    "a spreadsheet saves its rows as CSV": (".xlsx", ".xls", ".ods"),
    "write the samples as Parquet or as WebDataset tars": (
        ".tfrecord .tfrecords .h5 .hdf5 .lmdb .mdb .pkl .pickle .pt .npz .beton .mds .msgpack .db .sqlite".split()
    ),
}
_SHOWN = 3


def is_archive(name: str) -> bool:
    """By its ending; what `tar.py` reads is one too."""
    return _ARCHIVE.fullmatch(name) is not None


def nearest(path: Path) -> str:
    """A sentence; empty where nothing can be said."""
    found = below(path)
    names = [name for name in found.names if not name.rpartition("/")[2].startswith(".")]
    ends = Counter(Path(name).suffix.lower() for name in names)
    for look in (_saved_to_disk, _archives, _lists_of_pictures, _bare_pictures, _other_files):
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
    packed = [name for name in names if is_archive(name)]
    return f"There are archives that must be unpacked first: {', '.join(packed[:_SHOWN])}" if packed else ""


def _lists_of_pictures(found: Below, names: list[str], ends: Counter[str]) -> str:
    """A Parquet file with several pictures in a row."""
    for path in found.paths(".parquet")[:_SHOWN]:
        try:
            schema = pq.read_schema(path)
        except PARQUET_FAULTS:
            continue
        for field in schema:
            if _is_list(field.type) and holds_image(field.type.value_type):
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


def _other_files(found: Below, names: list[str], ends: Counter[str]) -> str:
    for advice, kinds in _OTHERS.items():
        if there := [name for name in names if name.lower().endswith(tuple(kinds))]:
            return f"There are files that no format reads: {', '.join(there[:_SHOWN])}; {advice}"
    return ""


def _beside(name: str) -> str:
    return f"{name.rpartition('.')[0]}.txt beside {name}"
