"""The gate told by slices: what is measured of the texts with one value of a column, and which limits are held against it.

A slice with fewer judged texts of a source than `gate.min_texts` has no number that proves anything. It is not passed over either: the
slices of a column that are too small count at their worst within the whole, each of their texts rejected, each that was kept noise, and
the whole's limit must hold even so. docs/slices.md tells why.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from blip_core.checks.expect import Expect, at_least, at_most
from blip_core.config.selection import Crawled, GateConfig, SliceLimits
from blip_core.selection.evidence import Texts
from blip_core.selection.noise import TRUE, Noise, residual_noise
from blip_core.tables.slices import by_value, label, require_values, told

TOO_FEW = "too few"  # stands for the value
_MOST_NAMED = 5  # slices that are too small, in a message


@dataclass
class Sliced:
    """Numbers by name, and what is expected of them."""

    facts: dict[str, float] = field(default_factory=dict)
    limits: list[Expect] = field(default_factory=list)


@dataclass(frozen=True)
class _Slices:
    """The texts of a source by one column. `rows`: by value, with none for a value that limits name and no text has."""

    source: Crawled
    column: str
    texts: Texts
    rows: dict[str, np.ndarray]
    cfg: GateConfig

    @property
    def passed(self) -> np.ndarray:
        return self.texts.judged.passed

    def name(self, metric: str, value: str) -> str:
        return f"{metric}{label(self.column, value)}"

    def limits(self, value: str) -> SliceLimits:
        """Its own, or those of each value, or none."""
        by = {s.value: s for s in self.cfg.slices if s.column == self.column}
        return by.get(value) or by.get(None) or SliceLimits(column=self.column)

    def small(self, limited: Callable[[SliceLimits], bool]) -> dict[str, np.ndarray]:
        """Those with such a limit that have too few texts for it."""
        return {v: own for v, own in self.rows.items() if 0 < len(own) < self.cfg.min_texts and limited(self.limits(v))}


def by_slices(crawl: dict[Crawled, Texts], kind: np.ndarray, planted: Texts, whole: Noise | None, cfg: GateConfig) -> Sliced:
    """Of every column that `gate.slices` names. `crawl`: by source; `kind`: of each planted pair; `whole`: of all web texts together."""
    found = Sliced()
    for column in dict.fromkeys(s.column for s in cfg.slices):
        rows = {source: by_value(column, texts.values[column]) for source, texts in crawl.items()}
        require_values(column, {value for own in rows.values() for value in own})
        named = {s.value: np.empty(0, np.int64) for s in cfg.slices if s.column == column and s.value is not None}
        for source, texts in crawl.items():
            own = _Slices(source, column, texts, named | rows[source], cfg)
            _require_texts(found, own)
            _noise_ratios(found, own)
            if source == "web" and whole is not None:
                _residual_noise(found, own, kind, planted, whole)
    return found


def _require_texts(found: Sliced, own: _Slices) -> None:
    """A limit for texts that nobody sees guards nothing: a misspelt value fails."""
    for value, rows in own.rows.items():
        found.facts[name := own.name(f"texts_{own.source}", value)] = len(rows)
        limits = own.limits(value)
        if not len(rows) and (own.source in limits.max_noise or (own.source == "web" and limits.max_residual_noise is not None)):
            found.limits.append(at_least(name, 1, f"{own.source} texts with {own.column} {value}, of which gate.slices has limits"))


def _noise_ratios(found: Sliced, own: _Slices) -> None:
    metric, passed = f"noise_{own.source}", own.passed
    for value, rows in own.rows.items():
        if len(rows):
            found.facts[own.name(metric, value)] = float(np.mean(~passed[rows]))
        limit = own.limits(value).max_noise.get(own.source)
        if limit is not None and len(rows) >= own.cfg.min_texts:
            says = f"noise ratio: share of the {own.source} texts with {own.column} {value} that the filter rejected"
            found.limits.append(at_most(own.name(metric, value), limit, says))
    if small := own.small(lambda limits: own.source in limits.max_noise):
        worst = float(np.sum(~passed) + sum(np.sum(passed[rows]) for rows in small.values())) / len(passed)
        says = f"noise ratio of all {own.source} texts, were all rejected of {_listed(small, own)}"
        _at_worst(found, own.name(metric, TOO_FEW), worst, own.cfg.max_noise[own.source], says)


def _residual_noise(found: Sliced, own: _Slices, kind: np.ndarray, planted: Texts, whole: Noise) -> None:
    metric, cfg, judged = "residual_noise_web", own.cfg, own.texts.judged
    for value, rows in own.rows.items():
        if len(rows) < cfg.min_texts:
            continue
        pairs, which = _pairs(kind, told(planted.values[own.column]) == value, cfg)
        noise = residual_noise(kind[pairs], planted.judged.where(pairs), judged.where(rows), confidence=cfg.confidence)
        upper, limit = own.name(f"{metric}_upper", value), own.limits(value).max_residual_noise
        found.facts |= {upper: noise.upper} | ({} if noise.point is None else {own.name(metric, value): noise.point})
        if limit is not None:
            says = f"noise left in the kept web texts with {own.column} {value}: upper {cfg.confidence:.0%} bound by {which}"
            found.limits.append(at_most(upper, limit, says))
    if small := own.small(lambda limits: limits.max_residual_noise is not None):
        kept = float(sum(np.sum(own.passed[rows]) for rows in small.values()))
        worst = min(1.0, whole.upper + kept / max(1, np.sum(own.passed)))
        says = f"bound on the noise left in all kept web texts, with all kept ones of {_listed(small, own)} taken for noise"
        _at_worst(found, own.name(f"{metric}_upper", TOO_FEW), worst, cfg.max_residual_noise, says)


def _at_worst(found: Sliced, name: str, worst: float, limit: float, says: str) -> None:
    found.facts[name] = worst
    found.limits.append(at_most(name, limit, says))


def _pairs(kind: np.ndarray, own: np.ndarray, cfg: GateConfig) -> tuple[np.ndarray, str]:
    """The planted pairs of the slice's own pictures where they are enough, else all; and which they are, in words."""
    true = int(np.sum(kind[own] == TRUE))
    false = int(np.sum(own)) - true
    if min(true, false) >= cfg.min_controls:
        return np.flatnonzero(own), f"its own {true + false:,} planted pairs"
    return np.arange(len(kind)), f"all planted pairs, since {true:,} true and {false:,} false ones are its own"


def _listed(small: dict[str, np.ndarray], own: _Slices) -> str:
    some = ", ".join(f"{value} ({len(rows):,} texts)" for value, rows in list(small.items())[:_MOST_NAMED])
    more = f" and {len(small) - _MOST_NAMED} more" if len(small) > _MOST_NAMED else ""
    return f"{own.column} {some}{more}: fewer than gate.min_texts = {own.cfg.min_texts} each"
