"""What must hold of every row of a caption table, whichever stage wrote it. The verb `contract` asks this alone; validate and
gate add what is theirs.

A row that breaks it is named with its file, row and key. One table and its shard's index are in memory at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.checks.expect import Expect, matches, never_null, one_of, unique, within
from blip_core.checks.expectations import broken, check, folder_faults, require
from blip_core.tables.captions import CONTROLS, KEPT, NO_TEXT, REASONS, WRITTEN, read_table, table_paths
from blip_core.tables.counting import Walk
from blip_core.tables.manifest import read_manifest
from blip_core.tables.shards import KEY, index_path, read_index

RANGES = {"match": (0, 1), "itm": (0, 1), "itc": (-1.01, 1.01)}  # a cosine of bf16 features may stand beyond 1
SOURCES = ("web", "human", *WRITTEN)
COLUMNS = ["key", "image_id", "text", "source", "round", "candidate", "reason"]

_IDENTITY = r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,999})"
_TIDY = r"[^\s\x00-\x1f\x7f]+(?: [^\s\x00-\x1f\x7f]+)*"
_MOST_FAULTS = 10  # of tables that can't be read, in a message
_REMEDY = "Run the stage that makes it again; if that says the same, report it with this message."


def check_folder(folder: Path, shards: Path | None = None) -> str:
    """What a person is told of a generation, held-out texts, captions or scores that keep the contract; ValueError lists what does not.

    `shards`: where not given, the folder of this name in the same artifacts."""
    paths = [p for p in table_paths(folder) if p.name != CONTROLS]
    faults = folder_faults(folder)
    if not faults:
        decided = folder.resolve().name == "heldout" or folder.resolve().parent.name == "generations"
        rows = Walk(lambda: each_row(paths, COLUMNS, shards or _beside(folder)))
        suites = {"texts": (rows, row_expectations(max_chars=max_chars(folder), reasons=REASONS if decided else ("", *REASONS)))}
        scored = Walk(lambda: _scored(paths))
        if any(table.num_rows for table in scored):
            suites["scores"] = (scored, score_expectations())
        results = check(suites, docs=None)
    if len(faults) > _MOST_FAULTS:
        faults = [*faults[:_MOST_FAULTS], f"and {len(faults) - _MOST_FAULTS} more"]
    require(broken(faults) if faults else results, what=f"{folder} does not keep the contract of caption tables", remedy=_REMEDY, docs=None)
    num_rows = sum(table.num_rows for table in (read_table(p, ["key"]) for p in paths))
    return f"{folder}: {num_rows} texts in {len(paths)} tables keep the contract ({len(results)} checks)"


def row_expectations(*, max_chars: int | None, reasons: tuple[str, ...] = REASONS) -> list[Expect]:
    """Of the tables of `each_row`. `max_chars`: of texts that were read, by ingest.texts; None where nobody noted it."""
    expectations = [
        never_null("text", "rows without a text"),
        never_null("round", "rows without a round"),
        matches("key_form", "key", KEY.pattern, f"rows without a key, or whose key is not of the form {KEY.pattern}"),
        matches("image_id_form", "image_id", _IDENTITY, "rows whose image_id is missing, longer than 1000 characters or not printable"),
        unique("key_source_candidate", ("key", "source", "round", "candidate"), "rows that share key, source, round, number with another"),
        within("candidate", 0, 2**31 - 1, "rows whose candidate number is missing or negative"),
        one_of("source", "source", SOURCES, f"rows whose source is none of {', '.join(SOURCES)}"),
        one_of("reason", "reason", reasons, f"rows whose reason is none of {', '.join(reasons)}"),
        one_of("text_missing", "text", ("",), "rows of pictures without a text that have one", where=("reason", NO_TEXT)),
        one_of("reason_human", "reason", (KEPT,), "human texts that are not kept", where=("source", "human")),
        one_of("texts_without_image", "in_shard", ("yes",), "rows whose key and image_id their shard's index does not hold"),
    ]
    for source in ("web", "human"):  # a captioner may say nothing, which is degenerate
        says = f"{source} texts that are empty or not as ingest stores them: words with single spaces between"
        expectations.append(Expect(f"text_form_{source}", "matches", says, ("form",), values=(_TIDY,), where=("source", source)))
        if max_chars:
            says = f"{source} texts of more than {max_chars} characters"
            expectations.append(
                Expect(f"text_length_{source}", "within", says, ("chars",), low=1, high=max_chars, where=("source", source))
            )
    return expectations


def score_expectations() -> list[Expect]:
    return [within(name, low, high, f"texts whose {name} is missing or beyond {low:g} to {high:g}") for name, (low, high) in RANGES.items()]


def each_row(paths: list[Path], columns: list[str], shards: Path) -> Iterator[pa.Table]:
    """The tables with `shard` and `row`, by which a row is found again, whether it `has_text` or stands for a picture without one,
    `form` and `chars`, the text and its length where it has one, and whether the picture is `in_shard`. Of a value that is missing
    these say nothing: an expectation of its own does."""
    listed = read_manifest(shards)["files"]
    for path in paths:
        table, index = read_table(path, columns), index_path(shards, path.stem)
        held = read_index(index) if index.name in listed else None
        identity = _identity(table)
        there = pc.is_in(identity, value_set=_identity(held).combine_chunks()) if held else pa.repeat(False, table.num_rows)
        there = pc.or_(there, pc.is_null(identity))
        without = pc.or_(pc.fill_null(pc.equal(table["reason"], NO_TEXT), False), pc.is_null(table["text"]))
        added = {
            "shard": pa.repeat(path.stem, table.num_rows),
            "row": pa.array(range(table.num_rows), pa.int64()),
            "chars": pc.if_else(without, 1, pc.utf8_length(table["text"])),
            "form": pc.if_else(without, "-", table["text"]),
            "has_text": pc.if_else(without, "no", "yes"),
            "in_shard": pc.if_else(there, "yes", pc.binary_join_element_wise("image_id", table["image_id"], " ")),
        }
        for name, values in added.items():
            table = table.append_column(name, values)
        yield table


def max_chars(folder: Path) -> int | None:
    """Of a text, as the manifest has it from ingest."""
    return read_manifest(folder).get("limits", {}).get("max_chars")


def _scored(paths: list[Path]) -> Iterator[pa.Table]:
    for path in paths:
        table = read_table(path, ["key", "filter", *RANGES])
        table = table.append_column("shard", pa.repeat(path.stem, table.num_rows)).append_column("row", pa.array(range(table.num_rows)))
        yield table.filter(pc.not_equal(pc.fill_null(table["filter"], ""), ""))


def _identity(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["key"], table["image_id"], "\x1f")


def _beside(folder: Path) -> Path:
    """The shards of the artifacts that the folder lies in."""
    for parent in folder.resolve().parents:
        if (parent / "shards" / "manifest.json").exists():
            return parent / "shards"
    raise ValueError(f"{folder}: no shards beside it; name them with --shards")
