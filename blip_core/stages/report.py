"""One page and one table of what the chain did. Every number comes from a file that a stage wrote.

Start at `report`; below it stand the sections in the order of the page.
"""

from pathlib import Path
from typing import Any

from blip_core.config.delivery import ReportConfig
from blip_core.config.params import Params
from blip_core.evaluation.alarms import alarms
from blip_core.files.atomic import new_folder
from blip_core.files.rejected import REASONS
from blip_core.report import figures
from blip_core.report.chain import chain_section
from blip_core.report.costs import cost_section
from blip_core.report.description import description_section
from blip_core.report.digest import RoundDigest, pick_examples
from blip_core.report.filters import filter_section
from blip_core.report.findings import SPLITS, Findings, read_findings
from blip_core.report.page import Picture, Section, Table, as_html, as_text
from blip_core.report.rounds import rounds_section
from blip_core.report.verdict import instead_words, registration_words, verdict_section, verdict_words
from blip_core.report.wording import (
    METRICS,
    MISSING,
    amount,
    is_share,
    listed,
    metric_interval,
    metric_value,
    percent,
)
from blip_core.review.sheet import write_sheet
from blip_core.runtime.times import read_times
from blip_core.sample.truth import TrueNoise
from blip_core.tables.captions import SCREENS

TITLE = "What the bootstrapping did"
SHOWN = ("tr_r1", "ir_r1", "itm_tr_r1", "itm_ir_r1", "cider")  # of every model
SCORE_REASONS = ("kept", "below_threshold")  # the usual two


def report(artifacts: Path, data: Path, out: Path, *, cfg: ReportConfig, params: Params, work: Path | None = None) -> None:
    """Write `out`/index.html, `out`/table.txt, `out`/figures/ and a review sheet of each round; `out` appears whole, by rename.

    What the stages cost is read from `work`, as far as it is known there; nothing depends on it (blip_core/runtime/times.py).

    `data` is read for truth.parquet alone, which a real crawl does not have. ValueError names a file that is missing and the
    stage that makes it."""
    found = read_findings(artifacts, data, params)
    examples = [_examples(found, r, cfg.examples) for r in found.rounds]
    texts = description_section(found.descriptions, rare_images=params.describe.rare_images)
    facts = [_in_short(found), _noise(found), filter_section(found), _models(found), verdict_section(found), rounds_section(found)]
    times = read_times(work) if work is not None else []
    costs = [cost_section(times)] if times else []
    sections = [*facts, chain_section(found), texts, *costs, _places(found, out), _intake(found), *examples, _training(found)]
    with new_folder(out) as temporary:
        _write(sections, temporary)
        for r in found.rounds if cfg.review else ():
            generation, sheet = artifacts / "generations" / params.rounds[r].next, temporary / f"review-{r}.html"
            write_sheet(generation, artifacts / "shards", sheet, count=cfg.review, around=None, seed=params.seed)


def _in_short(found: Findings) -> Section:
    lines = []
    for r, digest in found.rounds.items():
        for source in digest.sources:
            noise = digest.noise.get(source)
            change = f"; false ones: {percent(noise.before)} -> {percent(noise.after)}" if noise else ""
            lines.append(f"{r}, {source} texts: {_kept(digest, source):,} of {digest.texts(source):,} kept{change}")
    lines += [verdict_words(found), *instead_words(found), registration_words(found.registration)]
    lines += [f"ALARM, {name}: {words}." for name, metrics in found.models.items() for words in alarms(metrics).values()]
    return Section("In short", ["\n".join(lines)])


def _noise(found: Findings) -> Section:
    header = [
        "round",
        "texts",
        "candidates",
        "kept",
        "noise\nratio",
        "false\nbefore",
        "false\nafter",
        "gate's\nestimate",
        "its upper\nbound",
    ]
    rows = [_noise_row(found, r, source) for r, digest in found.rounds.items() for source in digest.sources]
    truth = "the sample world's truth says so" if found.truth else "not known: there is no data/truth.parquet"
    about = [
        "noise ratio: share of the texts that the filter scored which it rejected, whatever else speaks against them.",
        f"false before, after: share of the candidates and of the kept texts that are not true of their image ({truth}).",
        "gate's estimate: the same share after, as told by the scores of planted pairs of known truth; nobody labelled a crawled text. "
        f"It errs to the high side, the more the weaker the filter; upper bound at {found.params.gate.confidence:.0%} confidence.",
        "n/a for texts of captioners: no pair can be planted that is wrong in the captioner's own way. The review sheet tells of them.",
    ]
    parts: list[str | Table] = [Table(header, rows, left=2), "\n".join([*about, *_other_reasons(found)])]
    kinds = [row for r, digest in found.rounds.items() if "web" in digest.noise for row in _kind_rows(r, digest.noise["web"])]
    if kinds:
        parts.append(Table(["round", "kind of web text", "true?", "texts", "kept", "share kept", "of all kept"], kinds, left=3))
    thresholds = _drawn_thresholds(found)
    png = figures.score_histograms({r: d.bins for r, d in found.rounds.items()}, thresholds=thresholds)
    return Section(
        "1. Noise in the texts",
        parts,
        [Picture("scores", png, "Histograms of the match scores of the texts of each source and of the controls, by truth")],
        in_text=2,
    )


