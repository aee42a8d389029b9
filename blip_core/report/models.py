"""The models on the held-out test images, as a section of the report."""

from typing import Any

from blip_core.report import figures
from blip_core.report.arms import arm_row, arm_words
from blip_core.report.findings import Findings
from blip_core.report.page import Picture, Section, Table
from blip_core.report.wording import METRICS, MISSING, amount, is_share, listed, metric_interval, metric_value, percent

_TOKENS = {"ptb": "by words (PTB)", "characters": "by characters"}
SHOWN = ("tr_r1", "ir_r1", "itm_tr_r1", "itm_ir_r1", "cider")  # of every model


def models_section(found: Findings) -> Section:
    cfg = found.params.evaluate
    header = ["model", *(METRICS[m].replace(" (", "\n(") for m in SHOWN), "captions\ntrue"]
    rows = [
        [name, *(metric_interval(metric, metrics) for metric in SHOWN), percent(found.true_captions[name])]
        for name, metrics in found.models.items()
    ]
    one = next(iter(found.models.values()))
    rows += [arm_row(arm, SHOWN) for arm in found.arms]
    rows.append(["by chance", *(metric_value(metric, one.get(f"{metric}_chance")) for metric in SHOWN), MISSING])
    tokens = _TOKENS[one.get("tokenization", "ptb")]
    about = (
        f"Held-out test images, {cfg.confidence:.0%} bootstrap intervals. text R@1: an image finds its own text first; "
        "image R@1: a text finds its image. "
        f"ITC: by similarity; ITM: the {cfg.rerank} best of it ranked anew. CIDEr: 1.00 is 100 points, {tokens}."
    )
    picture = Picture("models", figures.metric_bars(_bars(found)), "Metrics of every model with intervals")
    described = "\n".join(_describe(name, found) for name in found.models)
    return Section("The models", [described, Table(header, rows), "\n".join([about, *arm_words(found.arms)]), *_captions(found)], [picture])


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
    params, cfg = found.params, found.params.models[name]
    compared = found.comparison or {"challenger": params.challenger, "baselines": params.baselines.split(",")}
    part = "challenger" if name == compared["challenger"] else "baseline" if name in compared["baselines"] else "not compared"
    made = next((f", made by round {r}" for r, round_ in params.rounds.items() if round_.next == cfg.generation), ", as ingested")
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
