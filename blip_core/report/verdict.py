"""Did it help? The paired tests as a section of the report, and what became of the model."""

from typing import Any

from blip_core.report.findings import Findings
from blip_core.report.page import Section, Table
from blip_core.report.wording import METRICS, MISSING, listed, metric_change, metric_value, named


def verdict_section(found: Findings) -> Section:
    comparison, cfg = found.comparison, found.params.compare
    header = [
        "against",
        "metric",
        "asked of it",
        comparison["challenger"],
        "baseline",
        "chance",
        "change",
        f"{cfg.confidence:.0%} interval",
        "p",
        "passed",
    ]
    rows = [
        [baseline, METRICS.get(metric, metric), str(v["role"]).replace("_", " "), *_compared(metric, v), "yes" if v["passed"] else "NO"]
        for baseline, metrics in comparison["baselines"].items()
        for metric, v in sorted(metrics.items(), key=lambda item: [*METRICS, item[0]].index(item[0]))
    ]
    reasons = [f"- {named(reason)}" for reason in comparison["reasons"]]
    words = "\n".join([verdict_words(found), *instead_words(found), *reasons])
    further = [reason for reason in found.registration["reasons"] if reason not in comparison["reasons"]]
    registration = "\n".join([registration_words(found.registration), *(f"- {named(reason)}" for reason in further)])
    return Section("Did it help?", [Table(header, rows, left=3), words, registration], in_text=1)


def _compared(metric: str, values: dict[str, Any]) -> list[str]:
    change = [metric_change(metric, values[k]) for k in ("difference", "low", "high")]
    p = values.get("p")
    shown_p = MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
    return [
        metric_value(metric, values["challenger"]),
        metric_value(metric, values["baseline"]),
        metric_value(metric, values["chance"]),
        change[0],
        f"[{change[1]}, {change[2]}]",
        shown_p,
    ]


def verdict_words(found: Findings) -> str:
    challenger, baselines = found.comparison["challenger"], listed(list(found.comparison["baselines"])) or "any baseline"
    if found.comparison["better"]:
        return f"Bootstrapping helped: {challenger} is better than {baselines}."
    return f"Bootstrapping is NOT shown to have helped: {challenger} does not pass every test against {baselines}."


def instead_words(found: Findings) -> list[str]:
    """Where the rounds stopped before the model that should have been compared."""
    why = found.comparison["instead_because"]
    return [f"{found.comparison['challenger']} is the challenger: {why}."] if why else []


def registration_words(registration: dict[str, Any]) -> str:
    name, champion = registration["name"], registration["champion_version"]
    if registration["promoted"]:
        standing = "it is the champion now"
    elif champion is None:
        standing = "not promoted, and there is no champion"
    else:
        standing = f"not promoted, the champion stays version {champion}"
    return f"Registered as version {registration['version']} of {name}: {standing}."
