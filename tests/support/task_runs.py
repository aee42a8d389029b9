"""A task's stages one after the other, as the chain runs them."""

import json
from pathlib import Path

from blip_core.config.tasks import TaskConfig
from blip_core.stages.evaluate_task import evaluate_task
from blip_core.stages.tune_task import tune_task
from tests.support.small import small_params


def tuned_and_measured(task: str, base: Path, data: Path, out: Path, cfg: TaskConfig) -> dict:
    """The metrics. The model is then in `out/model`."""
    paths = dict(out=out / "model", out_history=out / "history.csv", out_metrics=out / "tuned.json", work=out / "work")
    tune_task(task, base, data, **paths, cfg=cfg, seed=0)
    evaluate_task(task, base, out / "model", data, out / "found", out / "metrics.json", cfg=cfg, params=small_params(), seed=0)
    return json.loads((out / "metrics.json").read_text())
