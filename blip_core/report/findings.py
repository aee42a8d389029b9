"""What the artifacts of a chain hold, as far as it came, read once for the report. Nothing is computed here but counts and true noise."""

import csv
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from blip_core.checks.docs import read_verdict
from blip_core.config.params import Params
from blip_core.files.content import read_json
from blip_core.report.arms import Arm, read_arms
from blip_core.report.digest import RoundDigest, digest_round
from blip_core.report.tasks import Measured
from blip_core.sample.truth import Truth, caption_truth, load_truth
from blip_core.tables.captions import read_table
from blip_core.tables.manifest import content_hash
from blip_core.tables.stopped import stopped

BROKEN = "contract"  # the check that fails where a table can't be read (blip_core/checks/expectations.py)
SPLITS = ("web", "train", "val", "test")


class Maker(NamedTuple):
    """A captioner or filter at work in a round."""

    name: str  # in params.yaml
    identity: str  # content hash
    words: str  # with its prompt, or what it is an adapter of


@dataclass(frozen=True)
class Verdict:
    """What the checks of a stage say of a generation."""

    stage: str  # validate, gate@r1
    generation: str
    docs: Path  # the folder of its Data Docs
    checks: list[dict[str, Any]] | None  # None: it was not checked as it is now

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [c for c in self.checks or [] if not c["passed"]]


@dataclass(frozen=True)
class Findings:
    """`rounds` and what follows are by round, `models` and `true_captions` by model; other dicts are the files as they are, empty where
    there is none.

    What was not run, since the rounds stopped, stands in `not_run` alone.
    """

    artifacts: Path
    params: Params
    truth: Truth | None  # None: a real crawl
    verdicts: list[Verdict]  # in the order of the chain, of generations that are there
    rounds: dict[str, RoundDigest]  # that have made their generation
    gates: dict[str, dict[str, Any]]
    descriptions: dict[str, dict[str, Any]]
    decisions: dict[str, dict[str, Any]]
    makers: dict[str, dict[str, list[Maker]]]  # captioners and filters
    contents: dict[str, str]  # content hash by generation
    filters: dict[str, list[dict[str, Any]]]  # with their metrics and curves, as calibrate wrote them; the first decides
    models: dict[str, dict[str, Any]]
    true_captions: dict[str, float | None]  # share of the captions that are true of their image
    tasks: Measured  # of models on tasks
    arms: list[Arm]  # of an ablation that fits
    not_run: dict[str, str]  # rounds and models, and why
    comparison: dict[str, Any]
    registration: dict[str, Any]
    ingest: dict[str, Any]
    quarantine: Counter[tuple[str, str]]  # (part, reason)
    histories: dict[str, list[dict[str, float]]]  # by training
    missing: dict[Path, str]  # what the chain has yet to make, and by which stage

    def measured(self, model: str, metric: str) -> float | None:
        """A metric of `evaluate`, or of a task, as vqa.accuracy."""
        task, _, name = metric.rpartition(".")
        found = self.tasks.get(task, {}).get(model, {}) if task else self.models[model]
        return found.get(name)

    def generation(self, name: str) -> Path:
        return self.artifacts / "generations" / name


@dataclass
class _Files:
    """The artifacts; notes what is not there, and which stage makes it."""

    folder: Path
    outdated: frozenset[Path]  # as if they were not there
    missing: dict[Path, str] = field(default_factory=dict)

    def have(self, name: str, stage: str) -> bool:
        path = self.folder / name
        if path.exists() and self.outdated.isdisjoint([path, *path.parents]):
            return True
        self.missing[path] = stage
        return False

    def json(self, name: str, stage: str) -> dict[str, Any]:
        """Empty where there is none. ValueError when it is broken."""
        if not self.have(name, stage):
            return {}
        try:
            return json.loads((self.folder / name).read_text())
        except json.JSONDecodeError as e:
            path = self.folder / name
            raise ValueError(f"{path}: not valid JSON ({e}); stage {stage} makes it: run `dvc repro --force {stage}`") from None


