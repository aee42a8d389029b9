"""What happened to an image: every text that was ever considered for it, its scores, and why it stayed or went."""

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_core.tables.captions import SCREENS, read_table, table_paths


def history(key: str, artifacts: Path) -> str:
    """Lines for a person, generation by generation. ValueError when the key is nowhere below `artifacts`."""
    generations = sorted((artifacts / "generations").glob("*/manifest.json"), key=lambda p: (len(p.parent.name), p.parent.name))
    if not generations:
        raise ValueError(f"{artifacts / 'generations'}: holds no generation; run the chain, or name another folder with --artifacts")
    lines = []
    for manifest in generations:
        if rows := rows_of(key, manifest.parent):
            lines += [f"{manifest.parent.name}:", *(f"  {_describe(row)}" for row in rows)]
    aside = artifacts / "quarantine.parquet"
    if aside.exists():
        bare = key.split("-", 1)[-1]
        for row in pq.read_table(aside, filters=[("key", "in", [key, bare])]).to_pylist():
            lines.append(f"set aside at ingest: {row['reason']} ({row['detail'] or 'no detail'}), from {row['where']}")
    if not lines:
        tables = [path for manifest in generations for path in table_paths(manifest.parent)]
        raise ValueError(f"key {key!r} is in no generation and not in quarantine; {hint(key, tables)}")
    return "\n".join(lines)


def rows_of(key: str, generation: Path) -> list[dict[str, Any]]:
    """Every text of an image in a generation, with the column `shard`."""
    found = ((path.stem, pq.read_table(path, filters=[("key", "==", key)])) for path in table_paths(generation))
    return [{**row, "shard": shard} for shard, table in found for row in table.to_pylist()]


def hint(key: str, tables: Iterable[Path]) -> str:
    """For who asks for a key that is in none of these tables: those that end like it, leading zeros aside, else what keys look like."""
    tail, tables = re.escape(key.rsplit("-", 1)[-1].lstrip("0") or key), list(tables)

    def matching(pattern: str, paths: list[Path]) -> list[str]:
        columns = (read_table(path, ["key"])["key"] for path in paths)
        found = (k for column in columns for k in pc.unique(column.filter(pc.match_substring_regex(column, pattern))).to_pylist())
        return list(islice(dict.fromkeys(found), 3))

    if close := matching(rf"(?i)(^|[^1-9a-z]){tail}$", tables):
        return f"did you mean {' or '.join(close)}?"
    return f"keys read like {', '.join(matching('', tables[:1]))}"


def _describe(row: dict[str, Any]) -> str:
    origin = row["source"]
    if origin == "synthetic":
        origin += f" {row['round']}#{row['candidate']} ({row['sampler']}, captioner {row['model']}, seed {row['seed']})"
    scores = [f"{name} {row[name]:.3f}" for name in ("match", "itm", "itc") if row[name] is not None]
    judged = f"; {', '.join(scores)} by filter {row['filter']}" if scores else ""
    marks = [name for name in SCREENS if row.get(name) is True] + [row["language"]] * bool(row.get("language"))
    screens = f"; screens: {', '.join(marks)}" if marks else ""
    return f"{row['reason'] or 'undecided'}: {row['text']!r}, {origin}{judged}{screens}"
