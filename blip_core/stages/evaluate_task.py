"""Measure a tuned model on the held-out examples of its task, with bootstrap intervals over pictures, whole and by slices."""

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
from blip_core.stages.tune_task import counted
from blip_core.tables.captions import write_table
from blip_core.tasks.batches import measured
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.network import load_network
from blip_core.tasks.task import Result

log = logging.getLogger(__name__)


def evaluate_task(task: str, model: Path, data: Path, out: Path, out_metrics: Path, *, cfg: TaskConfig, seed: int) -> None:
    """`task`: its name, for messages. `model`: what tune_task made.

    Measures test, and writes metrics.json and answers.parquet, a row for each example, to `out`.
    """
    kind = KINDS[cfg.kind]
    set_threads(cfg.measure.threads)
    network, tokenizer = load_network(model, kind, cfg)
    for_inference(network.to(device()), resolved(cfg.measure.precision))
    examples, aside = kind.read(data, "test", cfg)
    if not examples:
        raise ValueError(f"{data}: no usable example of test; set aside: {counted(aside)}")
    if aside:
        log.warning("%s: %d examples of test set aside: %s", task, len(aside), counted(aside))
    batches = measured(examples, image_size=network.cfg.vision.image_size, batch_size=cfg.measure.batch_size)
    results = kind.measure(network, tokenizer, data, batches, cfg)
    metrics = {"examples": len(results), "set_aside": len(aside)} | summary(results, cfg.measure, seed)
    write_table(pa.Table.from_pylist([_row(r) for r in results]), out / "answers.parquet")
    write_json(metrics, out / "metrics.json")
    write_json(metrics, out_metrics)


def summary(results: list[Result], cfg: MeasureConfig, seed: int) -> dict[str, float]:
    """Each metric with the bounds of its interval: m, m_low, m_high; and m[column=value] of each slice with its number of examples."""
    found: dict[str, float] = {}
    for metric in results[0].values:
        found |= _interval(metric, results, metric, cfg, seed)
        for column in cfg.slices:
            for value in sorted({str(r.facts.get(column)) for r in results}):
                part = [r for r in results if str(r.facts.get(column)) == value]
                name = f"{metric}[{column}={value}]"
                found[f"{name}_examples"] = len(part)
                found |= _interval(name, part, metric, cfg, seed)
    return found


def _interval(name: str, results: list[Result], metric: str, cfg: MeasureConfig, seed: int) -> dict[str, float]:
    """Of one picture alone there is no interval."""
    values = np.array([r.values[metric] for r in results])
    columns = bootstrap.sums_by_image(values, [r.image for r in results])
    if len(columns) < 2:
        return {name: float(values.mean())}
    i = bootstrap.interval(columns, resamples=cfg.bootstrap, confidence=cfg.confidence, seed=seed)
    return {name: i.value, f"{name}_low": i.low, f"{name}_high": i.high}


def _row(result: Result) -> dict[str, Any]:
    """Facts as a list of texts: a column of structs would need equal facts in all rows."""
    facts = [f"{name}={value}" for name, value in result.facts.items()]
    return {"id": result.id, "image": result.image, "answer": result.answer, **result.values, "facts": facts}
