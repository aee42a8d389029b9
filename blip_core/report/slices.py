"""What was told by a column of the data, as a section of the report where there is any: of models, filters and gates."""

import re
from collections.abc import Mapping
from typing import Any

from blip_core.report.digest import SOURCES
from blip_core.report.findings import Findings
from blip_core.report.models import SHOWN
from blip_core.report.page import Section, Table
from blip_core.report.wording import METRICS, amount, metric_interval, metric_value, number, percent

FEW = "too few"


def slices_sections(found: Findings) -> list[Section]:
    tables = [_models(found), _filters(found), _gates(found)]
    parts: list[str | Table] = [table for table in tables if table.rows]
    if not parts:
        return []
    about = (
        "images: of the held-out test set with this value; a text or image is still sought among all. texts: of the crawl, that the filter "
        "scored. A slice of few has no interval or bound, and says so; at the gate it counts at its worst in the whole."
    )
    return [Section("By slices", [*parts, about])]


def _models(found: Findings) -> Table:
    rows = []
    for model, metrics in found.models.items():
        for name in _slices(metrics, "images"):
            own = {f"{m}{end}": metrics.get(f"{m}{name}{end}") for m in SHOWN for end in ("", "_low", "_high")}
            rows.append([_told(name), model, amount(metrics[f"images{name}"]), *(_interval(metric, own) for metric in SHOWN)])
    return Table(["slice", "model", "images", *(METRICS[m].replace(" (", "\n(") for m in SHOWN)], sorted(rows, key=_by_slice), left=2)


def _filters(found: Findings) -> Table:
    rows = []
    for r, several in found.filters.items():
        for metrics, who in ((f["metrics"], f"{r}: {f['name']}") for f in several):
            for name in _slices(metrics, "pictures"):
                told = [metrics.get(f"{metric}{name}{end}") for metric in ("auc", "ece") for end in ("", "_low", "_high")]
                shown = [FEW] * 2 if told[0] is None else [f"{number(v)}\n[{number(a)}, {number(b)}]" for v, a, b in (told[:3], told[3:])]
                rows.append([_told(name), who, amount(metrics[f"pictures{name}"]), *shown])
    return Table(["slice", "filter", "val\npictures", "AUC", "ECE"], sorted(rows, key=_by_slice), left=2)


def _gates(found: Findings) -> Table:
    rows = []
    for r, facts in found.gates.items():
        for source in SOURCES:
            for name in _slices(facts, f"texts_{source}"):
                left = f"residual_noise_{source}"
                measured = [facts.get(f"{metric}{name}") for metric in (f"noise_{source}", left, f"{left}_upper")]
                rows.append([_told(name), r, source, amount(facts[f"texts_{source}{name}"]), *map(percent, measured)])
    header = ["slice", "round", "source", "texts", "noise\nratio", "noise left:\nestimate", "its upper\nbound"]
    return Table(header, sorted(rows, key=_by_slice), left=3)


def _slices(metrics: Mapping[str, Any], count: str) -> list[str]:
    """`[column=value]` of those with such a count."""
    return [key.removeprefix(count) for key in metrics if re.match(rf"{count}\[", key)]


def _told(name: str) -> str:
    return name[1:-1].replace("=", "\n= ", 1)


def _by_slice(row: list[str]) -> str:
    """The rows of a slice stand together, each as it came."""
    return row[0]


def _interval(metric: str, own: Mapping[str, float | None]) -> str:
    if own[f"{metric}_low"] is None:
        return f"{metric_value(metric, own[metric])}\n{FEW}"
    return metric_interval(metric, dict(own))
