"""The map of regimes as tables and a figure for a page, and in short for `blip plan --regime`. Start at `write_map`."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from blip_core.files.atomic import new_file
from blip_core.files.content import read_json, write_json
from blip_core.report.figures import difference_rows
from blip_core.sample.scene_texts import TRUE_KINDS

BEGIN, END = "<!-- regimes: written by python benchmarks/truth/regimes.py --page -->", "<!-- end of regimes -->"
METRICS = {"tr_r1": "text R@1", "ir_r1": "image R@1", "cider": "CIDEr"}
EQUAL_STEPS, EQUAL_COMPUTE = ("none", "human", "F", "C", "CF", "oracle"), ("long", "human-long", "F-long", "CF")
RIVALS = EQUAL_COMPUTE[:-1]
Found = list[dict[str, Any]]  # the files of cells


def write_map(results: Path, page: Path) -> None:
    """`results`: the folder of the cells. The map in short goes into a file of its name beside it."""
    found = [read_cell(path) for path in sorted(results.glob("*.json"))]
    if not found:
        raise ValueError(f"{results}: holds no cell yet; run the map first, without --page")
    found.sort(key=lambda f: (*place(f), f["seed"]))
    write_json([short(own) for own in by_place(found).values()], results.with_suffix(".json"))
    panels = {name: {_named(own[0]): _gaps(own, metric) for own in by_place(found).values()} for metric, name in METRICS.items()}
    with new_file(figure := page.with_name("regimes.png")) as temporary:
        temporary.write_bytes(difference_rows(panels, baseline="CF"))
    head, begun, rest = page.read_text().partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{page}: expected the lines {BEGIN!r} and {END!r}, between which the map goes; add them")
    with new_file(page) as temporary:
        temporary.write_text(f"{head}{BEGIN}\n\n{section(found, figure.name)}\n\n{END}{tail}")


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
    """What `blip plan --regime` reads of the seeds of one place: means, and how often CF is ahead of an arm or behind it, of seeds times
    metrics, beyond the interval."""
    cell: dict[str, Any] = dict(zip(("true", "clean", "says"), place(own[0]), strict=True))
    cell |= {"crawl": own[0]["facts"]["sample"]["num_web"], "seeds": len(own)}
    arms = [arm for arm in (*EQUAL_COMPUTE, "none") if all(arm in f["rows"] for f in own)]
    cell["means"] = {arm: {m: round(fmean(_value(f, arm, m) for f in own), 4) for m in METRICS} for arm in arms}
    cell["CF"] = {arm: dict(Counter(v for f in own for v in verdicts(f, arm))) for arm in arms if arm in RIVALS}
    return cell


def verdicts(found: dict[str, Any], arm: str) -> list[str]:
    """Whether CF is ahead of the arm, for each metric."""
    gaps = [found["rows"][arm]["against"]["CF"][metric] for metric in METRICS]
    return ["ahead" if gap["high"] < 0 else "behind" if gap["low"] > 0 else "even" for gap in gaps]


def section(found: Found, figure: str) -> str:
    text = f"What the arms gain over CF at equal compute: {', '.join(RIVALS)} and, with CF's own number of texts, oracle"
    colours = "for each seed in this order, blue, orange, green, purple"
    return "\n\n".join(
        [
            _conditions(found),
            f"![{text}]({figure})",
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
    return " / ".join(f"{fmean(_value(f, arm, m) for f in known):.3f}" for m in METRICS) if known else "failed"


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
