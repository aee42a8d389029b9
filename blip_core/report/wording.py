"""How the report says numbers: a share in percent, a change of a share in percentage points, what is not known as n/a."""

import re
from typing import Any

MISSING = "n/a"
METRICS = {
    "tr_r1": "text R@1 (ITC)",
    "ir_r1": "image R@1 (ITC)",
    "itm_tr_r1": "text R@1 (ITM)",
    "itm_ir_r1": "image R@1 (ITM)",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
}


TASK_SHARES = {"accuracy", "consistency", "top1", "top5", "mean_class_recall", "map"}  # of tasks


def is_share(metric: str) -> bool:
    """`metric`: of `evaluate`, or of a task, as vqa.accuracy[question_type=count]."""
    name = metric.partition("[")[0].rpartition(".")[2]
    return name in TASK_SHARES or re.fullmatch(r"(zero_shot_)?(itm_)?(tr|ir|v2t|t2v)_r\d+", name) is not None


def metric_value(metric: str, value: float | None) -> str:
    return percent(value) if is_share(metric) else number(value)


def metric_change(metric: str, value: float | None) -> str:
    """A share's change is in percentage points."""
    if value is None:
        return MISSING
    return f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3f}"


def metric_interval(metric: str, metrics: dict[str, Any]) -> str:
    value, low, high = (metric_value(metric, metrics.get(f"{metric}{end}")) for end in ("", "_low", "_high"))
    return f"{value}\n[{low.removesuffix('%')}, {high.removesuffix('%')}]"


def named(words: str) -> str:
    """Words that hold names of metrics, as a stage writes them for a file, with those that the tables have."""
    return re.sub(r"\b\w+\b", lambda found: METRICS.get(found[0], found[0]), words)


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def amount(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def listed(names: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
