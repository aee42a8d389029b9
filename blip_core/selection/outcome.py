"""What a rule did to the texts of a generation: the noise ratio, and why a source keeps nothing."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.capfilt.pair_scores import opinions
from blip_core.selection.choice import Rule, read_whole, rejected
from blip_core.texts.screens import screened


def judged(table: pa.Table) -> pa.ChunkedArray:
    """Which texts the filter scored and the rule chose from: those of the crawl but for what a screen took before."""
    return pc.and_not(pc.not_equal(table["source"], "human"), screened(table))


class NoiseRatio:
    """The paper's noise ratio: the share of the judged texts that the filter rejects, whatever else speaks against them.

    Counted table by table, by the values of the columns `by`. A source without a threshold has none.
    """

    def __init__(self, rule: Rule, *, by: tuple[str, ...] = ("source",)):
        self.rule, self.by = rule, by
        self.judged: Counter[tuple[str, ...]] = Counter()
        self.rejected: Counter[tuple[str, ...]] = Counter()

    def add(self, table: pa.Table, *, where: str) -> None:
        table = table.filter(judged(table))
        table = table.filter(pc.is_in(table["source"], value_set=pa.array([*self.rule.cfg.threshold], pa.string())))
        table = table.append_column("below", rejected(table, rule=self.rule, where=where))
        for g in table.group_by([*self.by]).aggregate([("below", "count"), ("below", "sum")]).to_pylist():
            group = tuple(g[name] for name in self.by)
            self.judged[group] += g["below_count"]
            self.rejected[group] += g["below_sum"]

    def of(self, *group: str) -> float | None:
        """None where nothing was judged."""
        return self.rejected[group] / self.judged[group] if self.judged[group] else None


def kept_nothing(paths: Iterable[Path], facts: Mapping[str, float], *, rule: Rule) -> list[str]:
    """A sentence on each source that takes part, has candidates and keeps none of them. `facts`: `candidates_*` and `kept_*`."""
    empty = [s for s in rule.cfg.sources if facts.get(f"candidates_{s}") and not facts[f"kept_{s}"]]
    return [_why_nothing(paths, source, rule) for source in empty]


def _why_nothing(paths: Iterable[Path], source: str, rule: Rule) -> str:
    reasons: Counter[str] = Counter()
    highest: dict[str, float] = {}  # by filter
    for path in paths:
        table = read_whole(path)
        own = table.filter(pc.equal(table["source"], source))
        reasons.update(own["reason"].to_pylist())
        own = own.filter(judged(own))
        for scores in (own, *opinions(own)):
            best = scores.group_by("filter").aggregate([(rule.cfg.score, "max")])
            for row in best.to_pylist():
                highest[row["filter"]] = max(highest.get(row["filter"], -math.inf), row[f"{rule.cfg.score}_max"])
    said = [
        f"the highest {rule.cfg.score} is {value:.4g}{_by(name, rule)}, the threshold {rule.threshold(source, name):.4g}"
        for name, value in highest.items()
    ]
    counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    return f"source {source} keeps none of its {reasons.total():,} texts ({counts}): {'; '.join(said) or 'none of them was scored'}"


def _by(filter: str, rule: Rule) -> str:
    return f" by filter {rule.calibrated[filter].name}" if len(rule.calibrated) > 1 else ""
