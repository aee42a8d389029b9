"""The map of regimes as tables and a figure for a page, and in short for `blip plan --regime`. Start at `write_map`."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from regimes import PAYS

from blip_core.files.atomic import new_file
from blip_core.files.content import read_json, write_json
from blip_core.report.figures import difference_rows, spent_and_reached
from blip_core.sample.scene_texts import TRUE_KINDS

# of the demo, in steps of pretraining: the CPU seconds of its stages over those of a step (`make demo && blip times`)
DEMO = {"base/pretrain-g0": 500.0, "r1/tune_captioner": 101.0, "r1/tune_filter": 178.0, "r1/calibrate": 31.0, "r1/caption": 69.0}
DEMO |= {"r1/score": 67.0}
ABLATED = {"none": 500, "human": 500, "F": 500, "CF": 500, "long": 1000, "CF-long": 1000}  # arms of the ablations: last training's steps
BEGIN, END = "<!-- regimes: written by python benchmarks/truth/regimes.py --page -->", "<!-- end of regimes -->"
METRICS = {"tr_r1": "text R@1", "ir_r1": "image R@1", "cider": "CIDEr"}
EQUAL_STEPS, EQUAL_COMPUTE = ("none", "human", "F", "C", "CF", "CF-human", "oracle"), ("long", "human-long", "F-long", "CF")
RIVALS = EQUAL_COMPUTE[:-1]
FIGURE = "regimes.png"
Found = list[dict[str, Any]]  # the files of cells


def write_map(results: Path, page: Path) -> None:
    """`results`: the folder of the cells; one without the arms at equal compute counts for nothing yet. Beside it lie the ablations. There
    goes the map in short, with the ablations' place on it: a file of its name."""
    cells = [read_cell(path) for path in sorted(results.glob("*.json"))]
    found = sorted((f for f in cells if not set(EQUAL_COMPUTE) - set(f["rows"])), key=lambda f: (*place(f), f["seed"]))
    ablations = read_json(results.with_name("ablations.json"))
    write_json([ablated_place(ablations), *(short(own) for own in by_place(found).values())], results.with_suffix(".json"))
    draw_spending(ablations, page.with_name("spending.png"))
    if found:
        panels = {name: {_named(own[0]): _gaps(own, metric) for own in by_place(found).values()} for metric, name in METRICS.items()}
        _draw(difference_rows(panels, baseline="CF"), page.with_name(FIGURE))
    head, begun, rest = page.read_text().partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{page}: expected the lines {BEGIN!r} and {END!r}, between which the map goes; add them")
    told = section(found) if found else "No cell has the arms at equal compute yet."
    with new_file(page) as temporary:
        temporary.write_text(f"{head}{BEGIN}\n\n{told}\n\n{END}{tail}")


def _draw(png: bytes, path: Path) -> None:
    with new_file(path) as temporary:
        temporary.write_bytes(png)


def draw_spending(ablations: dict[str, Any], figure: Path) -> None:
    """What the arms of the ablations reach, over all that they spend."""
    cost, seeds = _ablated_cost(), ablations["seeds"].values()
    panels = {
        name: {row: (cost[row], [seed["rows"][row]["metrics"][m]["value"] for seed in seeds]) for row in cost}
        for m, name in METRICS.items()
    }
    _draw(spent_and_reached(panels, spent="compute in all, in steps of pretraining"), figure)


def _ablated_cost() -> dict[str, float]:
    return {row: steps + sum(share * DEMO[run] for run, share in PAYS.get(row, {}).items()) for row, steps in ABLATED.items()}


def ablated_place(ablations: dict[str, Any]) -> dict[str, Any]:
    """The demo's own world, where no arm spends more than CF, and some less."""
    seeds, sample, cost = [*ablations["seeds"].values()], ablations["facts"]["sample"], _ablated_cost()
    about = {"true": sum(sample["web_kinds"][kind] for kind in TRUE_KINDS), "clean": sample["num_train"], "says": "both"}
    arms = {row: _arm(seeds, row, spent=cost[row]) for row in ("CF", "F", "long", "human")}
    return {**about, "crawl": sample["num_web"], "seeds": len(seeds), "arms": arms}


def read_cell(path: Path) -> dict[str, Any]:
    """What `ablate` found of the one seed, in a mapping; a cell that is not whole yet lacks rows, and what its gate and its stages say."""
    found = read_json(path)
    ((seed, made),) = found["seeds"].items()
    return {"seed": int(seed), "gate": {}, "cpu_seconds": {"arms": {}}} | found | made


def place(found: dict[str, Any]) -> tuple[float, int, str]:
    """Where on the map, whatever the seed: share of true texts, size of the clean set, what true texts say."""
    sample = found["facts"]["sample"]
    ((kind, true),) = ((k, share) for k, share in sample["web_kinds"].items() if k in TRUE_KINDS)
    return true, sample["num_train"], "terse" if kind == "terse" else "full"


def by_place(found: Found) -> dict[tuple[float, int, str], Found]:
    places: dict[tuple[float, int, str], Found] = {}
    for own in found:
        places.setdefault(place(own), []).append(own)
    return places


def short(own: Found) -> dict[str, Any]:
    """What `blip plan --regime` reads of the seeds of one place."""
    about = dict(zip(("true", "clean", "says"), place(own[0]), strict=True))
    arms = {row: _arm(own, row, spent=None) for row in EQUAL_COMPUTE}
    return {**about, "crawl": own[0]["facts"]["sample"]["num_web"], "seeds": len(own), "arms": arms}


