"""Which way pays for a crawl and a clean set, by the map of regimes (docs/results.md). Nothing is trained. Start at `regime`."""

import math
from pathlib import Path
from typing import Any

from blip_core.files.content import read_json
from blip_core.runtime.installed import repository_file

MAP = "benchmarks/results/regimes.json"  # `python benchmarks/truth/regimes.py --page` writes it
NEAR = 3  # a place of the map further off than by this factor, in true texts or in either size, says nothing of the user's
METRICS = {"tr_r1": "text R@1", "ir_r1": "image R@1", "cider": "CIDEr"}
ARMS = {
    "CF": "captioner and filter",
    "F": "the filter alone",
    "F-long": "the filter alone, longer training",
    "long": "the crawl as it is, longer training",
    "human": "the clean set alone",
    "human-long": "the clean set alone, longer training",
}
SAYS = {"terse": "names of things", "full": "full captions", "both": "names of things and full captions alike"}


def regime(noise: float, *, crawl: int | None, clean: int | None, ingested: Path) -> str:
    """Lines for a person. `noise`: share of the crawl's texts that are wrong. `crawl`, `clean`: pictures; None takes those that ingest has
    counted in the file `ingested`. ValueError for a share that is none, and for a size that nobody knows."""
    if not 0 <= noise <= 1:
        raise ValueError(f"--regime {noise:g}: expected the share of the crawl's texts that are wrong, from 0 to 1")
    crawl, clean = (_size(n, flag, ingested) for n, flag in ((crawl, "crawl"), (clean, "clean")))
    places = read_json(repository_file(MAP))
    lines = [f"regime: {noise:.0%} of the crawl's texts wrong, {crawl:,} crawled pictures, {clean:,} that people described"]
    for says, words in SAYS.items():
        place = _nearest([p for p in places if p["says"] == says], 1 - noise, crawl, clean)
        outside = [f"  outside of what was measured: no place within a factor of {NEAR:g} in true texts, crawl and clean set"]
        lines += [f"where true texts are {words}:", *(_told(place) if place else outside)]
    about = (
        f"Measured at {len(places)} of the map's places, in {sum(p['seeds'] for p in places)} worlds of drawn pictures, with small models "
        "and short trainings (docs/results.md). Trust the order where it holds beyond the interval, not the size of gains; `blip ablate` "
        "measures yours."
    )
    return "\n".join([*lines, about])


def _size(known: int | None, flag: str, ingested: Path) -> int:
    if known is None and not ingested.exists():
        raise ValueError(f"--{flag}: not given, and {ingested} is not there to tell it; name the number of pictures, or run ingest")
    part = {"crawl": "images_web", "clean": "images_train"}[flag]
    return int(read_json(ingested)[part]) if known is None else known


def _nearest(places: list[dict[str, Any]], true: float, crawl: int, clean: int) -> dict[str, Any] | None:
    def factors(place: dict[str, Any]) -> list[float]:
        pairs = ((true, place["true"]), (clean, place["clean"]), (crawl, place["crawl"]))
        return [abs(math.log(mine / theirs)) if mine > 0 else math.inf for mine, theirs in pairs]

    near = [place for place in places if max(factors(place)) <= math.log(NEAR)]
    return min(near, key=lambda place: sum(factors(place)), default=None)


def _told(place: dict[str, Any]) -> list[str]:
    """The arms, the best first: by their ranks over the metrics."""
    means = {name: arm["means"] for name, arm in place["arms"].items()}
    rank = {name: sum(other[m] > own[m] for other in means.values() for m in METRICS) for name, own in means.items()}
    lines = [
        f"  nearest that was measured: {1 - place['true']:.0%} wrong, {place['crawl']:,} and {place['clean']:,} pictures, "
        f"{place['seeds']} seed{'s' * (place['seeds'] > 1)}; the best first:"
    ]
    for name in sorted(means, key=lambda name: rank[name]):
        values = ", ".join(f"{words} {means[name][m]:.3f}" for m, words in METRICS.items())
        lines.append(f"    {ARMS[name]}: {values}{_against(place['arms'], name)}")
    return lines


def _against(arms: dict[str, Any], name: str) -> str:
    """How sure its place against captioner and filter is, and what it spent of their compute."""
    if name == "CF":
        return ""
    count, spent = arms[name]["CF"], arms[name]["spent"]
    share = 1.0 if spent is None else spent / arms["CF"]["spent"]
    return (
        f" (against captioner and filter beyond the interval better on {count.get('behind', 0)}, worse on {count.get('ahead', 0)} of "
        f"{sum(count.values())}; {share:.0%} of its compute)"
    )
