"""What happened to an image: every text that was ever considered for it, its scores, and why it stayed or went."""

import heapq
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.explain.sources import source_lines
from blip_core.metadata.folder import NAME
from blip_core.tables.captions import SCREENS, WRITTEN, made_of, makers_of, read_table, table_paths
from blip_core.tables.manifest import read_makers

SHOWN = 3  # keys in a hint


def history(key: str, artifacts: Path) -> str:
    """Lines for a person, generation by generation, and what is held out. ValueError when the key is nowhere below `artifacts`."""
    generations = sorted((artifacts / "generations").glob("*/manifest.json"), key=lambda p: (len(p.parent.name), p.parent.name))
    if not generations:
        raise ValueError(f"{artifacts / 'generations'}: holds no generation; run the chain, or name another folder with --artifacts")
    folders = [manifest.parent for manifest in [*generations, *artifacts.glob("heldout/manifest.json")]]
    lines: list[str] = []
    shard, makers = None, dict[str, str]()
    for folder in folders:
        if rows := rows_of(key, folder):
            lines += [f"{folder.name}:", *(f"  {_describe(row, rows)}" for row in rows)]
            makers |= makers_of(rows, read_makers(folder))
            shard = rows[0]["shard"]
    aside = artifacts / "quarantine.parquet"
    if aside.exists():
        for row in pq.read_table(aside, filters=[("key", "in", _keys_aside(key))]).to_pylist():
            lines.append(f"set aside at ingest: {row['reason']} ({row['detail'] or 'no detail'}), from {row['where']}")
    lines += source_lines(key, artifacts / NAME, shard)
    if not lines:
        tables = [path for folder in folders for path in table_paths(folder)]
        raise ValueError(f"key {key!r} is in no generation, not held out and not in quarantine; {hint(key, tables)}")
    return "\n".join([*lines, *(f"{identity}: {words}" for identity, words in makers.items())])


def _keys_aside(key: str) -> list[str]:
    """By which the quarantine may know an image: a row of the clean set whose split was never known has a key without one."""
    split, _, bare = key.partition("-")
    return [key, bare] if split in ("train", "val", "test") else [key]


def rows_of(key: str, generation: Path) -> list[dict[str, Any]]:
    """Every text of an image in a generation, with the column `shard`."""
    found = ((path.stem, pq.read_table(path, filters=[("key", "==", key)])) for path in table_paths(generation))
    return [{**row, "shard": shard} for shard, table in found for row in table.to_pylist()]


def hint(key: str, tables: Iterable[Path]) -> str:
    """For who asks for a key that is in none of these tables: those of its kind (web, train, …) that end like it, leading zeros aside, else
    those with the nearest numbers, else what keys look like. A key without a kind may be of any."""
    kind, _, tail = key.rpartition("-")
    ending = rf"(?i)(^|[^1-9a-z]){re.escape(tail.lstrip('0') or tail)}$"
    alike: list[str] = []
    near: list[str] = []
    first: list[str] = []
    for path in tables:
        keys = pc.unique(read_table(path, ["key"])["key"])
        first += keys[: SHOWN - len(first)].to_pylist()
        own = keys.filter(pc.starts_with(keys, f"{kind}-", ignore_case=True)) if kind else keys
        alike += [k for k in own.filter(pc.match_substring_regex(own, ending)).to_pylist() if k not in alike]
        if kind and tail.isdecimal():
            near = heapq.nsmallest(SHOWN, {*near, *own.to_pylist()}, key=lambda k: (abs(_number(k) - int(tail)), k))
    if alike:
        return f"did you mean {' or '.join(alike[:SHOWN])}?"
    return f"the nearest are {', '.join(near)}" if near else f"keys read like {', '.join(first)}"


def _number(key: str) -> float:
    """Infinite where a key does not end in one."""
    tail = key.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else math.inf


def _describe(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    origin = row["source"]
    if origin in WRITTEN:
        origin += f" {row['round']}#{row['candidate']}{made_of(row, rows)} ({row['sampler']}, captioner {row['model']}, seed {row['seed']})"
    scores = [f"{name} {row[name]:.3f}" for name in ("match", "itm", "itc") if row[name] is not None]
    judged = f"; {', '.join(scores)} by filter {row['filter']}" if scores else ""
    marks = [name for name in SCREENS if row.get(name) is True] + [row["language"]] * bool(row.get("language"))
    screens = f"; screens: {', '.join(marks)}" if marks else ""
    return f"{row['reason'] or 'undecided'}: {row['text']!r}, {origin}{judged}{screens}"
