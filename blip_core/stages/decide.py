"""Shall another round follow? What a round brought, by paired bootstrap tests on the held-out val images; test is not looked at."""

import logging
from pathlib import Path

from blip_core.config.evaluation import CAPTION_METRICS, DecideConfig
from blip_core.evaluation.bootstrap import Paired
from blip_core.evaluation.task_metrics import Evidence
from blip_core.files.content import write_json
from blip_core.stages.compare import facts_of, paired_tests
from blip_core.tables.captions import VAL

logger = logging.getLogger(__name__)


def decide(
    evaluation: Path, base: Path, measured: Path, base_measured: Path, out: Path, out_metrics: Path, *, cfg: DecideConfig, seed: int
) -> None:
    """`evaluation` is of the model that learned from the generation that the round made, `base` of the one that learned from the
    generation it began with; `measured` and `base_measured` have their metrics, those of tasks among them.

    Rounds go on when a gain lies beyond its interval in one of the metrics at least, and a loss in none. A gain in captions alone counts
    for nothing where the model has collapsed: one sentence for all images can raise CIDEr. `out` holds the answer alone,
    so that other numbers with the same answer make no later round out of date; the numbers are in `out_metrics`.
    """
    bootstrap, confidence = cfg.bootstrap, cfg.confidence
    ours, theirs = Evidence(evaluation, measured), Evidence(base, base_measured)
    tests = paired_tests(ours, theirs, list(cfg.metrics), split=VAL, bootstrap=bootstrap, confidence=confidence, seed=seed)
    gains, losses = [m for m, t in tests.items() if t.low > 0], [m for m, t in tests.items() if t.high < 0]
    alarms = facts_of(evaluation / VAL, bootstrap=bootstrap, confidence=confidence, seed=seed)["alarms"]
    collapsed = list(alarms.values()) if gains and set(gains) <= set(CAPTION_METRICS) else []
    go_on = bool(gains) and not losses and not collapsed
    outcome = _outcome(evaluation.name, base.name, gains, losses, collapsed)
    reason = f"{outcome}: {_numbers(tests)} ({100 * cfg.confidence:g}% intervals)"
    write_json({"go_on": go_on, "outcome": outcome, "alarms": alarms, "metrics": {m: vars(t) for m, t in tests.items()}}, out_metrics)
    write_json({"go_on": True} if go_on else {"go_on": False, "stopped": reason}, out)
    logger.info("%s", reason if go_on else f"no further round: {reason}")


def _outcome(model: str, base: str, gains: list[str], losses: list[str], collapsed: list[str]) -> str:
    if losses:
        return f"on val {model} loses against {base} in {', '.join(losses)} beyond the interval"
    if gains:
        but = f", which does not count: {'; '.join(collapsed)}" if collapsed else ""
        return f"on val {model} gains over {base} in {', '.join(gains)} beyond the interval{but}"
    return f"on val no gain of {model} over {base} is beyond its interval"


def _numbers(tests: dict[str, Paired]) -> str:
    return ", ".join(f"{m} {t.difference:+.4f} [{t.low:+.4f}, {t.high:+.4f}]" for m, t in tests.items())
