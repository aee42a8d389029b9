"""The card of an exported model: README.md with the front matter that Hugging Face reads, what it learned from, how it was measured."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from blip_core.config.reading import read_values
from blip_core.evaluation.task_metrics import task_metrics
from blip_core.export.shared import document, licence_fields, licence_lines, lineage_lines, noise_lines, project_of
from blip_core.files.content import read_json
from blip_core.model.blip import PARTS, Blip
from blip_core.report.wording import METRICS
from blip_core.tables.manifest import read_manifest
from blip_core.tracking.provenance import maker, read_lock

_USE = {
    "onnx": "ONNX graphs for onnxruntime, their weights in files beside them.",
    "torch.export": "Programs of torch.export: `torch.export.load(path).module()` is a function of tensors.",
}
_DOES = {
    "step": "writes captions",
    "match": "tells whether a text fits a picture (ITM)",
    "text": "compares pictures and texts by their features (ITC)",
}
_LIBRARY = {"onnx": "onnx", "torch.export": "pytorch"}


def model_card(folder: Path, model: Blip, manifest: dict[str, Any], *, name: str, licence: str, metrics: Path | None) -> str:
    """Of a model `folder` whose export has this manifest. `metrics`: of the model's project, where they are not found by its place."""
    metrics = metrics or folder.resolve().parents[1] / "metrics"
    measured = read_measured(metrics / "models" / folder.name)
    generation, sources = _learned_from(folder)
    side = model.cfg.vision.image_size
    lines = [
        f"# {name}",
        "",
        f"A BLIP (arXiv 2201.12086) of {sum(p.numel() for p in model.parameters()):,} parameters, for pictures of",
        f"{side} x {side} pixels. It {', '.join(says for part, says in _DOES.items() if part in manifest['graphs'])}.",
        "",
        *_opening(manifest),
        *_data(generation, sources),
        *noise_lines(metrics, _rounds(generation)),
        *_metrics(measured, folder),
        *lineage_lines(folder, {"model": folder.name, "content hash": manifest["model"], **_registered(metrics.parent, manifest["model"])}),
        *_limits(model, manifest),
        *licence_lines(licence, "the model"),
        "What it learned from has licences of its own.",
    ]
    return document(_front_matter(manifest, measured, name, licence), lines)


def read_measured(folder: Path) -> dict[str, float]:
    """Metrics of the held-out test pictures and of tasks, with their bounds; empty where nobody measured."""
    found = read_json(folder / "evaluate.json") if (folder / "evaluate.json").exists() else {}
    return {key: value for key, value in (found | task_metrics(folder)).items() if isinstance(value, int | float)}


def _front_matter(manifest: dict[str, Any], measured: dict[str, float], name: str, licence: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-to-text" if metric in ("cider", "bleu4", "rouge_l") else "image-text-retrieval",
            dataset_type="held-out",
            dataset_name="held-out test pictures of the project",
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{METRICS.get(metric, metric)}, interval {measured[f'{metric}_low']:.4g} to {measured[f'{metric}_high']:.4g}",
            metric_value=measured[metric],
        )
        for metric in _told(measured)
    ]
    identifier, licence_name = licence_fields(licence)
    return ModelCardData(
        license=identifier,
        license_name=licence_name,
        library_name=_LIBRARY[manifest["export"]],
        pipeline_tag="image-to-text",
        tags=["blip", "image-captioning", "image-text-matching", "image-text-retrieval"],
        model_name=name,
        eval_results=results or None,
    )


def _told(measured: dict[str, float]) -> list[str]:
    """Metrics that have an interval: those that the report names, then those of tasks."""
    return [m for m in [*METRICS, *(m for m in measured if "." in m)] if {m, f"{m}_low", f"{m}_high"} <= measured.keys()]


