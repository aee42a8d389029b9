"""Metrics of downstream tasks as evaluate_task leaves them, and two models against each other by them.

A file has each metric of test with its interval, and the values of its resamples; below `val` the same of val, where `decide` wants it.
The images of a resample depend on the examples and the seed alone, so the values of two models are paired, whatever the metric is: an
accuracy, or a mAP, which is no mean over examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip_core.evaluation.bootstrap import Paired, paired_by_draws
from blip_core.files.content import read_json
from blip_core.tables.captions import VAL
from blip_core.tables.stopped import require_made

DRAWS, EXAMPLES = "draws", "of"  # keys of a file: values of the resamples by metric, and a hash of the examples


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model: the folder of its evaluation, and that of its metrics, those of tasks among them."""

    evaluation: Path
    measured: Path


def of_task(metric: str) -> bool:
    """Whether the metric is of a task, as vqa.accuracy, and not of `evaluate`."""
    return "." in metric


def metrics_file(folder: Path, task: str) -> Path:
    """Of one model's metrics of a task; `folder` has those of all tasks."""
    return folder / f"task-{task}.json"


def read_metrics(folder: Path, task: str, split: str) -> dict[str, Any]:
    """What was measured of test or val. ValueError says what is missing."""
    path = metrics_file(folder, task)
    require_made(path)
    if not path.exists():
        raise ValueError(f"{path}: missing; the stage evaluate_task of task {task!r} makes it")
    found = read_json(path)
    if split == VAL and VAL not in found:
        raise ValueError(f"{path}: val was not measured; decide.metrics did not name task {task!r} then: run evaluate_task again")
    return found[VAL] if split == VAL else found


def task_metrics(folder: Path) -> dict[str, float]:
    """Of all tasks of a model the metrics of test with their bounds, as vqa.accuracy and vqa.accuracy_low; empty without tasks."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("task-*.json")):
        task = path.stem.removeprefix("task-")
        metrics = read_metrics(folder, task, "test")
        names = [f"{metric}{end}" for metric in metrics[DRAWS] for end in ("", "_low", "_high")]
        found |= {f"{task}.{name}": metrics[name] for name in names if name in metrics}
    return found


def paired_task_tests(challenger: Path, baseline: Path, metrics: Sequence[str], *, split: str, confidence: float) -> dict[str, Paired]:
    """`challenger`, `baseline`: the folders of two models' metrics. ValueError where they are of different examples or lack a metric."""
    return {name: _paired(challenger, baseline, *name.split("."), split=split, confidence=confidence) for name in metrics}


def _paired(challenger: Path, baseline: Path, task: str, metric: str, *, split: str, confidence: float) -> Paired:
    ours, theirs = (_drawn(folder, task, metric, split) for folder in (challenger, baseline))
    if ours[EXAMPLES] != theirs[EXAMPLES] or len(ours[DRAWS][metric]) != len(theirs[DRAWS][metric]):
        files = " and ".join(str(metrics_file(folder, task)) for folder in (challenger, baseline))
        raise ValueError(f"{files} are of different examples or seeds; run evaluate_task of both models again")
    drawn = np.subtract(ours[DRAWS][metric], theirs[DRAWS][metric])
    return paired_by_draws(drawn, ours[metric], theirs[metric], confidence=confidence)


def _drawn(folder: Path, task: str, metric: str, split: str) -> dict[str, Any]:
    """The metrics, with resamples of this one among them."""
    found = read_metrics(folder, task, split)
    if not found[DRAWS].get(metric):
        known = ", ".join(found[DRAWS])
        raise ValueError(f"{metrics_file(folder, task)}: {split} has no resamples of {metric!r}, of two pictures at least; it has {known}")
    return found
