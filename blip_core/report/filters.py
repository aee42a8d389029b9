"""The filters, as a section of the report: how well each tells true from false, and what a threshold keeps and loses."""

from typing import Any

from blip_core.report import figures
from blip_core.report.digest import SOURCES
from blip_core.report.findings import Findings
from blip_core.report.page import Picture, Section, Table
from blip_core.report.wording import listed, number, percent

FILTER = {
    "auc": "AUC",
    "auc_itm": "AUC of\nITM alone",
    "auc_itc": "AUC of\nITC alone",
    "ece": "ECE",
    "precision": "precision",
    "recall": "recall",
}
THRESHOLDS = tuple(t / 10 for t in range(1, 10))


def filter_section(found: Findings) -> Section:
    filters = [(r, f) for r, several in found.filters.items() for f in several]
    rows = [[r, f["name"], *(_with_bounds(f["metrics"], key) for key in FILTER)] for r, f in filters]
    about = (
        "On held-out pairs that it was not tuned on; true and false pairs weigh the same. AUC: how often a true pair scores above a false "
        "one. Precision (kept pairs that are true) and recall (true pairs that are kept) at P(match), the calibrated probability that a "
        f"text fits, of 0.5. ECE: how far P(match) is off on average. {found.params.calibrate.confidence:.0%} bootstrap intervals."
    )
    curves = {f"{r}: {f['name']}": (f["curve"]["precision"], f["curve"]["recall"]) for r, f in filters}
    png = figures.precision_recall(curves, {f"{r}: {f['name']}": (f["metrics"]["precision"], f["metrics"]["recall"]) for r, f in filters})
    picture = Picture("filter", png, "Precision and recall of the filter on held-out pairs")
    people = [
        f"{r}: people and {f['name']} say the same of {f['metrics']['labels_alike']:.0%} of the texts that people judged, at 0.5."
        for r, f in filters
        if "labels_alike" in f["metrics"]
    ]
    facts: list[str | Table] = [Table(["round", "filter", *FILTER.values()], rows, left=2), "\n".join([about, *people])]
    return Section("2. The filter", [*facts, *_thresholds(found)], [picture])


def _with_bounds(metrics: dict[str, Any], key: str) -> str:
    value, low, high = (metrics.get(f"{key}{end}") for end in ("", "_low", "_high"))
    return number(value) if low is None else f"{number(value)} [{number(low)}, {number(high)}]"


def _thresholds(found: Findings) -> list[str | Table]:
    """What a threshold on P(match) would keep and lose, by the first filter of each round, and the one in use."""
    sources = [s for s in SOURCES if any(s in digest.sources for digest in found.rounds.values())]
    header = ["round", "P(match)\nfrom", "true pairs\nkept", "false pairs\nkept", *(f"{s}\nkept" for s in sources)]
    rows = [_threshold_row(r, found, threshold, sources) for r in found.rounds for threshold in THRESHOLDS]
    about = "Pairs are held-out ones of known truth; texts are the candidates of the crawl, whatever else decided about them. What is "
    about += "not kept is lost: of the true pairs that is the price."
    return [Table(header, rows), "\n".join([about, *(f"In use in {r}: {_in_use(r, found)}." for r in found.rounds)])]


def _in_use(r: str, found: Findings) -> str:
    """The rule in words; a threshold that is calibrated as the number that it is in this round."""
    cfg, calibrated = found.params.assemble, found.filters[r][0]["threshold"]
    limits = [f"{calibrated if limit == 'calibrated' else limit:.3g} for {source} texts" for source, limit in cfg.threshold.items()]
    score = {"match": "P(match)", "itm": "the raw ITM probability", "itc": "the ITC cosine"}[cfg.score]
    best = f", and of these the {cfg.keep_best} best of an image" if cfg.keep_best else ""
    votes = f" by {cfg.votes} of {len(found.filters[r])} filters at least" if len(found.filters[r]) > 1 else ""
    return f"{score} from {listed(limits)}{votes}{best}"


def _threshold_row(r: str, found: Findings, threshold: float, sources: list[str]) -> list[str]:
    first = found.filters[r][0]
    at = sum(t < threshold for t in first["curve"]["threshold"])
    true = false = 0.0
    if at < len(first["curve"]["threshold"]):
        true, precision = (first["curve"][name][at] for name in ("recall", "precision"))
        false = true * (1 / precision - 1) if precision else 0.0  # true and false pairs weigh the same in the curve
    kept = [found.rounds[r].share_from(source, threshold) for source in sources]
    return [r, f"{threshold:.1f}", *map(percent, [true, false, *kept])]
