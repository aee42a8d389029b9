"""What came of a row of an ablation: its texts, their truth where the sample world knows it, the model's metrics, and what it gains."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from blip_core.ablations.graph import Own
from blip_core.config.evaluation import CompareConfig
from blip_core.config.params import Params
from blip_core.evaluation.task_metrics import Evidence, of_task, task_metrics
from blip_core.files.content import read_json
from blip_core.sample.truth import TrueNoise, caption_truth, load_truth, synthetic_noise, web_noise
from blip_core.selection.choice import Rule
from blip_core.selection.outcome import NoiseRatio
from blip_core.tables.captions import kept, read_table, read_tables
from blip_core.tables.manifest import read_manifest

ENDS = ("value", "low", "high")  # of a metric
Compare = Callable[..., dict[str, Any]]  # stages.compare.paired_comparison, which stands above this module
METRICS = {"tr_r1": "text R@1", "ir_r1": "image R@1", "cider": "CIDEr"}  # of every row; those of tasks besides


def facts_of(params: Params, own: dict[str, str]) -> dict[str, Any]:
    """The sizes that a reader of the tables must know, and the md5 of the project's `own` data, where the arms ran on that."""
    optim = params.pretrain.optim
    tests = {"bootstrap": params.compare.bootstrap, "confidence": params.compare.confidence}
    shares = {"human_share": params.pretrain.human_share, "synthetic_share": params.pretrain.synthetic_share}
    return {
        "sample": params.sample.model_dump(exclude={"seed"}),
        "steps": optim.steps,
        "batch_size": optim.batch_size,
        **shares,
        **tests,
        **({"data": own} if own else {}),
    }


def joined(files: list[Path]) -> dict[str, Any]:
    """Results of the same arms in one: seeds that ran side by side, or on several machines.

    ValueError where sizes or arms differ from those of the first file, or two files tell differently of one seed.
    """
    first, *others = ((file, read_results(file)) for file in files)
    results = first[1] | {"seeds": dict(first[1]["seeds"])}
    for file, found in others:
        for part in ("facts", "rows", "baselines", "arms"):
            if found[part] != results[part]:
                here, there = _apart(found[part], results[part])
                raise ValueError(f"{file}: its {part} are {here}, those of {first[0]} are {there}; join what ran alike")
        for seed, there in found["seeds"].items():
            if results["seeds"].setdefault(seed, there) != there:
                raise ValueError(f"{file}: has other results of seed {seed} than the files before it; name one of them alone")
    return results


def _apart(one: object, other: object) -> tuple[object, object]:
    """Of two mappings the entries that are not the same in both."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    return {k: v for k, v in one.items() if other.get(k) != v}, {k: v for k, v in other.items() if one.get(k) != v}


def read_results(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ValueError(f"{file}: no such file; `blip ablate` writes it")
    return read_json(file)


def metrics_of(results: dict[str, Any]) -> dict[str, str]:
    """What the tables show: name to words, those of tasks by their names."""
    found = [row["metrics"] for seed in results["seeds"].values() for row in seed["rows"].values()]
    return METRICS | {metric: metric for metrics in found for metric in metrics if metric not in METRICS}


def measure_row(clone: Path, model: str, own: Own, params: Params, *, against: dict[str, Any], compare: Compare) -> dict[str, Any]:
    """`against`: row to what was found of it."""
    evaluation, measured = own.path(f"artifacts/evaluations/{model}"), own.path(f"artifacts/metrics/models/{model}/evaluate.json")
    found: dict[str, Any] = {"evaluation": evaluation, "measured": str(Path(measured).parent)}
    metrics = json.loads((clone / evaluation / "metrics.json").read_text()) | task_metrics(clone / found["measured"])
    of_tasks = [name for name in metrics if of_task(name) and f"{name}_low" in metrics]
    found["metrics"] = {m: {end: metrics[m if end == "value" else f"{m}_{end}"] for end in ENDS} for m in (*METRICS, *of_tasks)}
    return found | {
        "true_captions": _true_captions(clone, evaluation),
        "texts": _texts(clone, model, own, params),
        "against": {row: _differences(clone, found, there, params, compare) for row, there in against.items()},
    }


def _differences(clone: Path, ours: dict[str, Any], theirs: dict[str, Any], params: Params, compare: Compare) -> dict[str, Any]:
    """Paired, of each metric that both have: an arm may have other tasks."""
    metrics = tuple(metric for metric in ours["metrics"] if metric in theirs["metrics"])
    cfg = CompareConfig(metrics=metrics, margin={}, bootstrap=params.compare.bootstrap, confidence=params.compare.confidence)
    pair = [Evidence(clone / one["evaluation"], clone / one["measured"]) for one in (ours, theirs)]
    tests = compare(*pair, cfg=cfg, seed=params.seed)["metrics"]
    return {metric: {k: test[k] for k in ("difference", "low", "high")} for metric, test in tests.items()}


def _true_captions(clone: Path, evaluation: str) -> float | None:
    truth = load_truth(clone / "data")
    return caption_truth(read_table(clone / evaluation / "captions.parquet"), truth) if truth else None


def _texts(clone: Path, model: str, own: Own, params: Params) -> dict[str, dict[str, Any]]:
    """Of each source of the crawl that the model saw: texts before and after the choice, the noise ratio of its round, and the shares
    that are false."""
    cfg = params.models[model]
    folder = clone / own.path(f"artifacts/generations/{cfg.generation}")
    table, ratio = read_tables(folder), NoiseRatio(Rule.of(folder)) if "rule" in read_manifest(folder) else None
    if ratio:
        ratio.add(table, where=str(folder))
    truth, found = load_truth(clone / "data"), {}
    for source, noise in (("web", web_noise), ("synthetic", synthetic_noise)):
        rows = table.filter(pc.equal(table["source"], source))
        if source in cfg.sources.split(",") and rows.num_rows:
            known = noise(rows, truth) if truth else TrueNoise(Counter())
            counts = {"texts": rows.num_rows, "kept": kept(rows).num_rows, "rejected": ratio.of(source) if ratio else 0.0}
            found[source] = {**counts, "false_before": known.before, "false_kept": known.after}
    return found
