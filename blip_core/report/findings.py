"""What the artifacts of a finished chain hold, read once for the report. Nothing is computed here but counts and true noise."""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_core.config.params import Params
from blip_core.report.digest import RoundDigest, digest_round
from blip_core.sample.truth import Truth, caption_truth, load_truth
from blip_core.tables.captions import read_table
from blip_core.tables.manifest import content_hash
from blip_core.tables.stopped import stopped

SPLITS = ("web", "train", "val", "test")


@dataclass(frozen=True)
class Findings:
    """`rounds` and what follows are by round, `models` and `true_captions` by model; other dicts are the files as they are.

    What was not run, since the rounds stopped, stands in `not_run` alone.
    """

    artifacts: Path
    params: Params
    truth: Truth | None  # None: a real crawl
    rounds: dict[str, RoundDigest]
    gates: dict[str, dict[str, Any]]
    descriptions: dict[str, dict[str, Any]]
    decisions: dict[str, dict[str, Any]]
    makers: dict[str, dict[str, list[tuple[str, str]]]]  # captioners and filters, each its name in params.yaml and its content hash
    contents: dict[str, str]  # content hash by generation
    filters: dict[str, list[dict[str, Any]]]  # with their metrics and curves, as calibrate wrote them; the first decides
    models: dict[str, dict[str, Any]]
    true_captions: dict[str, float | None]  # share of the captions that are true of their image
    not_run: dict[str, str]  # rounds and models, and why
    comparison: dict[str, Any]
    registration: dict[str, Any]
    ingest: dict[str, Any]
    quarantine: Counter[tuple[str, str]]  # (part, reason)
    histories: dict[str, list[dict[str, float]]]  # by training


def read_findings(artifacts: Path, data: Path, params: Params) -> Findings:
    """ValueError names a file that is missing or broken and the stage that makes it."""
    truth, metrics = load_truth(data), artifacts / "metrics"
    made = {r: artifacts / "generations" / cfg.next for r, cfg in params.rounds.items()}
    made |= {m: artifacts / "evaluations" / m for m in params.models}
    not_run = {name: reason for name, path in made.items() if (reason := stopped(path))}
    rounds = {r: cfg for r, cfg in params.rounds.items() if r not in not_run}
    evaluations = {m: made[m] for m in params.models if m not in not_run}
    quarantine = read_table(_required(artifacts / "quarantine.parquet", "ingest"), ["part", "reason"])
    return Findings(
        artifacts=artifacts,
        params=params,
        truth=truth,
        rounds={r: _digest(artifacts, r, cfg.next, truth) for r, cfg in rounds.items()},
        gates={r: _read_json(metrics / f"gate-{r}.json", f"gate@{r}") for r in rounds},
        descriptions={r: _read_json(artifacts / "rounds" / r / "description.json", f"describe@{r}") for r in rounds},
        decisions={r: _read_json(metrics / f"decide-{r}.json", f"decide@{r}") for r in rounds},
        makers={r: _makers(artifacts / "rounds" / r, r, params) for r in rounds},
        contents={g: content_hash(artifacts / "generations" / g) for g in ("g0", *(cfg.next for cfg in rounds.values()))},
        filters={r: _read_json(artifacts / "rounds" / r / "calibration.json", f"calibrate@{r}")["filters"] for r in rounds},
        models={m: _read_json(folder / "metrics.json", f"evaluate@{m}") for m, folder in evaluations.items()},
        true_captions={m: _true_captions(folder, m, truth) for m, folder in evaluations.items()},
        not_run=not_run,
        comparison=_read_json(artifacts / "compare.json", "compare"),
        registration=_read_json(artifacts / "registration.json", "register"),
        ingest=_read_json(metrics / "ingest.json", "ingest"),
        quarantine=Counter(zip(quarantine["part"].to_pylist(), quarantine["reason"].to_pylist(), strict=True)),
        histories=_histories(artifacts / "history", list(rounds), list(evaluations)),
    )


def _digest(artifacts: Path, r: str, generation: str, truth: Truth | None) -> RoundDigest:
    folder = _required(artifacts / "generations" / generation, f"assemble@{r}")
    controls = _required(artifacts / "rounds" / r / "scores" / "controls.parquet", f"score@{r}")
    return digest_round(folder, controls, _required(artifacts / "rounds" / r / "calibration.json", f"calibrate@{r}"), truth)


def _makers(folder: Path, r: str, params: Params) -> dict[str, list[tuple[str, str]]]:
    captions = _read_json(folder / "captions" / "manifest.json", f"caption@{r}")["captioners"]
    scores = _read_json(folder / "scores" / "manifest.json", f"score@{r}")["filters"]
    writers = [writer.captioner for writer in params.caption.writers]
    return {
        "captioners": list(dict.fromkeys(zip(writers, captions, strict=False))),
        "filters": list(zip(params.score.filters, scores, strict=False)),
    }


def _true_captions(evaluation: Path, model: str, truth: Truth | None) -> float | None:
    path = _required(evaluation / "captions.parquet", f"evaluate@{model}")
    return None if truth is None else caption_truth(read_table(path, ["key", "caption"]), truth)


def _histories(folder: Path, rounds: list[str], models: list[str]) -> dict[str, list[dict[str, float]]]:
    """Of these trainings; files of others may lie there from earlier settings."""
    made_by = {f"pretrain-{m}": f"pretrain@{m}" for m in models}
    made_by |= {f"{kind}-{r}": f"tune_{kind}@{r}" for r in rounds for kind in ("captioner", "filter")}
    histories = {}
    for name, stage in made_by.items():
        with _required(folder / f"{name}.csv", stage).open(newline="") as f:
            histories[name] = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    return histories


def _required(path: Path, stage: str) -> Path:
    if not path.exists():
        raise ValueError(f"{path}: missing; stage {stage} makes it: run `dvc repro {stage}`")
    return path


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    try:
        return json.loads(_required(path, stage).read_text())
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not valid JSON ({e}); stage {stage} makes it: run `dvc repro --force {stage}`") from None
