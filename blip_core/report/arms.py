"""What the filter alone would have made, beside the models of the chain: rows of an ablation of the same world, seed and sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_core.config.params import Params
from blip_core.files.content import read_json
from blip_core.report.wording import METRICS, MISSING, metric_change, metric_interval, percent

ALONE, WHOLE = "F", "CF"  # of ablations.yaml: the filter without new captions, and the chain as it is


@dataclass(frozen=True)
class Arm:
    name: str
    metrics: dict[str, Any]  # m, m_low, m_high of those that the ablation measures
    true_captions: float | None
    against: dict[str, Any]  # of ALONE: paired differences to WHOLE by metric
    commit: str
    seed: int


def read_arms(path: Path, params: Params, challenger: dict[str, Any]) -> list[Arm]:
    """ALONE, and WHOLE too where it came out otherwise than the challenger, as by an older commit. None where no ablation of this seed and
    these sizes is there. The caller knows that the data is the sample world's: an ablation of other data is not told beside it."""
    results = read_json(path) if path.exists() else {}
    rows = results.get("seeds", {}).get(str(params.seed), {}).get("rows", {})
    if not {ALONE, WHOLE} <= rows.keys() or not _same_world(results["facts"], params):
        return []
    arms = [_arm(name, rows[name], results["seeds"][str(params.seed)]["commit"], params.seed) for name in (ALONE, WHOLE)]
    same = all(challenger.get(metric) == value for metric, value in arms[1].metrics.items())
    return arms[:1] if same else arms


def _same_world(facts: dict[str, Any], params: Params) -> bool:
    """An ablation draws its sample by the seed of all else."""
    if "data" in facts:
        return False
    optim = params.pretrain.optim
    here = {"sample": params.sample.model_dump(exclude={"seed"}), "steps": optim.steps, "batch_size": optim.batch_size}
    here |= {"human_share": params.pretrain.human_share, "synthetic_share": params.pretrain.synthetic_share}
    return params.sample.seed == params.seed and all(facts.get(name) == value for name, value in here.items())


def _arm(name: str, row: dict[str, Any], commit: str, seed: int) -> Arm:
    ends = {"": "value", "_low": "low", "_high": "high"}
    metrics = {f"{metric}{end}": values[key] for metric, values in row["metrics"].items() for end, key in ends.items()}
    return Arm(name, metrics, row["true_captions"], row["against"].get(WHOLE, {}), commit, seed)


def arm_row(arm: Arm, metrics: tuple[str, ...]) -> list[str]:
    """In the table of models."""
    values = [metric_interval(m, arm.metrics) if m in arm.metrics else MISSING for m in metrics]
    return [f"{arm.name}{' alone' if arm.name == ALONE else ''}\n(ablation)", *values, percent(arm.true_captions)]


def arm_words(arms: list[Arm]) -> list[str]:
    if not arms:
        return []
    alone = arms[0]
    told = [
        f"{METRICS[metric]} {difference} [{low}, {high}]"
        for metric, test in alone.against.items()
        for difference, low, high in [[metric_change(metric, test[k]) for k in ("difference", "low", "high")]]
    ]
    about = f"{ALONE} alone: the filter without new captions, by `blip ablate` at seed {alone.seed} (commit {alone.commit[:10]})."
    return [about, f"{ALONE} alone against {WHOLE}, captioner and filter, as they were then: {', '.join(told)}."]
