"""Make a version in the MLflow registry: the model, ready to serve, with where it comes from and how it was measured."""

import base64
import hashlib
import io
import json
import os
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import blip_core
from blip_core.captions import content_hash, read_manifest, require_gate, sha256_file, write_json
from blip_core.checkpoint import model_hash
from blip_core.config import CompareConfig, Params, RegisterConfig
from blip_core.provenance import chain_id, git_state, inputs_md5s
from blip_core.stages.compare import paired_comparison
from blip_core.tracking import Registry, open_registry

if TYPE_CHECKING:
    from blip_core.tracking import ModelVersion

# that serving imports
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "scikit-learn", "pyarrow", "pydantic", "pyyaml", "pillow", "simplejpeg")


def register(
    model: Path,
    evaluation: Path,
    generation: Path,
    gate: Path,
    shards: Path,
    comparison: Path,
    out: Path,
    *,
    cfg: RegisterConfig,
    compare_cfg: CompareConfig,
    params: Params,
    seed: int,
) -> None:
    """Register the model as `challenger`, and as `champion` when it beats the baselines and, by a paired test, the champion.

    A model that is registered already keeps its version. Runs in the project's root, where dvc.lock and git are read.
    """
    require_gate(gate, generation)
    root, measured, verdict = Path.cwd(), _read_json(evaluation / "metrics.json"), _read_json(comparison)
    if verdict.get("challenger") != evaluation.name:
        raise ValueError(f"{comparison}: compares {verdict.get('challenger')!r}, not {evaluation.name!r}; run compare for it")
    identity = model_hash(model)
    with open_registry(cfg.name, root) as registry:
        version = registry.find("model_hash", identity)
        if version is None:
            tags = {"model_hash": identity, **provenance(params, generation, shards, root)}
            version = registry.add(tags=tags, **package(model, params))
        _record(registry, version, evaluation, measured, verdict)
        registry.point("challenger", version)
        better, reasons = promotion(registry, version, evaluation, verdict, cfg=compare_cfg, seed=seed)
        if better:
            registry.point("champion", version)
        champion = registry.at("champion")
    result = {
        "name": cfg.name,
        "version": int(version.version),
        "promoted": champion is not None and champion.version == version.version,
        "champion_version": int(champion.version) if champion else None,
        "reasons": reasons,
        "run_id": version.run_id,
        "model_hash": identity,
    }
    write_json(result, out)


def promotion(
    registry: Registry, version: "ModelVersion", evaluation: Path, verdict: dict, *, cfg: CompareConfig, seed: int
) -> tuple[bool, list[str]]:
    """Whether this version shall be champion, and why."""
    if verdict.get("better") is not True:
        return False, ["not better than the baselines", *verdict.get("reasons", [])]
    champion = registry.at("champion")
    if champion is None:
        return True, ["better than the baselines, and there was no champion"]
    if champion.version == version.version:
        return True, ["better than the baselines, and champion already"]
    title = f"champion, version {champion.version}"
    with tempfile.TemporaryDirectory() as folder:
        stored = registry.evaluation(champion, Path(folder))
        if stored is None:
            return False, [f"not comparable with the {title}: no evaluation is kept with it; evaluate that model and register it again"]
        try:
            paired = paired_comparison(evaluation, stored, cfg=cfg, seed=seed)
        except ValueError as e:
            reason = str(e).replace(str(stored), "its evaluation")
            return False, [f"not comparable with the {title}: {reason}; then register it again"]
    return paired["better"] is True, [f"{'' if paired['better'] is True else 'not '}better than the {title}", *paired["reasons"]]


def provenance(params: Params, generation: Path, shards: Path, root: Path) -> dict[str, str]:
    """Tags that say which code, values and data made the model; "" where git or DVC do not know it."""
    md5s = inputs_md5s([generation, shards], root)
    return {
        **git_state(root),
        "chain": chain_id(root),
        "params_hash": hashlib.sha256(params.model_dump_json().encode()).hexdigest(),
        "generation": generation.name,
        "generation_hash": content_hash(generation),
        "generation_dvc_md5": md5s.get(os.path.relpath(generation, root), ""),
        "shards_hash": listed_hash(shards),
        "shards_dvc_md5": md5s.get(os.path.relpath(shards, root), ""),
    }


def listed_hash(folder: Path) -> str:
    """`content_hash` of an undamaged folder by its manifest alone: the shards of a crawl are too large to be read for a tag."""
    files = read_manifest(folder)["files"]
    return hashlib.sha256("".join(f"{n} {files[n]['sha256']}\n" for n in sorted(files)).encode()).hexdigest()


def package(model: Path, params: Params) -> dict:
    """What MLflow packs: the weights as they are (no pickle), blip_core, and mlflow/serve.py, which joins them."""
    code = Path(blip_core.__file__).parent
    serve = code.parent / "mlflow" / "serve.py"
    if not serve.exists():
        raise ValueError(f"{serve}: missing; register from a checkout of the project, where mlflow/ stands beside blip_core/")
    return {
        "python_model": str(serve),
        "artifacts": {"model": str(model)},
        "code_paths": [str(code)],
        "model_config": serving(model, params),
        "input_example": [base64.b64encode(example_image(params.ingest.images.min_side)).decode()],
        "pip_requirements": [f"{name}=={installed(name).split('+')[0]}" for name in PACKAGES],
    }


def serving(model: Path, params: Params) -> dict:
    """Settings of the served captioner: images as ingest takes them, captions as evaluate made those of the metrics."""
    return {
        "sampler": params.evaluate.sampler.model_dump(),
        "precision": params.evaluate.precision,
        "batch_size": params.evaluate.batch_size,
        "seed": params.seed,
        "prompt": _read_json(model / "config.json").get("prompt", ""),
        "images": params.ingest.images.model_dump(),
        "short_side": params.ingest.short_side,
        "quality": params.ingest.quality,
    }


def example_image(side: int) -> bytes:
    """A small grey PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def _record(registry: Registry, version: "ModelVersion", evaluation: Path, measured: dict, verdict: dict) -> None:
    """Bring the version's evaluation up to date; nothing to do when it is the one that it has."""
    files = {p.name: sha256_file(p) for p in sorted(evaluation.iterdir()) if p.is_file()}
    known = hashlib.sha256(json.dumps([files, verdict], sort_keys=True).encode()).hexdigest()
    if version.tags.get("evaluation_hash") == known:
        return
    metrics = {k: float(v) for k, v in measured.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    measured_by = [m for m in metrics if f"{m}_low" in metrics]
    shown = {m: f"{metrics[m]:.4g} [{metrics[f'{m}_low']:.4g}, {metrics[f'{m}_high']:.4g}]" for m in measured_by}
    better = "yes" if verdict.get("better") is True else "no"
    lines = [f"Better than the baselines: {better}.", *verdict.get("reasons", []), "", "| metric | value [interval] |", "|---|---|"]
    lines += [f"| {m} | {text} |" for m, text in shown.items()]
    tags = {"better": better, **{f"metric.{m}": text for m, text in shown.items()}, "evaluation_hash": known}
    registry.record(version, evaluation=evaluation, metrics=metrics, tags=tags, description="\n".join(lines))


def _read_json(path: Path) -> dict:
    if not path.exists():
        raise ValueError(f"{path}: missing; run the stage that makes it")
    return json.loads(path.read_text())