def read_findings(
    artifacts: Path, data: Path, params: Params, *, outdated: frozenset[Path] = frozenset(), ablations: Path | None = None
) -> Findings:
    """`outdated`: files and folders that are of an earlier run, and count as not there. `ablations`: the file of `blip ablate`, which need
    not be there. ValueError names a file that is broken, and the stage that makes it."""
    files, truth = _Files(artifacts, outdated), load_truth(data)
    made = {r: f"generations/{cfg.next}" for r, cfg in params.rounds.items()} | {m: f"evaluations/{m}" for m in params.models}
    not_run = {n: reason for n, path in made.items() if artifacts / path not in outdated and (reason := stopped(artifacts / path))}
    tried = {r: cfg for r, cfg in params.rounds.items() if r not in not_run}
    makers = {"g0": "ingest"} | {cfg.next: f"assemble@{r}" for r, cfg in tried.items()}
    generations = [g for g, stage in makers.items() if files.have(f"generations/{g}", stage)]
    verdicts = _verdicts(artifacts, generations, params)
    broken = {v.generation for v in verdicts if any(c["name"] == BROKEN for c in v.failed)}
    rounds = {r: cfg for r, cfg in tried.items() if _have_round(files, r) and cfg.next in generations and cfg.next not in broken}
    models = [m for m in params.models if m not in not_run and _have_model(files, m)]
    metrics = {m: files.json(f"evaluations/{m}/metrics.json", f"evaluate@{m}") for m in models}
    comparison = files.json("compare.json", "compare")
    challenger = metrics.get(comparison.get("challenger", params.challenger), {})
    return Findings(
        artifacts=artifacts,
        params=params,
        truth=truth,
        verdicts=verdicts,
        rounds={r: _digest(artifacts, r, cfg.next, truth) for r, cfg in rounds.items()},
        gates=_known({r: files.json(f"metrics/gate-{r}.json", f"gate@{r}") for r in tried}),
        descriptions=_known({r: files.json(f"rounds/{r}/description.json", f"describe@{r}") for r in tried}),
        decisions=_known({r: files.json(f"metrics/decide-{r}.json", f"decide@{r}") for r in tried}),
        makers={r: _makers(artifacts / "rounds" / r, params) for r in rounds},
        contents={g: content_hash(artifacts / "generations" / g) for g in generations},
        filters={r: found["filters"] for r in tried if (found := files.json(f"rounds/{r}/calibration.json", f"calibrate@{r}"))},
        models=metrics,
        true_captions={m: _true_captions(artifacts / "evaluations" / m, truth) for m in models},
        tasks=_tasks(files, params, models),
        arms=read_arms(ablations, params, challenger) if ablations and truth else [],
        not_run=not_run,
        comparison=comparison,
        registration=files.json("registration.json", "register"),
        ingest=files.json("metrics/ingest.json", "ingest"),
        quarantine=_quarantine(files),
        histories=_histories(files, list(tried), [m for m in params.models if m not in not_run]),
        missing=files.missing,  # of all that is named above
    )


def _have_round(files: _Files, r: str) -> bool:
    """Whether all is there by which a round made its generation."""
    needed = {
        f"rounds/{r}/calibration.json": f"calibrate@{r}",
        f"rounds/{r}/captions/manifest.json": f"caption@{r}",
        f"rounds/{r}/scores/manifest.json": f"score@{r}",
        f"rounds/{r}/scores/controls.parquet": f"score@{r}",
    }
    return all([files.have(name, stage) for name, stage in needed.items()])  # noqa: C419  # all are looked for


def _have_model(files: _Files, model: str) -> bool:
    names = ("metrics.json", "captions.parquet")
    return all([files.have(f"evaluations/{model}/{name}", f"evaluate@{model}") for name in names])  # noqa: C419


def _tasks(files: _Files, params: Params, models: list[str]) -> Measured:
    return {
        task: by_model
        for task in params.tasks
        if (by_model := _known({m: files.json(f"metrics/models/{m}/task-{task}.json", f"evaluate_task@{task}-{m}") for m in models}))
    }


def _known(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: values for name, values in found.items() if values}


def _verdicts(artifacts: Path, generations: list[str], params: Params) -> list[Verdict]:
    judges = {"g0": "validate"} | {cfg.next: f"gate@{r}" for r, cfg in params.rounds.items()}
    found = []
    for name in generations:
        generation, docs = artifacts / "generations" / name, artifacts / "docs" / judges[name].replace("@", "-")
        found.append(Verdict(judges[name], name, docs, read_verdict(generation, docs, artifacts / "gates" / f"{name}.json")))
    return found


def _digest(artifacts: Path, r: str, generation: str, truth: Truth | None) -> RoundDigest:
    made = artifacts / "rounds" / r
    return digest_round(artifacts / "generations" / generation, made / "scores/controls.parquet", made / "calibration.json", truth)


def _makers(folder: Path, params: Params) -> dict[str, list[Maker]]:
    captions, scores = (read_json(folder / name / "manifest.json") for name in ("captions", "scores"))
    named = {"captioners": [writer.captioner for writer in params.caption.writers], "filters": params.score.filters}
    return {
        kind: list(dict.fromkeys(Maker(n, h, found.get("makers", {}).get(h, n)) for n, h in zip(named[kind], found[kind], strict=False)))
        for kind, found in (("captioners", captions), ("filters", scores))
    }


def _true_captions(evaluation: Path, truth: Truth | None) -> float | None:
    return None if truth is None else caption_truth(read_table(evaluation / "captions.parquet", ["key", "caption"]), truth)


def _quarantine(files: _Files) -> Counter[tuple[str, str]]:
    if not files.have("quarantine.parquet", "ingest"):
        return Counter()
    table = read_table(files.folder / "quarantine.parquet", ["part", "reason"])
    return Counter(zip(table["part"].to_pylist(), table["reason"].to_pylist(), strict=True))


def _histories(files: _Files, rounds: list[str], models: list[str]) -> dict[str, list[dict[str, float]]]:
    """Of these trainings; files of others may lie there from earlier settings."""
    made_by = {f"pretrain-{m}": f"pretrain@{m}" for m in models}
    made_by |= {f"{kind}-{r}": f"tune_{kind}@{r}" for r in rounds for kind in ("captioner", "filter")}
    histories = {}
    for name, stage in made_by.items():
        if files.have(f"history/{name}.csv", stage):
            with (files.folder / f"history/{name}.csv").open(newline="") as f:
                histories[name] = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(f)]
    return histories
