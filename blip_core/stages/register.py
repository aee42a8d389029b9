"""Make a version in the MLflow registry: the model, ready to serve, with where it comes from and how it was measured."""

import base64
import hashlib
import io
import json
import os
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.config.delivery import RegisterConfig
from blip_core.config.evaluation import CompareConfig
from blip_core.config.params import Params
from blip_core.evaluation.task_metrics import Evidence, task_metrics
from blip_core.files.atomic import new_folder
from blip_core.files.content import write_json
from blip_core.runtime.installed import PACKAGE, SERVED, repository_file
from blip_core.serving.options import CALIBRATION, choose, defaults, packed_settings
from blip_core.stages.compare import evaluation_hash, paired_comparison
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import read_makers
from blip_core.tracking.champion import CANDIDATE, CHALLENGER, CHAMPION, TEST, crown, describe, withdrawn
from blip_core.tracking.passes import with_intervals
from blip_core.tracking.provenance import MAKERS, provenance, read_lock, rebuilding, stale, who
from blip_core.tracking.registry import Registry, open_registry, signature
from blip_core.weights.checkpoint import model_hash
from blip_core.weights.load import read_config

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# that serving imports
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pyarrow", "pydantic", "pyyaml", "pillow", "simplejpeg")
OF_OTHERS = ("transformers", "httpx", "stamina")  # and of a model of others


def register(
    models: Path,
    evaluations: Path,
    measured: Path,
    generations: Path,
    gates: Path,
    shards: Path,
    comparison: Path,
    out: Path,
    *,
    cfg: RegisterConfig,
    compare_cfg: CompareConfig,
    params: Params,
    seed: int,
) -> str:
    """Register the model that `comparison` is of as `challenger`, and as `champion` when it beats the baselines and, by a paired test,
    the champion; returns in words which it is, and why.

    With cfg.approval it becomes `candidate` instead, and a person makes it champion. A model that is registered already keeps its
    version. Runs in the project's root, where dvc.lock and git are read.
    """
    root, verdict = Path.cwd(), _read_json(comparison)
    if verdict.get("challenger") not in params.models:
        raise ValueError(f"{comparison}: compares {verdict.get('challenger')!r}; models has {sorted(params.models)}: run compare again")
    learned_from = params.models[verdict["challenger"]].generation
    model, evaluation = models / verdict["challenger"], evaluations / verdict["challenger"]
    evidence = Evidence(evaluation, measured / verdict["challenger"])
    generation, gate = generations / learned_from, gates / f"{learned_from}.json"
    require_gate(gate, generation)
    _check_verdict(verdict, comparison, evaluation)
    _check_fresh(root, [model, evaluation, comparison, generation, gate, shards])
    identity = model_hash(model)
    with open_registry(cfg.name, root) as registry:
        registry.close_runs(identity)
        version = registry.find("model_hash", identity)
        if version is None:
            tags = {"model_hash": identity, "registered_by": who(root), "torch": installed("torch")}
            tags |= provenance(params.model_dump_json(), model=model, generation=generation, shards=shards, root=root)
            files = rebuilding(params, root=root, gate=gate, compare=comparison) | {MAKERS: json.dumps(read_makers(generation))}
            version = registry.add(tags=tags, files=files, **package(model, params))
        registry.tag(version, {"gate": "passed"})
        _record(registry, version, evidence, verdict)
        registry.point(CHALLENGER, version)
        reasons = _promote(registry, str(version.version), evidence, verdict, cfg=cfg, compare_cfg=compare_cfg, seed=seed, by=who(root))
        describe(registry, version.version)
        aliases = registry.aliases()
    facts = {"reasons": reasons, "model_hash": identity, "model": verdict["challenger"]}
    write_json(_standing(version, aliases) | facts, out)
    standing = next((alias for alias in (CHAMPION, CANDIDATE) if aliases.get(alias) == str(version.version)), "not champion")
    return f"Version {version.version} of {cfg.name} is {standing}: {reasons[0]}."


