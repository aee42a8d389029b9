"""The card of an exported data set: README.md with the front matter that Hugging Face reads, counts, noise, and who wrote what."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData

from blip_core.export.features import features
from blip_core.export.formats import image_folder
from blip_core.export.opening import opening
from blip_core.export.shared import document, licence_fields, licence_lines, lineage_lines, noise_lines
from blip_core.metadata.licences import Spellings, names_licence
from blip_core.tables.captions import KEPT
from blip_core.tables.manifest import content_hash, read_manifest

_FILES = {"webdataset": "data/{split}-*.tar", "imagefolder": "{folder}/**", "parquet": "data/{split}-*.parquet"}


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


def card(totals: Totals, generation: Path, *, name: str, form: str, licence: str, metrics: Path) -> str:
    lines = [
        f"# {name}",
        "",
        f"{totals.images:,} images with {totals.texts.total():,} texts, made by BLIP's bootstrapping (arXiv 2201.12086):",
        "web texts and texts of a captioner, filtered by an image-text matching model, beside texts by people.",
        "",
        "| part | images | source of the texts | texts |",
        "|---|---|---|---|",
        *(f"| {split} | {totals.by_split[split]:,} | {source} | {n:,} |" for (split, source), n in sorted(totals.texts.items())),
        "",
        *opening(totals, name, form),
        *_reasons(totals),
        *noise_lines(metrics, totals.rounds),
        *_models(totals),
        *_fields(totals),
        *lineage_lines(generation, {"generation": generation.name, "content hash": content_hash(generation), **_rule(generation)}),
        *_limits(totals),
        *licence_lines(licence, "the images"),
        "Web images and texts belong to their authors.",
        *_licences(totals),
    ]
    return document(_front_matter(totals, name, form, licence), lines)


def _front_matter(totals: Totals, name: str, form: str, licence: str) -> DatasetCardData:
    further: dict[str, Any] = {}
    if form in _FILES:
        paths = {split: _FILES[form].format(split=split, folder=image_folder(split)) for split in sorted(totals.by_split)}
        further["configs"] = [{"config_name": "default", "data_files": [{"split": s, "path": path} for s, path in paths.items()]}]
    if form == "webdataset":
        kinds = ["jpg"] if totals.as_jpeg else totals.kinds
        further["dataset_info"] = {"features": features(totals.fields, kinds)}
    identifier, licence_name = licence_fields(licence)
    return DatasetCardData(
        license=identifier,
        license_name=licence_name,
        pretty_name=name,
        size_categories=_size(totals.images),
        task_categories=["image-to-text", "text-to-image"],
        tags=["blip", "image-captioning"],
        **further,
    )


def _size(images: int) -> str:
    """As the hub has them: n<1K, 1K<n<10K, 10K<n<100K, ..."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = max(0, len(str(images)) - 3)
    return f"n<{bounds[0]}" if power == 0 else f"{bounds[power - 1]}<n<{bounds[power]}"


def _rule(generation: Path) -> dict[str, str]:
    """By what score its texts were kept, where the generation says."""
    rule = read_manifest(generation).get("rule") or {}
    least = ", ".join(f"{source} {value:g}" for source, value in sorted(rule.get("threshold", {}).items()))
    return {"kept from": f"{rule['score']}: {least}"} if least else {}


def _limits(totals: Totals) -> list[str]:
    lines = [
        "- A filter judges texts and errs: some of what is kept does not fit its image, some of what fits was dropped.",
        "- Web texts are as their authors wrote them; bias, names and offence in them were not searched for unless a reason above says so.",
    ]
    if any(source in ("synthetic", "fused") for _, source in totals.texts):
        lines.append("- Synthetic texts repeat what their captioner learned: its vocabulary, its blind spots, its errors.")
    return ["## Limits", "", *lines, ""]


def _reasons(totals: Totals) -> list[str]:
    if totals.everything:
        head = "All texts that were considered are here, each with the reason for its fate; train on those that are `kept`."
    else:
        head = "Only the kept texts are here. Of all that were considered:"
    rows = sorted(totals.reasons.items(), key=lambda r: (r[0] != KEPT, -r[1], r[0]))
    table = [f"| {reason or 'undecided'} | {n:,} |" for reason, n in rows]
    return ["## Choice", "", head, "", "| reason | texts |", "|---|---|", *table, ""]


def _fields(totals: Totals) -> list[str]:
    """What the sources say of the images beside their texts."""
    rows = [f"| {cell(name)} | `{kind}` | {totals.having[name]:,} |" for name, kind in totals.fields.items()]
    says = "A field whose name the format uses itself has `source_` before it. Without a value it is null, and in JSON left out."
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