def _opening(manifest: dict[str, Any]) -> list[str]:
    runs = "" if manifest["export"] == "torch.export" else ", without torch"
    parts = [f"| `{p['file']}` | {_listed(p['inputs'])} | {max(p['difference'].values()):.1e} |" for p in manifest["graphs"].values()]
    return [
        "## Use it",
        "",
        _USE[manifest["export"]],
        f'`python example.py picture.jpg --text "a dog"` captions a picture and scores a text{runs}; manifest.json says how pixels and ids',
        "are made, and has the names and shapes of all inputs and outputs.",
        "",
        "| file | inputs | differs from the model by at most |",
        "|---|---|---|",
        *parts,
        "",
    ]


def _listed(inputs: list[dict[str, Any]]) -> str:
    """Keys and values by layer are told once."""
    return ", ".join(dict.fromkeys(f"`{port['name'].replace('_value_', '_key_').partition('_key_')[0]}`" for port in inputs))


def _learned_from(folder: Path) -> tuple[Path | None, set[str]]:
    """The generation and the sources of the texts, as dvc.lock has them."""
    if project := project_of(folder):
        root, path = project
        if made := maker(read_lock(root), path):
            generation = next((dep for dep in made.deps if dep.startswith("artifacts/generations/")), None)
            return root / generation if generation else None, made.sources
    return None, set()


def _data(generation: Path | None, sources: set[str]) -> list[str]:
    if generation is None:
        return ["## Data", "", "What it learned from is not known here.", ""]
    counts = read_manifest(generation).get("counts", {}) if generation.exists() else {}
    names = {"human": "texts_human", "web": "kept_web", "synthetic": "kept_synthetic", "fused": "kept_fused"}
    rows = [f"| {source} | {counts[key]:,} |" for source, key in names.items() if source in sources and key in counts]
    table = ["| source of the texts | texts |", "|---|---|", *rows, ""] if rows else []
    return ["## Data", "", f"It learned from the {', '.join(sorted(sources))} texts of generation {generation.name}.", "", *table]


def _rounds(generation: Path | None) -> set[str]:
    """The round that made it."""
    if generation and (project := project_of(generation)):
        root, path = project
        if made := maker(read_lock(root), path):
            return {made.stage.partition("@")[2]}
    return set()


def _metrics(measured: dict[str, float], folder: Path) -> list[str]:
    if not (told := _told(measured)):
        return ["## Metrics", "", "Not measured on held-out pictures.", ""]
    rows = [f"| {METRICS.get(m, m)} | {measured[m]:.4f} | {measured[f'{m}_low']:.4f} to {measured[f'{m}_high']:.4f} |" for m in told]
    sizes = f"{measured['images']:,} " if "images" in measured else ""
    says = f"On {sizes}held-out test pictures; {_confidence(folder)}intervals of the bootstrap. CIDEr: 1.00 is 100 points."
    return ["## Metrics", "", says, "", "| metric | value | interval |", "|---|---|---|", *rows, ""]


def _confidence(folder: Path) -> str:
    project = project_of(folder)
    path = project[0] / "params.yaml" if project else None
    values = read_values(path) if path and path.exists() else {}
    return f"{values['evaluate']['confidence']:.0%} " if "confidence" in values.get("evaluate", {}) else ""


def _registered(artifacts: Path, identity: str) -> dict[str, str]:
    path = artifacts / "registration.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {"registered as": f"{found['name']}/{found['version']}"} if found.get("model_hash") == identity else {}


def _limits(model: Blip, manifest: dict[str, Any]) -> list[str]:
    text = manifest["text"]
    lines = [
        f"- Texts are cut at {text['max_tokens']} tokens, captions at {text['max_new_tokens']}; what its tokenizer lacks, it can't read.",
        "- It repeats what its texts say: their bias, their errors, their blind spots. Nobody measured it by groups of people.",
        "- An ITM score is no calibrated probability, and no proof that a text is true.",
        "- Metrics are of pictures like those that it learned from; of others they say little.",
    ]
    lines += [f"- It has no {part} ({PARTS[part]}): the checkpoint had none." for part in PARTS if part in model.missing]
    return ["## Limits", "", *lines, ""]
