"""A shard in img2dataset's layout: NNNNN.tar of pictures, texts and JSON, NNNNN.parquet of all rows, NNNNN_stats.json."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.fetch.outcome import Outcome
from blip_core.fetch.rows import Wanted
from blip_core.fetch.spool import Spool
from blip_core.files.atomic import new_file
from blip_core.files.content import write_json
from blip_core.files.tars import add_sample
from blip_core.pictures.containers import KINDS, kind_of

SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
    ]
)
SUCCESS = "success"


def paths(out: Path, number: int) -> dict[str, Path]:
    return {kind: out / f"{number:05d}{end}" for kind, end in (("tar", ".tar"), ("table", ".parquet"), ("stats", "_stats.json"))}


def statuses(table: Path) -> list[tuple[str, str]]:
    """Status and reason of each row of a finished shard."""
    rows = pq.read_table(table, columns=["status", "error_message"]).to_pylist()
    return [(row["status"], (row["error_message"] or "").partition(":")[0]) for row in rows]


def outcomes(out: Path, number: int) -> Iterator[tuple[int, Outcome]]:
    """Of each row of a finished shard: failures first, then the pictures as they stand in its tar."""
    files = paths(out, number)
    rows = pq.read_table(files["table"], columns=["status", "error_message", "width", "height", "sha256"]).to_pylist()
    for at, row in enumerate(rows):
        if row["status"] != SUCCESS:
            reason, _, detail = row["error_message"].partition(": ")
            yield at, Outcome(None, reason, detail, sha256=row["sha256"] or "")
    with tarfile.open(files["tar"]) as archive:
        for member in archive:
            stem, _, end = member.name.rpartition(".")
            if end in KINDS and (file := archive.extractfile(member)):
                row = rows[at := int(stem[-4:])]
                yield at, Outcome(file.read(), width=row["width"], height=row["height"], sha256=row["sha256"])


def write_shard(spool: Spool, wanted: list[Wanted], out: Path, number: int) -> Counter[str]:
    """The three files, the table last: a shard without it is not finished. How many rows have which reason; empty for a picture."""
    files, counts = paths(out, number), Counter(outcome.reason for outcome in spool.outcomes.values())
    rows = [_row(one, spool.outcomes[at], number, at) for at, one in enumerate(wanted)]
    spool.finish()
    by_status = Counter(row["status"] for row in rows)
    stats = {"count": len(rows), "successes": by_status[SUCCESS], "failed_to_download": by_status["failed_to_download"]}
    reasons = {reason or SUCCESS: n for reason, n in counts.most_common()}
    write_json({**stats, "failed_to_resize": by_status["failed_to_resize"], "status_dict": reasons}, files["stats"])
    with new_file(files["table"]) as temporary:
        pq.write_table(as_table(rows, [w.rest for w in wanted]), temporary)
    return counts


def _row(wanted: Wanted, outcome: Outcome, number: int, at: int) -> dict[str, Any]:
    failed = "failed_to_resize" if outcome.reason == "not_a_picture" else "failed_to_download"
    return {
        "caption": wanted.text,
        "url": wanted.url,
        "key": f"{number:05d}{at:04d}",
        "status": failed if outcome.reason else SUCCESS,
        "error_message": f"{outcome.reason}: {outcome.detail}" if outcome.reason else None,
        "width": outcome.width,
        "height": outcome.height,
        "sha256": outcome.sha256 or None,
    }


def members_of(wanted: Wanted, outcome: Outcome, number: int, at: int) -> bytes:
    """A row's part of a tar, in img2dataset's order; empty where no picture came."""
    if outcome.data is None:
        return b""
    row, buffer = _row(wanted, outcome, number, at), io.BytesIO()
    about = json.dumps({**row, **_renamed(wanted.rest)}, ensure_ascii=False, default=str)
    tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # not closed: its end is the whole tar's
    add_sample(tar, row["key"], {kind_of(outcome.data): outcome.data, "txt": _writable(wanted.text), "json": _writable(about)})
    return buffer.getvalue()


def _writable(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # bytes of a list that are no UTF-8


def _renamed(rest: dict[str, Any]) -> dict[str, Any]:
    """A list's other columns; one that is called as one of ours gets another name."""
    ours = {name.lower() for name in SCHEMA.names}
    return {f"list_{name}" if name.lower() in ours else name: value for name, value in rest.items()}


def as_table(rows: list[dict[str, Any]], rest: list[dict[str, Any]]) -> pa.Table:
    """Our columns, and a list's others with the types that they have there; a column of several types becomes text."""
    texts = ("caption", "url", "error_message")
    table = pa.Table.from_pylist([{**row, **{name: _text(row[name]) for name in texts if row[name]}} for row in rows], SCHEMA)
    renamed = [_renamed(values) for values in rest]
    for name in dict.fromkeys(name for values in renamed for name in values):
        cells = [values.get(name) for values in renamed]
        try:
            column = pa.array(cells)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            column = pa.array([None if cell is None else _text(str(cell)) for cell in cells], pa.string())
        table = table.append_column(name, column)
    return table


def _text(text: str) -> str:
    return _writable(text).decode()
