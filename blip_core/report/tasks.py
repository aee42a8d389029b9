"""The downstream tasks, as a section of the report: what each model of the chain is worth in use."""

import re
from pathlib import Path
from typing import Any

from blip_core.config.params import Params
from blip_core.evaluation.task_metrics import DRAWS, metrics_file, read_metrics
from blip_core.report.page import Section, Table
from blip_core.report.wording import MISSING, metric_interval, metric_value
from blip_core.tables.stopped import stopped

UNTUNED = "zero_shot_"  # before the metrics of a model that was not tuned
Measured = dict[str, dict[str, dict[str, Any]]]  # task to model to metrics


def read_tasks(artifacts: Path, params: Params) -> Measured:
    """What is there; a task that no model was measured on is left out."""
    found: Measured = {}
    for task in params.tasks:
        for model in params.models:
            folder = artifacts / "metrics/models" / model
            path = metrics_file(folder, task)
            if path.exists() and not stopped(path):
                found.setdefault(task, {})[model] = read_metrics(folder, task, "test")
    return found


def tasks_section(found: Measured, params: Params) -> Section:
    """A row for each metric of a task, a column for each model: what a model does untuned stands below what it does tuned. Slices, and
    recalls beyond the first, come behind."""
    models = [model for model in params.models if any(model in by_model for by_model in found.values())]
    rows = [row for task, by_model in found.items() for row in _rows(task, by_model, models, further=False)]
    further = [row for task, by_model in found.items() for row in _rows(task, by_model, models, further=True)]
    parts: list[str | Table] = [Table(["task", "metric", "examples", *models], rows, left=2), _about(found, params)]
    if further:
        parts.append(Table(["task", "metric", "examples", *models], further, left=2, folded="slices, and recalls beyond the first"))
    return Section("Tasks", parts)


def _rows(task: str, by_model: dict[str, dict[str, Any]], models: list[str], *, further: bool) -> list[list[str]]:
    some = next(iter(by_model.values()))
    names = {name for metrics in by_model.values() for name in _values(metrics) if _is_further(name) == further}
    order = list(dict.fromkeys(name for metrics in by_model.values() for name in metrics))
    return [
        [task, name, f"{some.get(f'{name}_examples', some['examples']):,}", *(_cell(f"{task}.{name}", by_model.get(m)) for m in models)]
        for name in sorted(names, key=lambda name: (order.index(name.removeprefix(UNTUNED)), name.startswith(UNTUNED)))
    ]


def _is_further(name: str) -> bool:
    return "[" in name or re.search(r"_r(5|10)$", name) is not None


def _values(metrics: dict[str, Any]) -> list[str]:
    """Names of metrics: those that are resampled, whole and by slices."""
    return [name for name in metrics if name.partition("[")[0] in metrics[DRAWS] and not name.endswith(("_low", "_high", "_examples"))]


def _cell(metric: str, metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return MISSING
    task, _, name = metric.partition(".")
    if f"{name}_low" not in metrics:  # of few pictures
        return metric_value(metric, metrics.get(name))
    return metric_interval(metric, {f"{task}.{k}": v for k, v in metrics.items() if k in (name, f"{name}_low", f"{name}_high")})


def _about(found: Measured, params: Params) -> str:
    kinds = {task: params.tasks[task].kind for task in found}
    told = "; ".join(f"{task} is of kind {kind}" for task, kind in kinds.items() if task != kind)
    aside = {task: max(m["set_aside"] for m in by_model.values()) for task, by_model in found.items()}
    left_out = "".join(f" {n} examples of {task} could not be used." for task, n in aside.items() if n)
    confidence = max(cfg.measure.confidence for cfg in params.tasks.values())
    about = f"Held-out examples, {confidence:.0%} bootstrap intervals over pictures."
    return f"{about}{f' {told[0].upper()}{told[1:]}.' if told else ''}{left_out}"