def _drawn_thresholds(found: Findings) -> dict[str, float]:
    """On P(match) of each source; one that is calibrated for a round is that of the last."""
    if found.params.assemble.score != "match":
        return {}
    calibrated = next(reversed(found.filters.values()))[0]["threshold"]
    return {s: calibrated if t == "calibrated" else t for s, t in found.params.assemble.threshold.items()}


def _noise_row(found: Findings, r: str, source: str) -> list[str]:
    digest, gate = found.rounds[r], found.gates[r]
    noise = digest.noise.get(source)
    true = [noise.before, noise.after] if noise else [None, None]
    estimate = [gate.get(f"residual_noise_{source}{end}") for end in ("", "_upper")]
    counts = [f"{digest.texts(source):,}", f"{_kept(digest, source):,}"]
    return [r, source, *counts, *map(percent, [gate.get(f"noise_{source}"), *true, *estimate])]


def _other_reasons(found: Findings) -> list[str]:
    dropped = [
        f"{n:,} {source} {reason.replace('_', ' ')} ({r})"
        for r, digest in found.rounds.items()
        for (source, reason), n in sorted(digest.reasons.items())
        if reason not in SCORE_REASONS
    ]
    return [f"dropped for another reason than the score: {', '.join(dropped)}."] if dropped else []


def _kind_rows(r: str, noise: TrueNoise) -> list[list[str]]:
    words: dict[float | None, str] = {0.0: "true", 1.0: "false"}
    return [
        [
            r,
            name,
            words.get(kind.before, "mixed"),
            f"{kind.texts:,}",
            f"{kind.kept:,}",
            percent(kind.kept / kind.texts),
            percent(_ratio(kind.kept, noise.kept)),
        ]
        for name, kind in noise.kinds().items()
    ]


def _models(found: Findings) -> Section:
    cfg = found.params.evaluate
    header = ["model", *(METRICS[m].replace(" (", "\n(") for m in SHOWN), "captions\ntrue"]
    rows = [
        [name, *(metric_interval(metric, metrics) for metric in SHOWN), percent(found.true_captions[name])]
        for name, metrics in found.models.items()
    ]
    one = next(iter(found.models.values()))
    rows.append(["by chance", *(metric_value(metric, one.get(f"{metric}_chance")) for metric in SHOWN), MISSING])
    about = (
        f"Held-out test images, {cfg.confidence:.0%} bootstrap intervals. text R@1: an image finds its own text first; "
        "image R@1: a text finds its image. "
        f"ITC: by similarity; ITM: the {cfg.rerank} best of it ranked anew. CIDEr: 1.00 is 100 points."
    )
    picture = Picture("models", figures.metric_bars(_bars(found)), "Metrics of every model with intervals")
    described = "\n".join(_describe(name, found) for name in found.models)
    return Section("3. The models", [described, Table(header, rows), about, *_captions(found)], [picture])


def _captions(found: Findings) -> list[str | Table]:
    """How various the captions are: a collapsed captioner says the same of many images."""
    shares = ("captions_distinct_share", "captions_most_common_share", "captions_loop_share")
    rows = [[name, amount(m["captions_distinct"]), *(percent(m[share]) for share in shares)] for name, m in found.models.items()]
    one = next(iter(found.models.values()))
    rows.append(["people", MISSING, *(percent(one[f"references_{share}"]) for share in ("distinct_share", "most_common_share")), MISSING])
    about = "Of the test captions: different ones, the share of the images that the most frequent one stands at, loops of the same words."
    return [Table(["model", "different\ncaptions", "share", "most\nfrequent", "loops"], rows), f"{about} people: the first reference."]