def _standing(version: "ModelVersion", aliases: dict[str, str]) -> dict[str, Any]:
    champion, number = aliases.get(CHAMPION), str(version.version)
    return {
        "name": version.name,
        "version": int(number),
        "promoted": champion == number,
        "candidate": aliases.get(CANDIDATE) == number,
        "champion_version": int(champion) if champion else None,
        "run_id": version.run_id,
    }


def _promote(
    registry: Registry,
    number: str,
    evidence: Evidence,
    verdict: dict[str, Any],
    *,
    cfg: RegisterConfig,
    compare_cfg: CompareConfig,
    seed: int,
    by: str,
) -> list[str]:
    """Make the version champion, or candidate, if it shall be; says why, or why not."""
    version, champion = registry.version(number), registry.at(CHAMPION)
    better, reasons, test = promotion(registry, version, champion, evidence, verdict, cfg=compare_cfg, seed=seed)
    if champion and champion.version == version.version:
        return reasons
    registry.tag(version, {"champion_test": json.dumps(test)})
    standing, taken = CHAMPION if better else "", withdrawn(version)
    title = f"{cfg.name}/{version.version}"
    if better and taken:
        standing, reasons = (
            "",
            [*reasons, f"but not promoted: {taken.how} {taken.at[:19]}Z by {taken.by}: {taken.why}; `blip approve {title}` does"],
        )
    elif better and cfg.approval:
        standing, reasons = CANDIDATE, [*reasons, f"register.approval is on: `blip approve {title}` makes it champion"]
    if standing == CHAMPION:
        crown(registry, version, instead_of=champion, by=by, how=TEST, why="; ".join(reasons))
    elif standing == CANDIDATE:
        registry.point(CANDIDATE, version)
    elif registry.aliases().get(CANDIDATE) == number:
        registry.unpoint(CANDIDATE)
    return reasons


def promotion(
    registry: Registry,
    version: "ModelVersion",
    champion: "ModelVersion | None",
    evidence: Evidence,
    verdict: dict[str, Any],
    *,
    cfg: CompareConfig,
    seed: int,
) -> tuple[bool, list[str], dict[str, Any]]:
    """Whether this version is shown to be better than the champion, why, and the test: {"against", "better", "metrics"}."""
    against = {"against": str(champion.version) if champion else "", "better": False}
    if verdict.get("better") is not True:
        return False, ["not better than the baselines", *verdict.get("reasons", [])], against
    if champion is None:
        return True, ["better than the baselines, and there was no champion"], {**against, "better": True}
    if champion.version == version.version:
        return True, ["better than the baselines, and champion already"], against
    title = f"champion, version {champion.version}"
    with tempfile.TemporaryDirectory() as folder:
        stored = registry.kept(champion, "evaluation", Path(folder))
        of_tasks = registry.kept(champion, "measured", Path(folder)) or Path(folder) / "measured"
        if stored is None:
            reason = f"not comparable with the {title}: no evaluation is kept with it; evaluate that model and register it again"
            return False, [reason], against
        try:
            paired = paired_comparison(evidence, Evidence(stored, of_tasks), cfg=cfg, seed=seed)
        except ValueError as e:
            reason = str(e).replace(str(stored), "its evaluation").replace(str(of_tasks), "its metrics of tasks")
            return False, [f"not comparable with the {title}: {reason}; then register it again"], against
    better = paired["better"] is True
    reasons = [f"{'' if better else 'not '}better than the {title}", *paired["reasons"]]
    return better, reasons, {**against, "better": better, "metrics": brief(paired["metrics"])}


def brief(metrics: dict[str, Any]) -> dict[str, Any]:
    """Of each test what a reader wants: the change, its interval and the outcome."""
    return {name: {k: test[k] for k in ("difference", "low", "high", "role", "passed")} for name, test in metrics.items()}