def _arm(seeds: Found, row: str, *, spent: float | None) -> dict[str, Any]:
    """Means; on how many of seeds times metrics CF is ahead of the arm or behind it, beyond the interval; and what it spent in steps, None
    for as much as CF."""
    means = {metric: round(fmean(_value(seed, row, metric) for seed in seeds), 4) for metric in METRICS}
    return {"means": means, "CF": dict(Counter(v for seed in seeds for v in verdicts(seed, row))) if row != "CF" else {}, "spent": spent}


def verdicts(found: dict[str, Any], arm: str) -> list[str]:
    """Whether CF is ahead of the arm, for each metric."""
    gaps = [found["rows"][arm]["against"]["CF"][metric] for metric in METRICS]
    return ["ahead" if gap["high"] < 0 else "behind" if gap["low"] > 0 else "even" for gap in gaps]


def section(found: Found) -> str:
    text = f"What the arms gain over CF at equal compute: {', '.join(RIVALS)} and, with CF's own number of texts, oracle"
    colours = "for each seed in this order, blue, orange, green, purple"
    return "\n\n".join(
        [
            _conditions(found),
            f"![{text}]({FIGURE})",
            f"{text} ({colours}). Left of the line CF is ahead.",
            "At equal compute: text R@1 / image R@1 / CIDEr, means over the seeds; then on how many of seeds times metrics CF is ahead of "
            "the arm, even with it, or behind it, beyond the 95 % interval.",
            _compute_table(found),
            "At equal steps of the last training, whatever else an arm costs:",
            _steps_table(found),
            "What the filter and the captioner did there. Estimate and bound are the gate's, by planted pairs.",
            _texts_table(found),
            "CPU seconds of an arm, start-up of its stages apart: means over the cells.",
            _spent_table(found),
        ]
    )


def _conditions(found: Found) -> str:
    facts = found[0]["facts"]
    made = Counter((f["commit"][:10], f["machine"]) for f in found)
    where = "; ".join(f"{n} of commit {commit} ({machine})" for (commit, machine), n in made.items())
    return (
        f"`python benchmarks/truth/regimes.py`: {len(found)} cells at {len(by_place(found))} places, {where}. A cell is a world of "
        f"{facts['sample']['num_web']:,} crawled images and {facts['sample']['num_test']} for the test. Trainings at equal steps have "
        f"{facts['steps']} of {facts['batch_size']} images."
    )


def _named(found: dict[str, Any]) -> str:
    true, clean, says = place(found)
    return f"{true:.0%} true, {says}, {clean:,}"


def _gaps(own: Found, metric: str) -> list[tuple[float, float, float] | None]:
    """Of each seed and rival, and of the oracle."""
    rows = [f["rows"].get(arm, {}).get("against", {}).get("CF", {}).get(metric) for f in own for arm in (*RIVALS, "oracle")]
    return [(gap["difference"], gap["low"], gap["high"]) if gap else None for gap in rows]


def _value(found: dict[str, Any], arm: str, metric: str) -> float:
    return float(found["rows"][arm]["metrics"][metric]["value"])


def _means(own: Found, arm: str) -> str:
    known = [f for f in own if arm in f["rows"]]
    failed = any(reason.startswith(f"{arm} at ") for f in own for reason in f.get("failed", []))
    missing = "failed" if failed else "-"  # the cell may be older than the arm
    return " / ".join(f"{fmean(_value(f, arm, m) for f in known):.3f}" for m in METRICS) if known else missing


def _compute_table(found: Found) -> str:
    rows = []
    for own in by_place(found).values():
        cells = [_means(own, "CF")]
        for arm in RIVALS:
            count = Counter(v for f in own if arm in f["rows"] for v in verdicts(f, arm))
            cells.append(f"{_means(own, arm)} ({count['ahead']}, {count['even']}, {count['behind']})")
        rows.append([_named(own[0]), str(len(own)), *cells])
    return _table(["true texts, what they say, clean set", "seeds", "CF", *RIVALS], rows)


def _steps_table(found: Found) -> str:
    rows = [[_named(own[0]), str(len(own)), *(_means(own, arm) for arm in EQUAL_STEPS)] for own in by_place(found).values()]
    return _table(["true texts, what they say, clean set", "seeds", *EQUAL_STEPS], rows)


def _texts_table(found: Found) -> str:
    rows = []
    for own in by_place(found).values():
        texts = [own_text for source in ("web", "synthetic") for own_text in _texts(own, source)]
        gate = [_mean([f["gate"].get(name) for f in own]) for name in ("estimate", "bound")]
        rows.append([_named(own[0]), *texts[:2], *gate, *texts[2:]])
    head = ["web texts kept", "of these false", "estimate", "bound", "synthetic kept", "of these false"]
    return _table(["true texts, what they say, clean set", *head], rows)


def _texts(own: Found, source: str) -> list[str]:
    known = [f["rows"]["CF"]["texts"][source] for f in own if source in f["rows"].get("CF", {}).get("texts", {})]
    return [f"{fmean(k['kept'] for k in known):,.0f}", _mean([k["false_kept"] for k in known])] if known else ["-", "-"]


def _spent_table(found: Found) -> str:
    arms = list(dict.fromkeys(arm for f in found for arm in f["cpu_seconds"]["arms"]))
    if not arms:
        return "No cell is whole yet."
    row = [f"{fmean(f['cpu_seconds']['arms'][arm] for f in found if arm in f['cpu_seconds']['arms']):.0f}" for arm in arms]
    return _table(arms, [row])


def _mean(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{fmean(known):.1%}" if known else "-"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