def _describe(name: str, found: Findings) -> str:
    """A model's part in the comparison and what it learned from, in plain words."""
    cfg, compared = found.params.models[name], found.comparison
    part = "challenger" if name == compared["challenger"] else "baseline" if name in compared["baselines"] else "not compared"
    made = next((f", made by round {r}" for r, round_ in found.params.rounds.items() if round_.next == cfg.generation), ", as ingested")
    return f"{name} ({part}): learned from the {listed(cfg.sources.split(','))} texts of generation {cfg.generation}{made}."


def _bars(found: Findings) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    bars: dict[str, dict[str, tuple[float, float, float] | None]] = {}
    for metric in SHOWN:
        scale, unit = (100, ", %") if is_share(metric) else (1, "")
        triples: dict[str, list[Any]] = {m: [v.get(f"{metric}{end}") for end in ("", "_low", "_high")] for m, v in found.models.items()}
        bars[METRICS[metric] + unit] = {m: None if None in t else (scale * t[0], scale * t[1], scale * t[2]) for m, t in triples.items()}
    if any(share is not None for share in found.true_captions.values()):
        bars["captions that are true, %"] = {m: None if v is None else (100 * v, 100 * v, 100 * v) for m, v in found.true_captions.items()}
    return bars


def _intake(found: Findings) -> Section:
    counts = found.ingest
    rows = [[split, *(amount(counts.get(f"{kind}_{split}")) for kind in ("images", "texts", "shards"))] for split in SPLITS]
    parts: list[str | Table] = [Table(["part", "images", "texts", "shards"], rows)]
    lost = [f"{part} {percent(counts.get(f'rejected_share_{part}'))}" for part in ("web", "clean")]
    parts.append(f"Share of the texts that were set aside: {', '.join(lost)}. Each stands in {found.artifacts / 'quarantine.parquet'}.")
    if bare := counts.get("images_without_text"):
        parts.append(f"{bare:,} pictures of the crawl came without a usable text: they are for the captioner, and count in the coverage.")
    if found.quarantine:
        ordered = sorted(found.quarantine.items(), key=lambda item: (item[0][0] != "web", -item[1], item[0]))
        quarantine = [[part, reason, REASONS.get(reason, ""), f"{n:,}"] for (part, reason), n in ordered]
        parts.append(Table(["part", "reason", "which means", "rows"], quarantine, left=3))
    on = [name for name in SCREENS if f"marked_{name}" in counts]
    screens = [[name, *(amount(counts[f"{what}_{name}"]) for what in ("marked", "dropped"))] for name in on]
    if screens:
        parts.append(Table(["screen of web texts", "hit", "dropped"], screens))
    return Section("What came in", parts, in_text=0)


def _places(found: Findings, out: Path) -> Section:
    docs = sorted(found.artifacts.glob("docs/*/index.html"))
    rows = [["this report with figures", str(out / "index.html")]]
    if found.params.report.review:
        rows += [[f"texts of {r} for a person to judge", str(out / f"review-{r}.html")] for r in found.rounds]
    rows += [[f"Data Docs of {path.parent.name}", str(path)] for path in docs] or [["Data Docs", MISSING]]
    rows.append(["runs and models in MLflow", "mlflow ui --backend-store-uri sqlite:///mlflow.db"])
    return Section("Where things are", [Table(["what", "where"], rows, left=2)])


def _examples(found: Findings, r: str, count: int) -> Section:
    generation = found.artifacts / "generations" / found.params.rounds[r].next
    examples = pick_examples(generation, found.artifacts / "shards", found.truth, count=count)
    png = figures.example_sheet(examples, title=f"Round {r}: web texts and synthetic captions")
    return Section(f"Examples of round {r}", [], [Picture(f"examples-{r}", png, "", on_page=False)], examples)


def _training(found: Findings) -> Section:
    return Section("Training", [], [Picture("losses", figures.loss_curves(found.histories), "Loss curves of every training")])


def _write(sections: list[Section], folder: Path) -> None:
    (folder / "figures").mkdir()
    for picture in (p for section in sections for p in section.pictures):
        (folder / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    (folder / "index.html").write_text(as_html(TITLE, sections), encoding="utf-8")
    (folder / "table.txt").write_text(as_text(TITLE, sections), encoding="utf-8")


def _kept(digest: RoundDigest, source: str) -> int:
    return digest.reasons[source, "kept"]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
