"""The tables of an ablation in Markdown, and a page that keeps a section for them. Start at `section`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from blip_core.ablations.results import METRICS, metrics_of, read_results
from blip_core.files.atomic import new_file
from blip_core.report.wording import listed
from blip_core.tracking.passes import cell

BEGIN, END = "<!-- ablations: written by python -m blip_core ablate --page -->", "<!-- end of ablations -->"
Differences = dict[str, dict[str, list[tuple[float, float, float] | None]]]  # metric -> row -> one of each seed: difference, low, high


def show(file: Path, page: Path | None) -> str:
    """The section of what the file of results holds. With a page it is put there, and its figure beside it; else nothing is written."""
    results = read_results(file)
    if page is None:
        return section(results, figure=None)
    figure = page.with_name("ablations.png")
    _draw(results, figure)
    write_page(page, text := section(results, figure=figure.name))
    return text


def _draw(results: dict[str, Any], figure: Path) -> None:
    from blip_core.report.figures import difference_rows

    baseline = results["baselines"][0]
    panels = {metrics_of(results)[metric]: rows for metric, rows in differences(results, baseline).items()}
    with new_file(figure) as temporary:
        temporary.write_bytes(difference_rows(panels, baseline=baseline))


def section(results: dict[str, Any], *, figure: str | None) -> str:
    """All of it; `figure` is the path of the picture as the page names it, None where there is no page."""
    shown = f"Differences to {results['baselines'][0]}: a point for each seed, with its interval"
    parts = [
        _conditions(results),
        _means(results),
        *_beside_the_paper(results),
        *([f"![{shown}]({figure})", f"{shown}."] if figure else []),
    ]
    compared = [b for b in results["baselines"] if differences(results, b)["cider"]]
    for baseline in compared:
        about = f"Against {baseline}: the mean over the seeds, and at how many the interval lies above or below 0."
        parts += [about, _gains(results, baseline)]
    details = [f"Against {baseline}:\n\n{_intervals(results, baseline)}" for baseline in compared]
    return "\n\n".join([*parts, '<details markdown="1"><summary>Each seed with its interval</summary>', *details, "</details>"])


def write_page(page: Path, text: str) -> None:
    """Put the section between its two marks."""
    head, tail = around(page)
    with new_file(page) as temporary:
        temporary.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def around(page: Path) -> tuple[str, str]:
    """What stands before the section and behind it. ValueError where the page has no marks for it."""
    text = page.read_text() if page.exists() else ""
    head, begun, rest = text.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{page}: expected the lines {BEGIN!r} and {END!r}, between which the tables go; add them")
    return head, tail


def differences(results: dict[str, Any], baseline: str) -> Differences:
    """Of every row that was compared with it, a place for each seed."""
    seeds = _seeds(results).values()
    others = [about["row"] for about in results["rows"] if any(_tests(seed, about["row"], baseline) for seed in seeds)]
    return {metric: {row: [_difference(s, row, baseline, metric) for s in seeds] for row in others} for metric in metrics_of(results)}


def _seeds(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {seed: results["seeds"][seed] for seed in sorted(results["seeds"], key=int)}


def _tests(seed: dict[str, Any], row: str, baseline: str) -> dict[str, dict[str, Any]]:
    return seed["rows"].get(row, {}).get("against", {}).get(baseline, {})


def _difference(seed: dict[str, Any], row: str, baseline: str, metric: str) -> tuple[float, float, float] | None:
    test = _tests(seed, row, baseline).get(metric)
    return (test["difference"], test["low"], test["high"]) if test else None


def _conditions(results: dict[str, Any]) -> str:
    facts, seeds = results["facts"], _seeds(results)
    command = " ".join(["blip ablate --seeds", *seeds, *(["--arms", *results["arms"]] if results["arms"] else [])])
    made: dict[str, list[str]] = {}
    for name, seed in seeds.items():
        made.setdefault(f"of commit {seed['commit'][:10]} ({seed['machine']})", []).append(name)
    ran = "; ".join(f"{listed(names)} {by}" for by, names in made.items())
    return (
        f"`{command}`, seed {ran}. {_data(facts)} Where nothing else is said, a model is trained from scratch for {facts['steps']} steps "
        f"of {facts['batch_size']} images; {facts['human_share']:.0%} of a batch is human text, and {facts['synthetic_share']:.0%} of the "
        "rest synthetic, where there is any. Values are means over the seeds, with their range; intervals hold "
        f"{facts['confidence']:.0%} of {facts['bootstrap']:,} paired resamples of the test images."
    )


def _data(facts: dict[str, Any]) -> str:
    if own := facts.get("data"):
        told = ", ".join(f"{path} (`{md5}`)" for path, md5 in own.items())
        return f"All seeds have the project's own data, {told}; initial weights and draws take the seed."
    sample = facts["sample"]
    sizes = f"{sample['num_web']:,} crawled images, {sample['num_train']} clean ones, {sample['num_test']} for the test"
    return f"Each seed is a world of its own: {sizes}."


def _means(results: dict[str, Any]) -> str:
    head = [
        "arm",
        "what",
        "paper",
        "web texts",
        "rejected",
        "false",
        "synthetic",
        "rejected",
        "false",
        *metrics_of(results).values(),
        "true captions",
    ]
    rows = []
    for about in results["rows"]:
        found = [s["rows"][about["row"]] for s in _seeds(results).values() if about["row"] in s["rows"]]
        texts = [cell for source in ("web", "synthetic") for cell in _texts(found, source)]
        metrics = [_mean([f["metrics"].get(m, {}).get("value") for f in found], "{:.3f}".format) for m in metrics_of(results)]
        rows.append([about["row"], about["says"], about["paper"], *texts, *metrics, _mean([f["true_captions"] for f in found], _percent)])
    return _table(head, rows)


def _beside_the_paper(results: dict[str, Any]) -> list[str]:
    """The paper's numbers and the means of the same rows here, each with its difference to the first baseline, in the paper's units."""
    first, about = results["baselines"][0], {a["row"]: a for a in results["rows"] if a.get("in_paper")}
    if first not in about:
        return []

    def told(values: dict[str, float], row: str) -> str:
        return f"{values[row]:.1f}" + (f" ({values[row] - values[first]:+.1f})" if row != first and first in values else "")

    rows = [[row, a["paper"]] for row, a in about.items()]
    for metric in METRICS:
        theirs = {row: a["in_paper"][metric] for row, a in about.items()}
        ours = {row: 100 * value for row in about if (value := _mean_of(results, row, metric)) is not None}
        for line in rows:
            line += [told(theirs, line[0]), told(ours, line[0]) if line[0] in ours else "-"]
    head = ["arm", "paper", *(f"{name}, {whose}" for name in METRICS.values() for whose in ("paper", "here"))]
    says = (
        f"The paper's numbers (ViT-B/16, 14 million images, fine-tuned on COCO) beside those here; in brackets the difference to {first}."
    )
    return [f"{says} CIDEr in points.", _table(head, rows)]


def _mean_of(results: dict[str, Any], row: str, metric: str) -> float | None:
    found = [seed["rows"][row]["metrics"][metric]["value"] for seed in results["seeds"].values() if row in seed["rows"]]
    return fmean(found) if found else None


def _texts(found: list[dict[str, Any]], source: str) -> tuple[str, str, str]:
    """How many the models saw, the share that the filter rejected before, and that of false ones among those that stayed."""
    known = [f["texts"][source] for f in found if source in f["texts"] and f["texts"][source]["kept"]]
    rejected, false = (_mean([k[name] for k in known], _percent) for name in ("rejected", "false_kept"))
    return _mean([k["kept"] for k in known], "{:,.0f}".format), rejected, false


def _gains(results: dict[str, Any], baseline: str) -> str:
    """The mean over the seeds, and at how many of them the interval lies above or below 0."""
    found = differences(results, baseline)
    rows = [[row, *(_gain(by_row[row]) for by_row in found.values())] for row in next(iter(found.values()))]
    return _table(["arm", *metrics_of(results).values()], rows)


def _gain(tests: list[tuple[float, float, float] | None]) -> str:
    known = [t for t in tests if t]
    if not known:
        return "-"
    above, below = sum(low > 0 for _, low, _ in known), sum(high < 0 for _, _, high in known)
    told = [f"{n} of {len(known)} {side}" for n, side in ((above, "above"), (below, "below")) if n]
    return f"{fmean(t[0] for t in known):+.3f} ({', '.join(told) or f'0 of {len(known)}'})"


def _intervals(results: dict[str, Any], baseline: str) -> str:
    found = differences(results, baseline)

    def lines() -> Iterator[list[str]]:
        for row in next(iter(found.values())):
            for place, seed in enumerate(_seeds(results)):
                tests = [by_row[row][place] for by_row in found.values()]
                if any(tests):
                    yield [row, seed, *(f"{t[0]:+.3f} [{t[1]:+.3f}, {t[2]:+.3f}]" if t else "-" for t in tests)]

    return _table(["arm", "seed", *metrics_of(results).values()], lines())


def _mean(values: list[float | None], form: Callable[[float], str]) -> str:
    """With the range, where there are several."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    spread = f" ({form(min(known))} to {form(max(known))})" if len(known) > 1 else ""
    return form(fmean(known)) + spread


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _table(head: list[str], rows: "Iterator[list[str]] | list[list[str]]") -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
