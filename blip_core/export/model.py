"""A BLIP as files that run without this project: ONNX graphs or programs of torch.export, the tokenizer, a script that shows their use.

Every file is compared with the model itself before the folder appears, by rename, whole, its manifest.json written last.
"""

import logging
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from blip_core.capfilt.plugins import open_blip
from blip_core.config.model import MEAN, STD
from blip_core.export import example
from blip_core.export.data import check_free
from blip_core.export.graphs import Graph, about, graphs, trace
from blip_core.export.model_card import model_card
from blip_core.export.parity import Differences, differences
from blip_core.files.atomic import new_folder
from blip_core.files.content import sha256_file, write_json
from blip_core.model.blip import Blip
from blip_core.model.blip2 import require_blip
from blip_core.tokenizer.folders import TOKENIZER
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import is_tuned

Form = Literal["onnx", "torch.export"]
ENDINGS: dict[Form, str] = {"onnx": ".onnx", "torch.export": ".pt2"}
MAX_DIFFERENCE = 1e-3  # of ITC features, ITM logits, logits of the vocabulary, keys and values
_LONGEST_CAPTION = 20  # tokens, as the paper's captions have at most


def export_model(
    folder: Path, out: Path, *, form: Form, max_difference: float = MAX_DIFFERENCE, licence: str = "unknown", metrics: Path | None = None
) -> dict[str, Any]:
    """Write `out` and return its manifest; `folder` is a model folder of ours or a public BLIP (weights/load.py).

    ValueError when an output differs from the model's own by more than `max_difference`, or `out` is in the way."""
    if form not in ENDINGS:
        raise ValueError(f"--model {form}: expected one of {', '.join(ENDINGS)}")
    if form == "onnx":
        _require_onnx()
    if (folder / "config.json").exists() and is_tuned(folder):
        raise ValueError(f"{folder}: tuned for a task, whose network is another one; only a BLIP itself can be exported so")
    check_free(out)
    captioner, judge = open_blip(folder, precision="fp32")
    model = require_blip(judge.model, f"{folder}: an export of the model").cpu()
    with new_folder(out) as temporary:
        judge.tokenizer.save(temporary / TOKENIZER)
        (temporary / "example.py").write_text(Path(example.__file__).read_text())
        manifest = {
            "export": form,
            "model": judge.identity,
            "graphs": _write_graphs(model, temporary, ENDINGS[form]),
            "picture": _picture(model),
            "text": _text(model, judge.tokenizer, prompt=captioner.prompt, max_tokens=judge.max_tokens),
            "made_by": {name: version(name) for name in ("torch", *(("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()))},
            "max_difference": max_difference,
        }
        write_json(manifest, temporary / "manifest.json")  # the example reads it
        note(manifest, differences(model, example.Blip(temporary).parts))
        text = model_card(folder, model, manifest, name=out.name, licence=licence, metrics=metrics)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        files = sorted(p for p in temporary.iterdir() if p.name != "manifest.json")
        manifest["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}
        write_json(manifest, temporary / "manifest.json")
    return manifest


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ValueError(f"--model onnx: the package {e.name} is not installed; pip install 'blip-bootstrap[onnx]'") from None


def _write_graphs(model: Blip, folder: Path, ending: str) -> dict[str, Any]:
    written = {}
    for graph in graphs(model):
        _write(trace(graph), graph, folder / f"{graph.name}{ending}")
        written[graph.name] = about(graph) | {"file": f"{graph.name}{ending}"}
    return written


def _write(program: ExportedProgram, graph: Graph, path: Path) -> None:
    """An ONNX graph has its weights in a file beside it, `.onnx.data`, for protobuf ends at 2 GB."""
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it would tell of torchvision, which nobody needs here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        inputs, outputs = [port.name for port in graph.inputs], list(graph.outputs)
        found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    assert found is not None
    found.save(path, external_data=True)


def note(manifest: dict[str, Any], found: Differences) -> None:
    """How far each output is from the model's own. ValueError where that is more than the manifest allows, or no number."""
    limit = manifest["max_difference"]
    for name, of_outputs in found.items():
        part = manifest["graphs"][name]
        part["difference"] = of_outputs
        for output, value in of_outputs.items():
            if not value <= limit:
                raise ValueError(
                    f"{part['file']}: {output} is up to {value:.3g} from the model's own, and {limit:g} is allowed, so nothing is written; "
                    "--max-difference allows more"
                )


def _picture(model: Blip) -> dict[str, Any]:
    """How pixels are made of a picture: blip_core/pictures/images.py, blip_core/compute/pixels.py."""
    side = model.cfg.vision.image_size
    return {
        "upright": "by EXIF's orientation",
        "mode": "RGB, transparent pixels on white",
        "size": [side, side],
        "aspect": "not kept",
        "resample": "bicubic with antialiasing, as Pillow's",
        "scale": 1 / 255,
        "mean": list(MEAN),
        "std": list(STD),
        "layout": "batch x 3 x height x width, float32",
    }


def _text(model: Blip, tokenizer: Tokenizer, *, prompt: str, max_tokens: int) -> dict[str, Any]:
    """How ids are made of a text, and a text of ids. `hidden` are ids that are no text."""
    positions, begun = model.med.cfg.max_positions, len(tokenizer.encode_prompt(prompt))
    return {
        "tokenizer": TOKENIZER,
        "form": "cls, the text's tokens, sep; padded with pad, where the mask is false. The matcher puts its first token in place of cls.",
        **{name: getattr(tokenizer, name) for name in ("pad", "cls", "sep", "dec", "enc")},
        "match_token": model.match_token,
        "max_tokens": max_tokens,
        "positions": positions,
        "prompt": prompt,
        "max_new_tokens": min(_LONGEST_CAPTION, positions - begun),
        "hidden": [i for i in range(tokenizer.size) if not tokenizer.decode([i])],
    }
