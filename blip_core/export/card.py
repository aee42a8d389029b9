"""The card of an exported data set: README.md with the front matter that Hugging Face reads, counts, noise, and who wrote what."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip_core.tables.captions import KEPT

_NOISE = {
    "noise_web": "web texts that the filter rejected (the paper's noise ratio)",
    "noise_synthetic": "synthetic texts that the filter rejected",
    "residual_noise_web": "noise left in the kept web texts, estimated from planted controls",
    "residual_noise_web_upper": "its upper confidence bound",
    "coverage": "of the crawl's images that keep a text",
    "distinct_share_synthetic": "different texts among the kept synthetic ones",
}
_FILES = {
    "webdataset": "{split}-*.tar",
    "imagefolder": "{split}/**",
    "parquet": "data/{split}-*.parquet",
    "coco": "annotations/captions_{split}.json",
    "salesforce": "annotation/{split}.json",
}


@dataclass
class Totals:
    """What was written."""

    everything: bool
    images: int = 0
    by_split: Counter[str] = field(default_factory=Counter)  # images
    texts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, source)
    reasons: Counter[str] = field(default_factory=Counter)  # of all the generation's texts, written or not
    rounds: set[str] = field(default_factory=set)
    captioners: set[str] = field(default_factory=set)
    filters: set[str] = field(default_factory=set)

    def count(self, split: str, rows: list[dict[str, Any]]) -> None:
        """One image with these texts."""
        self.images += 1
        self.by_split[split] += 1
        self.texts.update((split, row["source"]) for row in rows)
        self.rounds |= {row["round"] for row in rows if row["round"]}
        self.captioners |= {row["model"] for row in rows if row["model"]}
        self.filters |= {row["filter"] for row in rows if row["filter"]}


def card(totals: Totals, *, name: str, form: str, licence: str, metrics: Path) -> str:
    lines = [
        *_front_matter(totals, form, licence),
        f"# {name}",
        "",
        f"{totals.images:,} images with {totals.texts.total():,} texts, made by BLIP's bootstrapping (arXiv 2201.12086):",
        "web texts and texts of a captioner, filtered by an image-text matching model, beside texts by people.",
        "",
        "| part | images | source of the texts | texts |",
        "|---|---|---|---|",
        *(f"| {split} | {totals.by_split[split]:,} | {source} | {n:,} |" for (split, source), n in sorted(totals.texts.items())),
        "",
        *_reasons(totals),
        *_noise(totals, metrics),
        *_models(totals),
        "## Licence",
        "",
        f"`{licence}`." + " Nobody has stated one: find out before you pass the images on." * (licence == "unknown"),
        "Web images and texts belong to their authors.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(totals: Totals, form: str, licence: str) -> list[str]:
    lines = ["---", f"license: {json.dumps(licence)}", "task_categories: [image-to-text, text-to-image]"]
    if form in ("webdataset", "imagefolder", "parquet"):
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in sorted(totals.by_split):
            lines += [f"  - split: {split}", f"    path: {json.dumps(_FILES[form].format(split=split))}"]
    return [*lines, "---"]


def _reasons(totals: Totals) -> list[str]:
    if totals.everything:
        head = "All texts that were considered are here, each with the reason for its fate; train on those that are `kept`."
    else:
        head = "Only the kept texts are here. Of all that were considered:"
    rows = sorted(totals.reasons.items(), key=lambda r: (r[0] != KEPT, -r[1], r[0]))
    table = [f"| {reason or 'undecided'} | {n:,} |" for reason, n in rows]
    return ["## Choice", "", head, "", "| reason | texts |", "|---|---|", *table, ""]


def _noise(totals: Totals, metrics: Path) -> list[str]:
    """What the gates of the rounds that wrote these texts measured; nothing where there is none."""
    lines = []
    for path in sorted(metrics.glob("gate-*.json")):
        if path.stem.removeprefix("gate-") in totals.rounds:
            found = json.loads(path.read_text())
            known = {key: says for key, says in _NOISE.items() if isinstance(found.get(key), int | float)}
            lines += [f"| {path.stem} | {says} | {found[key]:.4f} |" for key, says in known.items()]
    return ["## Noise", "", "| measured by | share of | value |", "|---|---|---|", *lines, ""] if lines else []


def _models(totals: Totals) -> list[str]:
    lines = [f"- captioner `{h}`" for h in sorted(totals.captioners)] + [f"- filter `{h}`" for h in sorted(totals.filters)]
    return ["## Models", "", "By the hash of their files:", "", *lines, ""] if lines else []
