"""Measure a model on the held-out examples of its task, with bootstrap intervals over pictures, whole and by slices."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.capfilt.med import set_threads
from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved
from blip_core.config.tasks import MeasureConfig, TaskConfig
from blip_core.evaluation import bootstrap
from blip_core.files.content import write_json
from blip_core.model.inference import for_inference
from blip_core.tables.captions import write_table
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.network import load_network
from blip_core.tasks.task import Measured, Result, Statistic, Task, ZeroShotTask, counted
from blip_core.weights.load import read_config

log = logging.getLogger(__name__)


def evaluate_task(task: str, base: Path, model: Path, data: Path, out: Path, out_metrics: Path, *, cfg: TaskConfig, seed: int) -> None:
    """`task`: its name, for messages. `model`: what tune_task made of `base`: a tuned network, or the model as it was.

    Measures test, and writes metrics.json and answers.parquet, a row for each example, to `out`. A kind that a pretrained model does
    untuned too is measured on `base` as well: its metrics have zero_shot_ before their names, its rows stand in zero_shot.parquet.
    """
    kind = KINDS[cfg.kind]
    set_threads(cfg.measure.threads)
    examples, aside = kind.read(data, "test", cfg)
    if not examples:
        raise ValueError(f"{data}: no usable example of test; set aside: {counted(aside)}")
    if aside:
        log.warning("%s: %d examples of test set aside: %s", task, len(aside), counted(aside))
    metrics: dict[str, float] = {"examples": len(examples), "set_aside": len(aside)}
    results = _results(kind, model, data, examples, cfg)
    metrics |= summary(kind, results, cfg.measure, seed)
    write_table(pa.Table.from_pylist([_row(r) for r in results]), out / "answers.parquet")
    if isinstance(kind, ZeroShotTask):
        results = _results(kind, base, data, examples, kind.untuned(cfg, read_config(base)))
        metrics |= {f"zero_shot_{name}": value for name, value in summary(kind, results, cfg.measure, seed).items()}
        write_table(pa.Table.from_pylist([_row(r) for r in results]), out / "zero_shot.parquet")
    write_json(metrics, out / "metrics.json")
    write_json(metrics, out_metrics)


def _results(kind: Task[Any], model: Path, data: Path, examples: list[Any], cfg: Any) -> list[Result]:
    network, tokenizer = load_network(model, kind, cfg)
    for_inference(network.to(device()), resolved(cfg.measure.precision))
    batches = Measured(examples, network.cfg.vision.image_size, cfg.measure.batch_size)
    return kind.measure(network, tokenizer, data, batches, cfg)


def summary(kind: Task[Any], results: list[Result], cfg: MeasureConfig, seed: int) -> dict[str, float]:
    """Each metric with the bounds of its interval: m, m_low, m_high; and m[column=value] of each slice with its number of examples."""
    found = _metrics(kind, results, "", cfg, seed)
    for column in cfg.slices:
        for value in sorted({str(r.facts.get(column)) for r in results}):
            part = [r for r in results if str(r.facts.get(column)) == value]
            found |= {f"{metric}[{column}={value}]_examples": len(part) for metric in results[0].values}
            found |= _metrics(kind, part, f"[{column}={value}]", cfg, seed)
    return found


def _metrics(kind: Task[Any], results: list[Result], slice_: str, cfg: MeasureConfig, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in results[0].values:
        found |= _interval(f"{metric}{slice_}", results, metric, cfg, seed)
    for metric, statistic in kind.overall(results).items():
        found |= _resampled(f"{metric}{slice_}", results, statistic, cfg, seed)
    return found


def _interval(name: str, results: list[Result], metric: str, cfg: MeasureConfig, seed: int) -> dict[str, float]:
    """Of one picture alone there is no interval."""
    values = np.array([r.values[metric] for r in results])
    columns = bootstrap.sums_by_image(values, [r.image for r in results])
    if len(columns) < 2:
        return {name: float(values.mean())}
    i = bootstrap.interval(columns, resamples=cfg.bootstrap, confidence=cfg.confidence, seed=seed)
    return {name: i.value, f"{name}_low": i.low, f"{name}_high": i.high}


def _resampled(name: str, results: list[Result], statistic: Statistic, cfg: MeasureConfig, seed: int) -> dict[str, float]:
    """The same of a metric that is no mean."""
    units, place = np.unique([r.image for r in results], return_inverse=True)
    value, rng = statistic(np.ones(len(results), int)), np.random.default_rng(seed)
    if len(units) < 2:
        return {name: value}
    draws = (rng.integers(len(units), size=len(units)) for _ in range(cfg.bootstrap))
    drawn = [statistic(np.bincount(picked, minlength=len(units))[place]) for picked in draws]
    low, high = np.quantile(drawn, [(1 - cfg.confidence) / 2, (1 + cfg.confidence) / 2])
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _row(result: Result) -> dict[str, Any]:
    """Facts as a list of texts: a column of structs would need equal facts in all rows."""
    facts = [f"{name}={value}" for name, value in result.facts.items()]
    return {"id": result.id, "image": result.image, "answer": result.answer, **result.values, "facts": facts}
