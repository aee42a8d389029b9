"""The rounds, as a section of the report: what each brought on val, whether another followed, and what was not run."""

from blip_core.report.findings import Findings
from blip_core.report.page import Section, Table
from blip_core.report.wording import METRICS, MISSING, listed, metric_change, named


def rounds_section(found: Findings) -> Section:
    """What each round brought on val, and whether another followed."""
    cfg = found.params.decide
    header = ["round", "from", "makes", "tuned\nfrom", *(METRICS.get(m, m).replace(" (", "\n(") for m in cfg.metrics), "then"]
    rows = [
        [r, one.base, one.next, one.model, *(_gain(found, r, metric) for metric in cfg.metrics), _then(found, r)]
        for r, one in found.params.rounds.items()
    ]
    about = (
        f"Paired gain of the model on what the round makes over that on what it started from, on the held-out val images, with its "
        f"{cfg.confidence:.0%} interval. Rounds go on when a gain lies beyond its interval and no loss does; test is not looked at for it."
    )
    words = [f"After {r}: {named(decision['outcome'])}, so {_then_words(found, r)}." for r, decision in found.decisions.items()]
    words += [f"{name} was not run: {named(reason)}." for name, reason in found.not_run.items() if name in found.params.rounds]
    if models := [name for name in found.not_run if name in found.params.models]:
        words.append(f"Not trained because of it: {listed(models)}.")
    return Section("Rounds", [Table(header, rows, left=4), "\n".join(words), about], in_text=2)


def _gain(found: Findings, r: str, metric: str) -> str:
    test = found.decisions.get(r, {"metrics": {}})["metrics"].get(metric)
    if test is None:
        return MISSING
    difference, low, high = (metric_change(metric, test[k]) for k in ("difference", "low", "high"))
    return f"{difference}\n[{low}, {high}]"


def _then(found: Findings, r: str) -> str:
    if r not in found.decisions:
        return "not run" if r in found.not_run else "not yet"
    return "on" if found.decisions[r]["go_on"] else "stop"


def _then_words(found: Findings, r: str) -> str:
    """A round that follows starts from what this one makes."""
    follows = [name for name, one in found.params.rounds.items() if one.base == found.params.rounds[r].next]
    if found.decisions[r]["go_on"]:
        return f"{listed(follows)} followed" if follows else "another round may bring more"
    return f"{listed(follows)} did not follow" if follows else "another round is not worth its cost"
