"""img2dataset's side files: NNNNN.parquet lists every row with its status, NNNNN_stats.json has counts. So a lost sample shows."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq

from blip_core.intake.formats import RejectedRow, failure, split_of_name
from blip_core.intake.formats.cells import Values, values_of
from blip_core.intake.formats.rows import PARQUET_FAULTS

STATS = "_stats.json"
_COLUMNS = ("key", "status", "error_message")


def is_side_table(path: Path) -> bool:
    """Tables of other columns are not ours; one that can't be read may be."""
    try:
        return {"key", "status"} <= set(map(str.lower, pq.read_schema(path).names))
    except PARQUET_FAULTS:
        return True


def read_side_table(root: Path, path: Path, found: set[str], *, prefix: str, where: str) -> Iterator[RejectedRow]:
    """Failed rows of img2dataset's table, and rows whose key is not `found` among what `where` names, as it should be."""
    name = path.relative_to(root).as_posix()
    split = split_of_name(name.rpartition(".")[0])
    try:
        columns = [c for c in pq.read_schema(path).names if c.lower() in _COLUMNS]
        table = pq.read_table(path, columns=columns)
        rows = table.rename_columns([c.lower() for c in columns]).to_pylist()
    except PARQUET_FAULTS as e:
        yield RejectedRow("", name, "bad_side_table", str(e), split)
        return
    for number, row in enumerate(rows):
        key, status = str(row["key"]), str(row["status"])
        if status != "success":
            why = failure(status, row.get("error_message"))
            yield RejectedRow(prefix + key, f"{name}:row {number}", why.reason, why.detail, split)
        elif key not in found:
            yield RejectedRow(prefix + key, f"{name}:row {number}", "missing_in_tar", f"not among {where}", split)


@lru_cache(maxsize=1)
def side_rows(path: Path) -> dict[str, Values]:
    """The rows of a side table by key, for tars that have no JSON; nothing of one that can't be read, which `read_side_table` tells."""
    try:
        rows = [row for batch in pq.ParquetFile(path).iter_batches() for row in values_of(batch)]
    except PARQUET_FAULTS:
        return {}
    key = next((name for name in rows[0] if name.lower() == "key"), "key") if rows else "key"
    return {str(row[key]): row for row in rows}


def read_stats(root: Path, stats: Path, found: set[str], tar: str) -> Iterator[RejectedRow]:
    """Without a side table the statistics still tell how many samples there should be; one row for each that is lost."""
    where = stats.relative_to(root).as_posix()
    split = split_of_name(where.removesuffix(STATS))
    try:
        successes = json.loads(stats.read_bytes())["successes"]
        for _ in range(successes - len(found)):
            yield RejectedRow("", where, "missing_in_tar", f"{successes} successes, but {len(found)} samples in {tar}", split)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        yield RejectedRow("", where, "bad_side_table", f"no count of successes: {type(e).__name__} {e}", split)
