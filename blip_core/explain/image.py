"""Why a generation keeps or drops each text of an image: the rule that its manifest keeps, applied to the scores in words."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from blip_core.explain.history import hint, rows_of
from blip_core.explain.sources import source_lines
from blip_core.metadata.folder import NAME
from blip_core.tables.captions import KEPT, NO_TEXT, SCREENS, WRITTEN, made_of, makers_of, table_paths
from blip_core.tables.stopped import require_made
from blip_core.texts.screens import normalised


def explain(key: str, generation: Path) -> str:
    """Lines for a person. ValueError when no round made the generation, or the key is not in it."""
    require_made(generation)
    if not generation.is_dir():
        there = ", ".join(sorted(str(found.parent) for found in generation.parent.glob("*/manifest.json")))
        raise ValueError(f"{generation}: no such generation; there are {there or 'none: run the chain'}")
    path = generation / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    rule = manifest.get("rule")
    if rule is None:
        raise ValueError(
            f"{path}: names no rule by which texts were chosen; expected a generation that a round made, as artifacts/generations/g1"
        )
    rows = rows_of(key, generation)
    if not rows:
        raise ValueError(f"{generation}: holds no image {key!r}; {hint(key, table_paths(generation))}")
    rows.sort(key=lambda row: (row["reason"] != KEPT, -(row[rule["score"]] or 0.0)))
    lines = [f"{generation.name}: {_rule_words(rule)}"]
    for row in rows:
        lines += [f"{row['reason']}: {row['text']!r}, {_origin(row, rows)}", *(f"    {line}" for line in _why(row, rows, rule))]
    lines += source_lines(key, generation.resolve().parents[1] / NAME, rows[0]["shard"])
    return "\n".join([*lines, *(f"{identity}: {words}" for identity, words in makers_of(rows, manifest.get("makers", {})).items())])


def _rule_words(rule: dict[str, Any]) -> str:
    limits = ", ".join(f"{source} {limit:.4g}" for source, limit in rule["threshold"].items())
    votes = f", by {rule['votes']} of {len(rule['filters'])} filters at least" if len(rule["filters"]) > 1 else ""
    best = f"; of those only the {rule['keep_best']} best of an image" if rule["keep_best"] else ""
    return f"kept is what has {rule['score']} of at least {limits}{votes}{best}"


def _origin(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    if row["source"] not in WRITTEN:
        return row["source"]
    by = f"{row['sampler']}, captioner {row['model']}"
    return f"{row['source']} {row['round']}#{row['candidate']}{made_of(row, rows)} ({by})"


def _why(row: dict[str, Any], rows: list[dict[str, Any]], rule: dict[str, Any]) -> list[str]:
    if row["source"] == "human":
        return ["human texts are kept as they are"]
    judged = [_judgement(row, rule)] + [_judgement({**opinion, "source": row["source"]}, rule) for opinion in row["opinions"] or ()]
    why = {
        "source_off": f"texts of this source take no part: assemble.sources is {rule['sources']}",
        "empty": "its captioner wrote nothing",
        "marks": "it has no letter or digit",
        "refusal": "its captioner says that it can't or won't write",
        "loop": f"it says the same words {rule['max_repeat']} times in a row or more",
        "truncated": "its captioner's limit of tokens cut it off",
        "overused": f"it stands at more than {100 * rule['max_share']:.3g}% of the images",
        "duplicate": f"says the same as {_twin(row, rows)}",
        "outranked": f"the image has {rule['keep_best']} texts with a better score",
        NO_TEXT: "the crawl has no usable text with the picture; a captioner may write some",
    } | {screen: f"the screen {screen} hits it" for screen in SCREENS}
    scored = judged if row["filter"] else ["not scored: dropped before"]
    return [*([why[row["reason"]]] if row["reason"] in why else []), *scored]


def _judgement(judged: dict[str, Any], rule: dict[str, Any]) -> str:
    name, value = rule["score"], judged[rule["score"]]
    limit = rule["thresholds"].get(judged["filter"], rule["threshold"]).get(judged["source"])
    said = (
        "no threshold" if limit is None else f"{'at least' if value >= limit else 'below'} {limit:.4g}" if value is not None else "no score"
    )
    others = ", ".join(f"{n} {judged[n]:.3f}" for n in ("match", "itm", "itc") if n != name and judged[n] is not None)
    shown = f"{value:.3f}" if value is not None else "unknown"
    return f"{name} {shown}, {said} ({others}; filter {rule['filters'].get(judged['filter'], 'unknown')}, {judged['filter']})"


def _twin(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    words = normalised(pa.array([r["text"] for r in rows])).to_pylist()
    own = words[rows.index(row)]
    found = next((r for r, w in zip(rows, words, strict=True) if w == own and r["reason"] in (KEPT, "outranked") and r is not row), None)
    return "a better text of the image" if found is None else f"{found['text']!r} ({_origin(found, rows)})"
