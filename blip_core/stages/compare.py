"""Is the challenger better than the baselines? Paired bootstrap tests over the same evaluation items."""

import hashlib
import logging
from collections.abc import Iterator, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.config.evaluation import CompareConfig
from blip_core.config.params import Params
from blip_core.evaluation.alarms import alarms, caption_facts, chance_levels
from blip_core.evaluation.bootstrap import Paired, Statistic, interval, mean, paired, sums_by_image
from blip_core.evaluation.metrics import bleu, bleu_counts
from blip_core.evaluation.task_metrics import Evidence, of_task, paired_task_tests
from blip_core.files.content import sha256_file, write_json
from blip_core.tables.captions import read_table
from blip_core.tables.stopped import newest_trained, stopped

BLEU = {f"bleu{n}": n - 1 for n in (1, 2, 3, 4)}  # corpus metrics: no mean over items, so they come from captions.parquet

logger = logging.getLogger(__name__)


def compare(
    evaluations: Path,
    challenger: str,
    baselines: str,
    out: Path,
    out_summary: Path,
    measured: Path,
    *,
    cfg: CompareConfig,
    params: Params,
    seed: int,
) -> str:
    """Compare evaluations/<challenger> with each of the comma-separated baselines and write the verdict to `out`; returns it in words.

    `measured` has a folder of metrics of each model, those of tasks among them; `out_summary` gets the challenger's metrics that must gain,
    and whether it is better. Where the rounds stopped before it, the newest model that was trained is the challenger.

    `better` holds only when every metric's gain lies above 0 with its whole interval, and no metric with a margin may have fallen
    by more than that, against every baseline, of which there is one. A challenger that is not better is no error: the verdict says why.
    """
    names = [name.strip() for name in baselines.split(",") if name.strip()]
    if not names or challenger in names or len(set(names)) < len(names):
        raise ValueError(f"baselines: expected different names, comma-separated, without the challenger {challenger!r}; got {baselines!r}")
    asked = challenger
    challenger, instead_because = newest_trained(evaluations, asked, params)
    names = [name for name in names if name != challenger and not stopped(evaluations / name)]
    everyone = [challenger, *names]
    for name in everyone:
        if not (evaluations / name).is_dir():
            raise ValueError(f"{evaluations / name}: no such evaluation; run the stage evaluate of model {name!r} first")
    ours = Evidence(evaluations / challenger, measured / challenger)
    results = {name: paired_comparison(ours, Evidence(evaluations / name, measured / name), cfg=cfg, seed=seed) for name in names}
    reasons = [f"against {name}: {reason}" for name, result in results.items() for reason in result["reasons"]]
    if not results:
        reasons = [f"no baseline but {challenger} itself was trained, so there is none to be better than"]
    verdict = {
        "challenger": challenger,
        "asked": asked,
        "instead_because": instead_because,
        "better": not reasons,
        "evaluation": evaluation_hash(evaluations / challenger),
        "models": {name: facts_of(evaluations / name, bootstrap=cfg.bootstrap, confidence=cfg.confidence, seed=seed) for name in everyone},
        "baselines": {name: result["metrics"] for name, result in results.items()},
        "reasons": reasons,
    }
    write_json(verdict, out)
    gains = {m: test["challenger"] for result in results.values() for m, test in result["metrics"].items() if m in cfg.metrics}
    write_json({"better": verdict["better"], **gains}, out_summary)
    logger.info("%s", "\n".join(_outcome(verdict)))
    return "\n".join([f"{next(_outcome(verdict))}.", *(f"  - {reason}" for reason in reasons)])


def paired_tests(
    challenger: Evidence, baseline: Evidence, metrics: list[str], *, split: str = "test", bootstrap: int, confidence: float, seed: int
) -> dict[str, Paired]:
    """Of each metric, two models against each other. ValueError when they were measured on different items, or one lacks a metric.

    A task's resamples are those of its `measure.bootstrap`.
    """
    folders = [e.evaluation if split == "test" else e.evaluation / split for e in (challenger, baseline)]
    columns = _columns(folders[0], folders[1], [metric for metric in metrics if not of_task(metric)])
    how: dict[str, Any] = {"resamples": bootstrap, "confidence": confidence, "seed": seed}
    tests = {m: paired(ours, theirs, statistic, **how) for m, ours, theirs, statistic in columns}
    tasks = [metric for metric in metrics if of_task(metric)]
    tests |= paired_task_tests(challenger.measured, baseline.measured, tasks, split=split, confidence=confidence)
    return {metric: tests[metric] for metric in metrics}


def facts_of(evaluation: Path, *, bootstrap: int, confidence: float, seed: int) -> dict[str, Any]:
    """Of one model: how various its captions are, its R@1 with interval and chance level, and `alarms`, name to words."""
    references, captions = _captions(evaluation / "captions.parquet")
    chance = chance_levels([len(texts) for texts in references.values()])
    facts = caption_facts(list(captions.values()), list(references.values()))
    path = evaluation / "items.parquet"
    table = read_table(path, ["metric", "item", "image", "value"])
    for metric in ("tr_r1", "ir_r1"):
        columns = _sums(path, _items(path, table, metric))
        found = interval(columns, resamples=bootstrap, confidence=confidence, seed=seed)
        facts |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high, f"{metric}_chance": chance[metric]}
    return facts | {"alarms": alarms(facts)}


