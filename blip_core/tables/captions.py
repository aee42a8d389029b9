"""Caption tables: Parquet, one file per shard with the shard's stem, joined to its images by `key`.

A folder of tables is whole when its manifest.json, written last, names every file with its rows and sha256. The same schema
serves a generation (candidates with their decision), candidates fresh from the captioner, scores and held-out clean texts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.files.atomic import new_file
from blip_core.tables.manifest import read_manifest

KEPT = "kept"
CONTROLS = "controls.parquet"  # planted pairs among the scores; never candidates
WRITTEN = ("synthetic", "fused")  # sources: what captioners wrote
VAL = "val"  # the held-out split that choices within the chain may look at; in an evaluation the folder of what was found on it
SCREENS = ("boilerplate", "file_name", "email", "phone", "card", "markup", "repeats", "language")  # told by the text alone, see screens.py
NO_TEXT = "missing_text"  # of a row without a text: its picture is there for a captioner
DEGENERATE = ("empty", "marks", "refusal", "loop", "truncated", "overused")  # written texts that are no captions, see choice.py
REASONS = (KEPT, "below_threshold", *DEGENERATE, "duplicate", "outranked", "source_off", NO_TEXT, *SCREENS)

# what a further filter of an ensemble says of a text
OPINION = (
    pa.field("filter", pa.string()),
    pa.field("itm", pa.float64()),
    pa.field("itc", pa.float64()),
    pa.field("match", pa.float64()),
)

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the image in its shard
        ("image_id", pa.string()),  # identity of the picture: its captions are never each other's negatives
        ("text", pa.string()),
        ("source", pa.string()),  # web | human | synthetic: of the picture | fused: of a web text and a synthetic one
        ("round", pa.string()),  # in which the text appeared; "" at ingest
        ("candidate", pa.int32()),  # 0..N-1 within (key, source)
        ("fused_web", pa.int32()),  # of a fused text: the candidate numbers of the two rows of its key that it is made of, the web text,
        ("fused_synthetic", pa.int32()),  # and the synthetic text of its round
        ("model", pa.string()),  # content hash of the captioner that wrote it; "" for web and human
        ("sampler", pa.string()),
        ("seed", pa.int64()),
        ("truncated", pa.bool_()),  # the captioner was cut off by its limit of tokens; null: nobody knows, or no captioner wrote it
        ("itm", pa.float64()),  # P(match) by the filter's ITM head, raw; null: not scored, or by a filter without such a head
        ("itc", pa.float64()),  # cosine of the filter's ITC features
        ("match", pa.float64()),  # calibrated P(match); null before assemble
        ("filter", pa.string()),  # content hash of the filter that scored it
        ("opinions", pa.list_(pa.struct(OPINION))),  # of further filters; null: there are none
        ("reason", pa.string()),  # decision, one of REASONS; "" before one was made
        # what the screens say; null: nobody looked
        ("boilerplate", pa.bool_()),  # the same text stands at many images
        ("file_name", pa.bool_()),
        ("email", pa.bool_()),
        ("phone", pa.bool_()),
        ("card", pa.bool_()),
        ("markup", pa.bool_()),
        ("repeats", pa.bool_()),
        ("language", pa.string()),  # ISO 639-1 code, "und" where it can't be told; "": nobody looked
    ]
)


def caption_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows to a table of SCHEMA; keys that a row lacks are null ("" for text columns)."""
    columns = {f.name: [r.get(f.name, "" if pa.types.is_string(f.type) else None) for r in rows] for f in SCHEMA}
    return pa.table(columns, schema=SCHEMA)


def made_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The parents of a fused text for people, with what they say among the rows of its key; "" of any other text."""
    if row["source"] != "fused":
        return ""
    texts = {(r["source"], r["round"], r["candidate"]): f" {r['text']!r}" for r in rows}
    web, caption = ("web", "", row["fused_web"]), ("synthetic", row["round"], row["fused_synthetic"])
    return f" of web#{web[-1]}{texts.get(web, '')} and synthetic {caption[1]}#{caption[-1]}{texts.get(caption, '')}"


def makers_of(rows: list[dict[str, Any]], makers: dict[str, str]) -> dict[str, str]:
    """Those of a folder's makers (`read_makers`) who wrote or judged one of these rows."""
    seen = {row[name] for row in rows for name in ("model", "filter")}
    seen |= {opinion["filter"] for row in rows for opinion in row.get("opinions") or ()}
    return {identity: words for identity, words in makers.items() if identity in seen}


def write_table(table: pa.Table, path: Path) -> None:
    """Write by rename, with page checksums, so that a reader sees the whole file or none and a flipped bit is an error."""
    with new_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, checksums verified. ValueError names a file that is missing or broken, or lacks one of the columns."""
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such table") from None
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{path}: not a readable Parquet file ({e}); make it again") from None
    if lacking := [name for name in columns or () if name not in table.column_names]:
        raise ValueError(f"{path}: no column {', '.join(lacking)}; its columns are {table.column_names}; make it again")
    return table


def table_paths(folder: Path) -> list[Path]:
    """The tables of a sealed folder, sorted."""
    return [folder / name for name in sorted(read_manifest(folder)["files"]) if name.endswith(".parquet")]


def each_table(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The tables of a sealed folder one after the other, with the column `shard` (the file's stem) added."""
    paths = table_paths(folder)
    if not paths:
        raise ValueError(f"{folder}: holds no table")
    for path in paths:
        table = read_table(path, columns)
        yield table.append_column("shard", pa.array([path.stem] * table.num_rows, pa.string()))


def read_tables(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All of them as one."""
    return pa.concat_tables(each_table(folder, columns))


def kept(table: pa.Table) -> pa.Table:
    """The rows that a model may train on."""
    return table.filter(pc.equal(table["reason"], KEPT))
