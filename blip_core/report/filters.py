"""The filters, as a section of the report: how well each tells true from false, and what a threshold keeps and loses."""

from typing import Any

from blip_core.report import figures
from blip_core.report.digest import SOURCES
from blip_core.report.findings import Findings
from blip_core.report.page import Picture, Section, Table
from blip_core.report.wording import MISSING, listed, number, percent
from blip_core.tables.captions import WRITTEN

FILTER = {"auc": "AUC", "auc_itm": "AUC of\nITM alone", "auc_itc": "AUC of\nITC alone", "ece": "ECE"}
THRESHOLDS = tuple(t / 10 for t in range(1, 10))
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def filter_section(found: Findings) -> Section:
    filters = [(r, f) for r, several in found.filters.items() for f in several]
    rows = [[r, f["name"], *(_with_bounds(f["metrics"], key) for key in FILTER)] for r, f in filters]
    about = (
        "On held-out pairs that it was not tuned on; true and false pairs weigh the same. AUC: how often a true pair scores above a false "
        "one. ECE: how far P(match), the calibrated probability that a text fits, is off on average. "
        f"{found.params.calibrate.confidence:.0%} bootstrap intervals."
    )
    curves = {f"{r}: {f['name']}": (f["curve"]["precision"], f["curve"]["recall"]) for r, f in filters}
    points = {f"{r}: {f['name']}": {limit: at(f, limit) for limit in limits(found, f).values()} for r, f in filters}
    picture = Picture("filter", figures.precision_recall(curves, points), "Precision and recall of the filter on held-out pairs")
    people = [
        f"{r}: people and {f['name']} say the same of {f['metrics']['labels_alike']:.0%} of the texts that people judged, at P(match) 0.5."
        for r, f in filters
        if "labels_alike" in f["metrics"]
    ]
    facts: list[str | Table] = [Table(["round", "filter", *FILTER.values()], rows, left=2), "\n".join([about, *people])]
    return Section("The filter", [*facts, *_in_use(found), *_thresholds(found), *_shares(found)], [picture])


def limits(found: Findings, filter: dict[str, Any]) -> dict[str, float]:
    """The thresholds in use on P(match), by source; one that is calibrated is the filter's own, and left out where it has none. Empty where
    the rule goes by another score."""
    cfg = found.params.assemble
    named = {s: filter["threshold"] if t == "calibrated" else t for s, t in cfg.threshold.items()} if cfg.score == "match" else {}
    return {source: limit for source, limit in named.items() if limit is not None}


def at(filter: dict[str, Any], threshold: float) -> tuple[float | None, float]:
    """Precision and recall on the held-out pairs at P(match) from this threshold; no precision where no pair is kept."""
    curve = filter["curve"]
    place = sum(t < threshold for t in curve["threshold"])
    return (curve["precision"][place], curve["recall"][place]) if place < len(curve["threshold"]) else (None, 0.0)


def _with_bounds(metrics: dict[str, Any], key: str) -> str:
    value, low, high = (metrics.get(f"{key}{end}") for end in ("", "_low", "_high"))
    return number(value) if low is None else f"{number(value)} [{number(low)}, {number(high)}]"


def _in_use(found: Findings) -> list[str | Table]:
    """The rule, and what it makes of the held-out pairs."""
    rows = [
        [r, f["name"], source, f"{limit:.3g}", *_pairs(f, limit)]
        for r, several in found.filters.items()
        for f in several
        for source, limit in limits(found, f).items()
    ]
    about = "precision: kept pairs that are true; recall: true pairs that are kept; the planted true and false pairs weigh the same."
    words = [f"In use in {r}: {_rule(r, found)}." for r in found.filters]
    if not rows:
        return ["\n".join([*words, "What it makes of the held-out pairs is not on the curve below, which is of P(match)."])]
    table = Table(["round", "filter", "threshold\nin use for", "P(match)\nfrom", "precision", "recall", "false pairs\nkept"], rows, left=3)
    return [table, "\n".join([*words, about])]


def _pairs(filter: dict[str, Any], threshold: float) -> list[str]:
    """Precision, recall and share of the false pairs that are kept."""
    precision, recall = at(filter, threshold)
    # true and false pairs weigh the same in the curve; where false ones alone are kept, it does not tell how many
    false = 0.0 if precision is None else recall * (1 / precision - 1) if precision else None
    return [number(precision), percent(recall), percent(false)]


def _rule(r: str, found: Findings) -> str:
    """The rule in words; a threshold that is calibrated as the number that it is in this round."""
    cfg = found.params.assemble
    numbers = cfg.threshold | limits(found, found.filters[r][0])
    named = [f"{limit if isinstance(limit, str) else f'{limit:.3g}'} for {source} texts" for source, limit in numbers.items()]
    score = {"match": "P(match)", "itm": "the raw ITM probability", "itc": "the ITC cosine"}[cfg.score]
    best = f", and of these the {cfg.keep_best} best of an image" if cfg.keep_best else ""
    votes = f" by {cfg.votes} of {len(found.filters[r])} filters at least" if len(found.filters[r]) > 1 else ""
    return f"{score} from {listed(named)}{votes}{best}"


def _thresholds(found: Findings) -> list[str | Table]:
    """What a threshold on P(match) would keep and lose, by the first filter of each round."""
    sources = _sources(found)
    header = ["round", "P(match)\nfrom", "true pairs\nkept", "false pairs\nkept", *(f"{source}\nkept" for source in sources)]
    rows = [_threshold_row(r, found, threshold, sources) for r in found.rounds for threshold in THRESHOLDS]
    about = "Pairs are held-out ones of known truth; texts are the candidates of the crawl, whatever else decided about them. What is "
    about += "not kept is lost: of the true pairs that is the price."
    return [Table(header, rows), about] if rows else []


def _sources(found: Findings) -> list[str]:
    """Those that have candidates in a round."""
    return [source for source in SOURCES if any(digest.texts(source) for digest in found.rounds.values())]


def _threshold_row(r: str, found: Findings, threshold: float, sources: list[str]) -> list[str]:
    _, true, false = _pairs(found.filters[r][0], threshold)
    kept = [percent(found.rounds[r].scores[source].share_from(threshold)) for source in sources]
    return [r, f"{threshold:.1f}", true, false, *kept]


def _shares(found: Findings) -> list[str | Table]:
    """Which threshold would keep a given share of the texts, and the highest score there is."""
    written = [source for source in _sources(found) if source in WRITTEN]
    header = ["round", "share of the\ntexts to keep", "web:\nP(match) from", "true pairs\nkept", "false pairs\nkept"]
    header += [f"{source}:\nP(match) from" for source in written]
    rows = [_share_row(r, found, share, written) for r in found.rounds for share in SHARES]
    highest = [
        f"{r}: the highest P(match) of a {source} text is {scores.highest:.4g}."
        for r, digest in found.rounds.items()
        for source, scores in digest.scores.items()
        if scores.highest >= 0
    ]
    return [Table(header, rows), "\n".join(highest)] if rows else []


def _share_row(r: str, found: Findings, share: float, written: list[str]) -> list[str]:
    web, *others = (found.rounds[r].scores[source].threshold_for(share) for source in ("web", *written))
    pairs = [MISSING, MISSING] if web is None else _pairs(found.filters[r][0], web)[1:]
    return [r, percent(share), number(web), *pairs, *map(number, others)]
