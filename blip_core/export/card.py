"""The card of an exported data set: README.md with the front matter that Hugging Face reads, counts, noise, and who wrote what."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from blip_core.export.features import features
from blip_core.export.formats import JPEG_QUALITY, image_folder
from blip_core.metadata.licences import Spellings, names_licence
from blip_core.selection.judged_noise import bounded_by
from blip_core.tables.captions import KEPT

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
_FILES = {"webdataset": "data/{split}-*.tar", "imagefolder": "{folder}/**", "parquet": "data/{split}-*.parquet"}
_HUGGING_FACE = """\
from datasets import load_dataset

parts = load_dataset({folder})
"""
_WEBDATASET = """\
from pathlib import Path

import webdataset

tars = {{split: sorted(map(str, Path({folder}).glob(f"data/{{split}}-*.tar"))) for split in {splits}}}
parts = {{split: webdataset.WebDataset(urls, shardshuffle=False).decode("pil") for split, urls in tars.items()}}
"""
_COCO = """\
from pycocotools.coco import COCO

parts = {{split: COCO({folder} + f"/annotations/captions_{{split}}.json") for split in {splits}}}
"""
_SALESFORCE = """\
import json
from pathlib import Path

parts = {{split: json.loads(Path({folder}, f"annotation/{{split}}.json").read_bytes()) for split in {splits}}}
"""
_WAYS = {
    "webdataset": {"datasets": _HUGGING_FACE, "webdataset": _WEBDATASET},
    "imagefolder": {"datasets": _HUGGING_FACE},
    "parquet": {"datasets": _HUGGING_FACE},
    "coco": {"pycocotools": _COCO},
    "salesforce": {"Python alone": _SALESFORCE},
}
_PATHS = {
    "coco": "`file_name` is a path below `images/`.",
    "salesforce": "`image` is a path below `images/`, the `image_root` of BLIP's public code.",
}


@dataclass
class Totals:
    """What was written."""

    everything: bool
    as_jpeg: bool
    images: int = 0
    by_split: Counter[str] = field(default_factory=Counter)  # images
    kinds: Counter[str] = field(default_factory=Counter)  # images by their kind in the shards
    texts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, source)
    reasons: Counter[str] = field(default_factory=Counter)  # of all the generation's texts, written or not
    rounds: set[str] = field(default_factory=set)
    captioners: set[str] = field(default_factory=set)
    filters: set[str] = field(default_factory=set)
    makers: dict[str, str] = field(default_factory=dict)  # who these are, in words, as far as the generation says
    fields: dict[str, pa.DataType] = field(default_factory=dict)  # that the sources gave
    having: Counter[str] = field(default_factory=Counter)  # images by the fields that they have
    licences: dict[str, Spellings] = field(default_factory=lambda: defaultdict(Spellings))  # by field

    @property
    def encoded_anew(self) -> int:
        return self.images - self.kinds["jpg"] if self.as_jpeg else 0

    def count(self, split: str, rows: list[dict[str, Any]], kind: str, told: dict[str, Any]) -> None:
        """One image with these texts and fields."""
        self.images += 1
        self.by_split[split] += 1
        self.kinds[kind] += 1
        self.texts.update((split, row["source"]) for row in rows)
        self.rounds |= {row["round"] for row in rows if row["round"]}
        self.captioners |= {row["model"] for row in rows if row["model"]}
        self.filters |= {row["filter"] for row in rows if row["filter"]}
        self.having.update(name for name, value in told.items() if value is not None)
        for name in filter(names_licence, told):
            self.licences[name].add(told[name])


def cell(text: str) -> str:
    """Text of a source within a table of Markdown: in one cell, and no markup."""
    return " ".join(re.sub(r"([\\`*<>|\[\]])", r"\\\1", text).split())


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
        *_opening(totals, name, form),
        *_reasons(totals),
        *_noise(totals, metrics),
        *_models(totals),
        *_fields(totals),
        "## Licence",
        "",
        f"`{licence}`." + " Nobody has stated one: find out before you pass the images on." * (licence == "unknown"),
        "Web images and texts belong to their authors.",
        *_licences(totals),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(totals: Totals, form: str, licence: str) -> list[str]:
    lines = ["---", f"license: {json.dumps(licence)}", "task_categories: [image-to-text, text-to-image]"]
    if form in ("webdataset", "imagefolder", "parquet"):
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in sorted(totals.by_split):
            path = _FILES[form].format(split=split, folder=image_folder(split))
            lines += [f"  - split: {split}", f"    path: {json.dumps(path)}"]
    if form == "webdataset":
        kinds = ["jpg"] if totals.as_jpeg else totals.kinds
        lines += ["dataset_info:", "  features:", *(f"  - {json.dumps(feature)}" for feature in features(totals.fields, kinds))]
    return [*lines, "---"]


def _opening(totals: Totals, name: str, form: str) -> list[str]:
    """How to get all parts; every block runs as it stands."""
    lines, values = [], {"folder": json.dumps(f"./{name}", ensure_ascii=False), "splits": json.dumps(sorted(totals.by_split))}
    for library, way in _WAYS[form].items():
        if library == "datasets" and form == "webdataset" and len(totals.kinds) > 1 and not totals.as_jpeg:
            lines += ["Hugging Face's datasets wants images of one kind in tars: `--images jpg` makes them.", ""]
        else:
            lines += [f"With {library}:", "", "```python", *way.format(**values).splitlines(), "```", ""]
    lines += [_PATHS[form], ""] if form in _PATHS else []
    if totals.encoded_anew:
        lines += [f"{totals.encoded_anew:,} of the images were PNG or WebP and are JPEG here, of quality {JPEG_QUALITY}.", ""]
    return ["## Open it", "", "From the folder that this one lies in, all parts at once:", "", *lines]


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
    lines, bounds = [], list[str]()
    for path in sorted(metrics.glob("gate-*.json")):
        if path.stem.removeprefix("gate-") in totals.rounds:
            found = json.loads(path.read_text())
            known = {key: says for key, says in _NOISE.items() if isinstance(found.get(key), int | float)}
            lines += [f"| {path.stem} | {says} | {found[key]:.4f} |" for key, says in known.items()]
            bounds += [f"{path.stem} went by {by} for the bound on the kept {source} texts." for source, by in bounded_by(found).items()]
    table = ["## Noise", "", "| measured by | share of | value |", "|---|---|---|", *lines, ""] if lines else []
    return [*table, *bounds, ""] if bounds else table


def _fields(totals: Totals) -> list[str]:
    """What the sources say of the images beside their texts."""
    rows = [f"| {cell(name)} | `{kind}` | {totals.having[name]:,} |" for name, kind in totals.fields.items()]
    says = "A field whose name the format uses itself has `source_` before it. A field without a value for an image is null there."
    return ["## Fields", "", says, "", "| field | type | images that have it |", "|---|---|---|", *rows, ""] if rows else []


def _licences(totals: Totals) -> list[str]:
    """As the sources write them, each beside what is the same in other letters."""
    lines: list[str] = []
    for name, found in totals.licences.items():
        rows = [f"| {cell(licence)} | {n:,} | {cell(written)} |" for licence, n, written in found.rows()]
        lines += ["", f"By the field `{name}`:", "", "| licence | images | as the sources write it |", "|---|---|---|", *rows]
    return lines


def _models(totals: Totals) -> list[str]:
    made = [("captioner", h) for h in sorted(totals.captioners)] + [("filter", h) for h in sorted(totals.filters)]
    lines = [f"- {role} `{h}`" + (f": {totals.makers[h]}" if h in totals.makers else "") for role, h in made]
    adapted = "; of an adapter, those of its base and of itself" if any("+" in h for _, h in made) else ""
    return ["## Models", "", f"By the hash of their files{adapted}:", "", *lines, ""] if lines else []
