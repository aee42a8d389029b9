"""Exported models: the traced functions are the model, the files run without this project, what differs or does not fit is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from blip_core.__main__ import main
from blip_core.compute.pixels import load_pixels
from blip_core.export.graphs import graphs
from blip_core.export.model import note
from blip_core.export.model_card import model_card
from blip_core.export.parity import differences
from blip_core.files.content import write_json
from blip_core.model.generate import Limits, greedy
from blip_core.weights.checkpoint import save_model
from tests.support.peers import randomize

PROMPT = "a picture of"
# a child of this interpreter that can't import what the files must do without
BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys({hidden}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def scattered(model):
    return randomize(model, seed=5)


@pytest.fixture
def saved(scattered, tokenizer, tmp_path) -> Path:
    save_model(scattered, tokenizer, tmp_path / "artifacts/models/g1", prompt=PROMPT, max_tokens=12, precision="fp32")
    return tmp_path / "artifacts/models/g1"


def untraced(model) -> dict:
    """The functions themselves, called as the files are."""

    def called(graph):
        def run(**given):
            with torch.no_grad():
                found = graph.module(*(torch.from_numpy(given[port.name]) for port in graph.inputs))
            return dict(zip(graph.outputs, map(torch.Tensor.numpy, found if isinstance(found, tuple) else (found,)), strict=True))

        return run

    return {graph.name: called(graph) for graph in graphs(model)}


@pytest.mark.parametrize(("first", "pooling"), [("enc", "first"), ("cls", "mean")])
def test_the_traced_functions_are_the_model(scattered, first, pooling):
    scattered.match_token, scattered.cfg = first, scattered.cfg.model_copy(update={"pooling": pooling})
    found = differences(scattered, untraced(scattered))
    assert set(found) == {"image", "text", "match", "step"}
    assert set(found["image"]) == {"feature", *(f"image_{part}_{layer}" for part in ("key", "value") for layer in (0, 1))}
    assert max(value for part in found.values() for value in part.values()) < 1e-5


def test_a_difference_is_refused_and_so_is_what_is_no_number(scattered):
    parts = untraced(scattered)
    off = dict(parts, match=lambda **given: {"logits": parts["match"](**given)["logits"] + np.float32(0.25)})
    assert differences(scattered, off)["match"]["logits"] == pytest.approx(0.25, abs=1e-4)
    manifest = {"max_difference": 1e-3, "graphs": {name: {"file": f"{name}.pt2"} for name in parts}}
    with pytest.raises(ValueError, match="match.pt2: logits is up to 0.25 from the model's own, and 0.001 is allowed"):
        note(manifest, differences(scattered, off))
    lost = dict(parts, text=lambda **given: {"feature": parts["text"](**given)["feature"] * np.float32("nan")})
    with pytest.raises(ValueError, match="text.pt2: feature is up to nan"):
        note(manifest, differences(scattered, lost))
    note(manifest, differences(scattered, parts))
    assert manifest["graphs"]["match"]["difference"]["logits"] < 1e-5


def test_a_model_gives_the_parts_that_it_has(scattered):
    scattered.missing = frozenset({"encoder", "contrast", "match"})  # as a public captioner
    assert set(untraced(scattered)) == {"image", "step"} == set(differences(scattered, untraced(scattered)))
    scattered.frames = 4
    with pytest.raises(ValueError, match="4 frames"):
        graphs(scattered)


def test_the_card(scattered, saved, tmp_path):
    metrics = {"images": 500, "cider": 0.9, "cider_low": 0.8, "cider_high": 1.0, "tr_r1": 0.5, "captions_distinct": 3}
    write_json(metrics, tmp_path / "artifacts/metrics/models/g1/evaluate.json")
    write_json({"model_hash": "f" * 16, "name": "blip", "version": 3}, tmp_path / "artifacts/registration.json")
    parts = {
        g.name: {"file": f"{g.name}.onnx", "inputs": [{"name": p.name} for p in g.inputs], "difference": {"x": 2e-6}}
        for g in graphs(scattered)
    }
    manifest = {"export": "onnx", "model": "f" * 16, "graphs": parts, "text": {"max_tokens": 12, "max_new_tokens": 20}}
    card = ModelCard(model_card(saved, scattered, manifest, name="mine", licence="Our own", metrics=None))
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("cider", 0.9) and "0.8 to 1" in result.metric_name
    assert card.data.to_dict()["model-index"][0]["name"] == "mine" and (card.data.license, card.data.license_name) == ("other", "Our own")
    for line in (
        "| CIDEr | 0.9000 | 0.8000 to 1.0000 |",
        "| `match.onnx` | `ids`, `mask`, `image` | 2.0e-06 |",
        "| registered as | `blip/3` |",
        "No dvc.lock names this folder: what made it is not known here.",
        "What it learned from is not known here.",
    ):
        assert line in card.text.splitlines(), line


def test_what_does_not_fit_is_told(saved, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        ([str(saved), "--model", "tflite"], "--model tflite: expected one of onnx, torch.export"),
        ([str(saved), "--model", "torch.export", "--all"], "--all: for a generation"),
        ([str(saved), "--format", "coco", "--max-difference", "1"], "--max-difference: for a model"),
        ([str(tmp_path / "none"), "--model", "torch.export"], "none"),
    ):
        assert main(["export", *arguments, *out]) == 1
        assert message in capsys.readouterr().err
    write_json({"kind": "vqa"}, saved / "config.json")
    assert main(["export", str(saved), "--model", "onnx", *out]) == 1
    assert "tuned for a task" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow  # tracing four functions takes half a minute of a core, and changes with torch's releases alone
@pytest.mark.parametrize("form, hidden", [("onnx", ["blip_core", "torch"]), ("torch.export", ["blip_core"])])
def test_the_files_run_without_this_project(scattered, saved, tokenizer, tmp_path, capsys, form, hidden):
    out, picture = tmp_path / "out", tmp_path / "picture.png"
    assert main(["export", str(saved), "--model", form, "--out", str(out), "--license", "mit"]) == 0
    assert "differs from the model by at most" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert max(v for part in manifest["graphs"].values() for v in part["difference"].values()) < 1e-4
    assert {p.name for p in out.iterdir()} == {"manifest.json", *manifest["files"]}
    assert ("image.onnx.data" in manifest["files"]) == (form == "onnx"), "weights lie beside the graphs"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    command = [sys.executable, "-c", BARE.format(hidden=hidden), str(out / "example.py"), str(picture), "--text", "a red ball"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    with torch.no_grad():
        image = scattered.image_tokens(load_pixels([pixels], 16))
        layers, ids = scattered.keys_values(image), torch.tensor([tokenizer.encode("a red ball", max_tokens=12)])
        mask = torch.ones_like(ids, dtype=torch.bool)
        [written] = greedy(scattered, layers, tokenizer.encode_prompt(PROMPT), Limits(0, manifest["text"]["max_new_tokens"])).tolist()
        match = scattered.match_logits(ids, mask, layers).softmax(-1)[0, 1]
        cosine = scattered.image_features(image)[0] @ scattered.text_features(ids, mask)[0]
    assert told == [f"caption: {tokenizer.decode(written)}".rstrip(), f"ITM {match:.4f}, ITC {cosine:.4f}: a red ball"]
