"""Measure a model on the held-out examples of its task, with bootstrap intervals over pictures, whole and by slices."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.capfilt.med import set_threads
from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved
from blip_core.config.params import Params
from blip_core.config.tasks import MeasureConfig, TaskConfig
from blip_core.evaluation.task_metrics import DRAWS, EXAMPLES
from blip_core.files.content import write_json
from blip_core.model.inference import for_inference
from blip_core.tables.captions import VAL, write_table
from blip_core.tables.slices import FEWEST, slices
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.network import load_network
from blip_core.tasks.task import Measured, Result, SetAside, Statistic, Task, ZeroShotTask, counted, require_slices
from blip_core.weights.load import read_config

Draws = dict[str, tuple[float, np.ndarray]]  # metric to its value and that of each resample

log = logging.getLogger(__name__)


def evaluate_task(
    task: str, base: Path, model: Path, data: Path, out: Path, out_metrics: Path, *, cfg: TaskConfig, params: Params, seed: int
) -> None:
    """`task`: its name. `model`: what tune_task made of `base`: a tuned network, or the model as it was.

    Measures test, and val too where `decide` names a metric of the task. Writes metrics.json and answers.parquet, a row for each example
    of test, to `out`. A kind that a pretrained model does untuned too is measured on `base` as well: its metrics have zero_shot_ before
    their names, its rows stand in zero_shot.parquet. `out_metrics` has the values of the resamples besides
    (blip_core/evaluation/task_metrics.py). Of several processes the first one measures.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    kind = KINDS[cfg.kind]
    set_threads(cfg.measure.threads)
    found = {}
    for split in ["test", *([VAL] if any(metric.startswith(f"{task}.") for metric in params.decide.metrics) else [])]:
        examples, aside = _examples(task, split, kind, data, cfg)
        metrics: dict[str, Any] = {"examples": len(examples), "set_aside": len(aside)}
        drawn: dict[str, list[float]] = {}
        for prefix, name, folder, settings in _subjects(kind, base, model, cfg):
            results = _results(kind, folder, data, examples, settings)
            draws = resampled(kind, results, cfg.measure, seed)
            metrics |= {f"{prefix}{key}": value for key, value in summary(kind, results, draws, cfg.measure, seed).items()}
            drawn |= {f"{prefix}{key}": values.tolist() for key, (_, values) in draws.items()}
            if split == "test":
                write_table(pa.Table.from_pylist([_row(r) for r in results]), out / f"{name}.parquet")
        if split == "test":
            write_json(metrics, out / "metrics.json")
        found[split] = metrics | {EXAMPLES: _identity(results), DRAWS: drawn}
    write_json(found.pop("test") | found, out_metrics)


def _examples(task: str, split: str, kind: Task[Any], data: Path, cfg: TaskConfig) -> tuple[list[Any], list[SetAside]]:
    examples, aside = kind.read(data, split, cfg)
    if not examples:
        raise ValueError(f"{data}: no usable example of {split}; set aside: {counted(aside)}")
    require_slices(examples, cfg.measure.slices)
    if aside:
        log.warning("%s: %d examples of %s set aside: %s", task, len(aside), split, counted(aside))
    return examples, aside


def _subjects(kind: Task[Any], base: Path, model: Path, cfg: TaskConfig) -> Iterator[tuple[str, str, Path, Any]]:
    """What is measured: prefix of its metrics, name of its table, folder, settings."""
    yield "", "answers", model, cfg
    if isinstance(kind, ZeroShotTask):
        yield "zero_shot_", "zero_shot", base, kind.untuned(cfg, read_config(base))


def _results(kind: Task[Any], model: Path, data: Path, examples: list[Any], cfg: Any) -> list[Result]:
    network, tokenizer = load_network(model, kind, cfg)
    for_inference(network.to(device()), resolved(cfg.measure.precision))
    batches = Measured(examples, network.cfg.vision.image_size, cfg.measure.batch_size)
    return kind.measure(network, tokenizer, data, batches, cfg)


def summary(kind: Task[Any], results: list[Result], draws: Draws, cfg: MeasureConfig, seed: int) -> dict[str, float]:
    """Each metric with the bounds of its interval: m, m_low, m_high; and m[column=value] of each slice with its number of examples."""
    found = _intervals(results, draws, "", cfg)
    for name, places in slices({column: [r.facts.get(column) for r in results] for column in cfg.slices}):
        part = [results[i] for i in places]
        own = resampled(kind, part, cfg, seed)
        found |= {f"{metric}{name}_examples": len(part) for metric in own} | _intervals(part, own, name, cfg)
    return found


def _intervals(results: list[Result], draws: Draws, slice_: str, cfg: MeasureConfig) -> dict[str, float]:
    """Of one picture alone, or a slice of few, without intervals."""
    images, found = len({r.image for r in results}), {}
    few = images < (FEWEST if slice_ else 2)
    if few:
        log.warning("%s: %d pictures are too few for an interval", slice_ or "test", images)
    for metric, (value, drawn) in draws.items():
        found[f"{metric}{slice_}"] = value
        if not few:
            low, high = np.quantile(drawn, [(1 - cfg.confidence) / 2, (1 + cfg.confidence) / 2])
            found |= {f"{metric}{slice_}_low": float(low), f"{metric}{slice_}_high": float(high)}
    return found


def resampled(kind: Task[Any], results: list[Result], cfg: MeasureConfig, seed: int) -> Draws:
    """Which pictures a resample has is told by the results' pictures and the seed alone, so the draws of two models are paired."""
    units, place = np.unique([r.image for r in results], return_inverse=True)
    rng, statistics = np.random.default_rng(seed), _statistics(kind, results)
    drawn: dict[str, list[float]] = {metric: [] for metric in statistics}
    for _ in range(cfg.bootstrap if len(units) > 1 else 0):
        counts = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units))[place]
        for metric, statistic in statistics.items():
            drawn[metric].append(statistic(counts))
    once = np.ones(len(results), int)
    return {metric: (statistic(once), np.array(drawn[metric])) for metric, statistic in statistics.items()}


def _statistics(kind: Task[Any], results: list[Result]) -> dict[str, Statistic]:
    return {metric: _mean([r.values[metric] for r in results]) for metric in results[0].values} | kind.overall(results)


def _mean(values: list[float]) -> Statistic:
    column = np.array(values)
    return lambda counts: float(counts @ column / counts.sum())


def _identity(results: list[Result]) -> str:
    """Of the examples, in their order."""
    return hashlib.sha256("\n".join(f"{r.id} {r.image}" for r in results).encode()).hexdigest()[:16]


def _row(result: Result) -> dict[str, Any]:
    """Facts as a list of texts: a column of structs would need equal facts in all rows."""
    facts = [f"{name}={value}" for name, value in result.facts.items()]
    return {"id": result.id, "image": result.image, "answer": result.answer, **result.values, "facts": facts}