def _check_verdict(verdict: dict[str, Any], comparison: Path, evaluation: Path) -> None:
    """The comparison must be of this very evaluation."""
    if verdict.get("evaluation") != evaluation_hash(evaluation):
        raise ValueError(f"{comparison}: compares another state of {evaluation} than the one there now; run compare again")


def _check_fresh(root: Path, inputs: list[Path]) -> None:
    """Where DVC made the inputs, none of them may come from something that was made anew since (`dvc repro -s` allows that)."""
    lock = read_lock(root)
    if faults := stale(lock, [os.path.relpath(path, root) for path in inputs]):
        raise ValueError("dvc.lock: what is to be registered is out of date; run the chain:\n" + "\n".join(faults))


def package(model: Path, params: Params) -> dict[str, Any]:
    """What MLflow packs: the weights as they are (no pickle), blip_core, mlflow/serve.py, which joins them, and what a request may set."""
    settings, calibration = packed_settings(model, params), model.parent / CALIBRATION
    choose({}, settings)  # the defaults themselves must be within the limits of a request
    about = read_config(model)
    own = {"model", "task_model"} & about.keys() and "transformers" not in about.get("model", {}).get("encoder", {})  # of a BLIP-2
    packages = PACKAGES if own else (*PACKAGES, *OF_OTHERS)
    image = base64.b64encode(example_image(params.ingest.images.min_side)).decode()
    return {
        "python_model": str(repository_file(SERVED)),
        "artifacts": {"model": str(model)} | ({"calibration": str(calibration)} if calibration.exists() else {}),
        "code_paths": [str(PACKAGE)],
        "model_config": settings.model_dump(mode="json"),
        "params": {**defaults(settings), "allow_path": True},
        "input_example": ([{"image": image, "text": "a grey square"}], {"task": "match"}),
        "pip_requirements": [f"{name}=={installed(name).split('+')[0]}" for name in packages],
    }


def pack(model: Path, params: Params, out: Path) -> None:
    """Write the folder that `mlflow models serve -m` takes, without a version: for a model of others, which no chain has measured.

    ValueError for an adapter, as its base is not packed with it.
    """
    import mlflow

    if base := read_config(model).get("base"):
        raise ValueError(f"{model}: an adapter, which works where its base {base} lies and nowhere else; merge the two, and pack that")
    packed = package(model, params)
    with new_folder(out) as temporary:
        mlflow.pyfunc.save_model(str(temporary), signature=signature(packed.pop("params")), **packed)


def example_image(side: int) -> bytes:
    """A small grey PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def _record(registry: Registry, version: "ModelVersion", evidence: Evidence, verdict: dict[str, Any]) -> None:
    """Bring the version's evaluation up to date; nothing to do when it is the one that it has."""
    evaluation, of_tasks = evidence.evaluation, task_metrics(evidence.measured)
    measured = _read_json(evaluation / "metrics.json") | of_tasks
    known = hashlib.sha256(json.dumps([evaluation_hash(evaluation), measured, verdict], sort_keys=True).encode())
    if version.tags.get("evaluation_hash") == known.hexdigest():
        return
    metrics = {k: float(v) for k, v in measured.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    measured_by = [m for m in metrics if f"{m}_low" in metrics]
    shown = {m: f"{metrics[m]:.4g} [{metrics[f'{m}_low']:.4g}, {metrics[f'{m}_high']:.4g}]" for m in measured_by}
    tests = {name: brief(metrics) for name, metrics in verdict.get("baselines", {}).items()}
    tags = {"better": "yes" if verdict.get("better") is True else "no", **{f"metric.{m}": text for m, text in shown.items()}}
    tags |= {"reasons": json.dumps(verdict.get("reasons", [])), "baseline_tests": json.dumps(tests)}
    files = {"evaluation": evaluation} | ({"measured": evidence.measured} if of_tasks else {})
    registry.record(version, files, metrics=with_intervals(metrics)[0])
    registry.tag(version, {**tags, "evaluation_hash": known.hexdigest()})
    describe(registry, version.version)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path}: missing; run the stage that makes it")
    return json.loads(path.read_text())
