"""What the cards of models and of data sets share: front matter, noise, lineage, licence. Markdown, a line each."""

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CardData

from blip_core.selection.judged_noise import bounded_by
from blip_core.tracking.provenance import ancestry, git_state, maker, outdated, read_lock

_NOISE = {
    "noise_web": "web texts that the filter rejected (the paper's noise ratio)",
    "noise_synthetic": "synthetic texts that the filter rejected",
    "noise_fused": "fused texts that the filter rejected",
    "residual_noise_web": "noise left in the kept web texts, estimated from planted controls",
    "residual_noise_web_upper": "its upper confidence bound",
    "judged_noise_web": "noise left in the kept web texts, estimated from people's labels",
    "judged_noise_web_upper": "its upper confidence bound",
    "judged_noise_synthetic": "noise left in the kept synthetic texts, estimated from people's labels",
    "judged_noise_synthetic_upper": "its upper confidence bound",
    "judged_noise_fused": "noise left in the kept fused texts, estimated from people's labels",
    "judged_noise_fused_upper": "its upper confidence bound",
    "coverage": "of the crawl's images that keep a text",
    "distinct_share_synthetic": "different texts among the kept synthetic ones",
    "distinct_share_fused": "different texts among the kept fused ones",
}


def document(data: CardData, lines: list[str]) -> str:
    """A card as it lies on disk: huggingface_hub's front matter, then the text."""
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def licence_fields(licence: str) -> tuple[str, str | None]:
    """`license` and `license_name` of the front matter: an identifier of the hub as it is, any other name as one it does not know."""
    return (licence, None) if re.fullmatch(r"[a-z0-9.-]+", licence) else ("other", licence)


def licence_lines(licence: str, passed_on: str) -> list[str]:
    unstated = f" Nobody has stated one: find out before you pass {passed_on} on." * (licence == "unknown")
    return ["## Licence", "", f"`{licence}`.{unstated}"]


def noise_lines(metrics: Path, rounds: set[str]) -> list[str]:
    """What the gates of these rounds measured, and what their bounds rest on; nothing where there is none."""
    lines, bounds = [], list[str]()
    for path in sorted(metrics.glob("gate-*.json")):
        if path.stem.removeprefix("gate-") in rounds:
            found = json.loads(path.read_text())
            known = {key: says for key, says in _NOISE.items() if isinstance(found.get(key), int | float)}
            lines += [f"| {path.stem} | {says} | {found[key]:.4f} |" for key, says in known.items()]
            bounds += [f"{path.stem} went by {by} for the bound on the kept {source} texts." for source, by in bounded_by(found).items()]
    table = ["## Noise", "", "| measured by | share of | value |", "|---|---|---|", *lines, ""] if lines else []
    return [*table, *bounds, ""] if bounds else table


def project_of(folder: Path) -> tuple[Path, str] | None:
    """The project that a folder lies in, by its dvc.lock, and the folder's path there; None outside of one."""
    inside = folder.resolve()
    root = next((parent for parent in inside.parents if (parent / "dvc.lock").exists()), None)
    return (root, os.path.relpath(inside, root)) if root else None


def lineage_lines(folder: Path, facts: dict[str, Any]) -> list[str]:
    """Where a folder of artifacts comes from, as dvc.lock and git have it, behind `facts`."""
    rows = {name: value for name, value in facts.items() if value}
    stages = ""
    if project := project_of(folder):
        root, path = project
        lock = read_lock(root)
        if made := maker(lock, path):
            state = git_state(root)
            rows |= {"stage": made.stage, "md5 by DVC": made.outs[path]}
            rows |= {f"read `{dep}`": md5 for dep, md5 in made.deps.items() if dep.startswith(("artifacts/", "data"))}
            rows |= {"code": state["git_rev"] + " with changes" * (state["git_dirty"] == "true")} if state["git_rev"] else {}
            stages = f"Stages behind it, first to last: {', '.join(m.stage for m in ancestry(lock, path))}."
            stages += " One of them would run again today, so this is of an earlier run." * (path in outdated(root))
    unknown = [] if stages else ["No dvc.lock names this folder: what made it is not known here."]
    table = [f"| {name} | `{value}` |" for name, value in rows.items()]
    return ["## Lineage", "", "| | |", "|---|---|", *table, "", *([stages] if stages else unknown), ""]
