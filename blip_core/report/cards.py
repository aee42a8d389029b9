"""Pictures with their texts, as sections of the report."""

from blip_core.report import figures
from blip_core.report.digest import SOURCES
from blip_core.report.examples import pick_examples, pick_near
from blip_core.report.findings import Findings
from blip_core.report.page import Picture, Section


def examples_sections(found: Findings) -> list[Section]:
    """Of each round some pictures of the crawl, the same in all; of the crawl itself where no round made a generation yet."""
    if found.rounds:
        titles = {r: (found.params.rounds[r].next, f"Round {r}: web texts and synthetic captions") for r in found.rounds}
        return [_examples(found, f"Examples of round {r}", f"examples-{r}", *told) for r, told in titles.items()]
    return [_examples(found, "Examples of the crawl", "examples", "g0", "The crawl")] if "g0" in found.contents else []


def _examples(found: Findings, title: str, name: str, generation: str, caption: str) -> Section:
    count = found.params.report.examples
    examples = pick_examples(found.generation(generation), found.artifacts / "shards", found.truth, count=count)
    png = figures.example_sheet(examples, title=caption)
    return Section(title, [], [Picture(name, png, "", on_page=False)], examples)


def near_sections(found: Findings, r: str, *, count: int) -> list[Section]:
    """What a slightly lower threshold would keep, and what a slightly higher one would drop."""
    near = pick_near(found.generation(found.params.rounds[r].next), found.artifacts / "shards", found.truth, count=count)
    groups = [(source, side) for source in SOURCES for side in ("above", "below") if (source, side) in near]
    return [Section(f"{r}: {source} texts just {side} the threshold", [], examples=near[source, side]) for source, side in groups]