def paired_comparison(challenger: Evidence, baseline: Evidence, *, cfg: CompareConfig, seed: int) -> dict[str, Any]:
    """Compare two models: {"better": bool, "metrics": {metric: …}, "reasons": one sentence per failed check}.

    ValueError when they are of different items or lack a metric: then nothing can be said.
    """
    references, _ = _captions(challenger.evaluation / "captions.parquet")
    metrics, reasons, chance = {}, [], chance_levels([len(texts) for texts in references.values()])
    tests = paired_tests(challenger, baseline, _roles(cfg), bootstrap=cfg.bootstrap, confidence=cfg.confidence, seed=seed)
    for metric, test in tests.items():
        gain = metric in cfg.metrics
        passed = test.low > 0 if gain else test.low >= -cfg.margin[metric]
        metrics[metric] = {
            **vars(test),
            "chance": chance.get(metric.removeprefix("itm_")),
            "role": "gain" if gain else "margin",
            "passed": passed,
        }
        if not passed:
            fault = "is not shown to gain" if gain else f"may have fallen by more than {cfg.margin[metric]:g}"
            reasons.append(f"{metric} {fault}: {_change(test)} ({cfg.confidence:.0%} interval)")
    return {"better": not reasons, "metrics": metrics, "reasons": reasons}


def evaluation_hash(evaluation: Path) -> str:
    """Identity of what the tests read, so that a verdict can be held against the challenger's evaluation."""
    return hashlib.sha256("".join(sha256_file(evaluation / f"{n}.parquet") for n in ("items", "captions")).encode()).hexdigest()


def _roles(cfg: CompareConfig) -> list[str]:
    """The metrics to test; one that must gain needs no margin besides."""
    return list(dict.fromkeys([*cfg.metrics, *cfg.margin]))


def _change(test: Paired) -> str:
    return f"{test.baseline:.4f} -> {test.challenger:.4f}, change {test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]"


def _outcome(verdict: dict[str, Any]) -> Iterator[str]:
    """The verdict in words, a line for each test."""
    names = ", ".join(verdict["baselines"]) or "any baseline"
    yield f"{verdict['challenger']} is {'better than' if verdict['better'] else 'NOT shown to be better than'} {names}"
    for name, metrics in verdict["baselines"].items():
        for metric, v in metrics.items():
            test = Paired(*(v[field.name] for field in fields(Paired)))
            chance = "" if v["chance"] is None else f", chance {v['chance']:.4f}"
            yield f"  {name}: {metric} ({v['role']}) {_change(test)}, p={test.p:.4f}{chance}: {'passed' if v['passed'] else 'FAILED'}"
    for name, facts in verdict["models"].items():
        for words in facts["alarms"].values():
            yield f"  {name}: {words}"


def _columns(challenger: Path, baseline: Path, metrics: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray, Statistic]]:
    """For each metric what the bootstrap draws from: a row per image for both models, in the same order of images."""
    captions = _same_captions(challenger / "captions.parquet", baseline / "captions.parquet")
    if any(metric in BLEU for metric in metrics):
        counts = [bleu_counts(*texts) for texts in captions]
    paths = [folder / "items.parquet" for folder in (challenger, baseline)]
    tables = [read_table(path, ["metric", "item", "image", "value"]) for path in paths]
    for metric in metrics:
        if metric in BLEU:
            yield metric, counts[0], counts[1], _bleu_up_to(BLEU[metric])
        else:
            ours, theirs = (_items(path, table, metric) for path, table in zip(paths, tables, strict=True))
            _check_same(metric, paths, set(ours), set(theirs))
            yield metric, _sums(paths[0], ours), _sums(paths[1], theirs), mean


def _bleu_up_to(place: int) -> Statistic:
    return lambda sums: bleu(sums)[..., place]


def _items(path: Path, table: pa.Table, metric: str) -> dict[tuple[str, str], float]:
    """(item, image) to value for one metric."""
    rows = table.filter(pc.equal(table["metric"], metric))
    if not rows.num_rows:
        known = sorted(pc.unique(table["metric"]).to_pylist())
        raise ValueError(f"{path}: no items of metric {metric!r}; it has {known}: correct compare.metrics and compare.margin")
    found = dict(zip(zip(rows["item"].to_pylist(), rows["image"].to_pylist(), strict=True), rows["value"].to_pylist(), strict=True))
    if len(found) < rows.num_rows:
        raise ValueError(f"{path}: {rows.num_rows - len(found)} items of {metric} occur twice; evaluate that model again")
    return found


def _sums(path: Path, values: dict[tuple[str, str], float]) -> np.ndarray:
    try:
        return sums_by_image(np.array(list(values.values()), dtype=np.float64), [image for _, image in values])
    except ValueError as e:
        raise ValueError(f"{path}: {e}; evaluate that model again") from None


def _same_captions(*paths: Path) -> list[tuple[dict[str, list[str]], dict[str, str]]]:
    """What `_captions` reads of each file. ValueError unless all have the same references."""
    found = [_captions(path) for path in paths]
    _check_same("captions", list(paths), *({(key, *texts) for key, texts in references.items()} for references, _ in found))
    return found


def _captions(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and caption by key, keys sorted."""
    table = read_table(path, ["key", "caption", "references"]).sort_by("key").to_pydict()
    captions = dict(zip(table["key"], table["caption"], strict=True))
    if len(captions) < len(table["key"]):
        raise ValueError(f"{path}: {len(table['key']) - len(captions)} images occur twice; evaluate that model again")
    return dict(zip(table["key"], table["references"], strict=True)), captions


def _check_same(what: str, paths: list[Path], ours: Set[tuple[str, ...]], theirs: Set[tuple[str, ...]]) -> None:
    """ValueError naming the items (their first field) that only one of the evaluations has."""
    if ours == theirs:
        return
    first, second = sorted({item[0] for item in ours - theirs}), sorted({item[0] for item in theirs - ours})
    raise ValueError(
        f"{paths[0]} and {paths[1]} hold different items of {what}: {len(first)} only in the first {first[:3]}, {len(second)} only in the "
        f"second {second[:3]}; evaluate both models on the same held-out images and texts"
    )
