"""A vision-language model, and what else others made, as a service: what it can do is done as in a round, and the rest is said."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip_core.capfilt.adapter import ADAPTER
from blip_core.capfilt.plugins import open_captioner, open_filter
from blip_core.config.params import load_params
from blip_core.pictures.images import decode_rgb
from blip_core.serving.options import BadRequest, choose, packed_settings
from blip_core.serving.rows import admitted, read_rows
from blip_core.serving.service import open_service
from blip_core.stages.register import pack
from tests.support.vlms import make_folder

ROOT = Path(__file__).parents[2]
TEXTS = ["a red ball", "2 dogs"]


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_folder("qwen2_vl", tmp_path_factory.mktemp("vlm") / "qwen")


def ask(service, picture, texts, task, **asked):
    rows = read_rows([str(picture)] * len(texts), texts, task, service.settings, paths=True)
    return service.answer(rows, choose({"task": task, **asked}, service.settings))


def test_captions_and_matches_are_those_of_a_round(qwen, params, picture):
    """With the prompt and the sampler of the writer that names the folder."""
    (own,) = params.caption.writers
    sampler = own.sampler.model_copy(update={"max_tokens": 6, "min_tokens": 1, "repetition_penalty": 1.0})
    writer = own.model_copy(update={"captioner": str(qwen), "prompt": "Say it.", "sampler": sampler})
    values = params.model_copy(update={"caption": params.caption.model_copy(update={"writers": (writer,)})})
    service = open_service(qwen, packed_settings(qwen, values))
    [row] = read_rows([str(picture)], [None], "caption", service.settings, paths=True)
    pixels = decode_rgb(admitted(row, service.settings))

    captioner = open_captioner(str(qwen), qwen, prompt="Say it.", precision="auto", fetch=None)
    made = captioner.captions([captioner.prepare(pixels)], [row.key], sampler, seed=7, num_candidates=2, first=0)
    assert ask(service, picture, [None], "caption", num_captions=2, seed=7) == [{"captions": [c.text for c in made[0]]}]

    judge = open_filter(str(qwen), qwen, question=params.score.question, precision="auto", fetch=None)
    wanted = judge.score([judge.prepare(pixels)], [judge.encode(TEXTS)]).itm
    found = ask(service, picture, TEXTS, "match")
    assert [set(answer) for answer in found] == [{"itm"}] * 2 and "P(yes)" in service.told_by["itm"]
    np.testing.assert_allclose([answer["itm"] for answer in found], wanted, atol=0.02)  # another batch, in bf16
    with pytest.raises(BadRequest, match="task embed is beyond this model: .*no embeddings here; take a BLIP of ours"):
        ask(service, picture, ["a"], "embed")
    with pytest.raises(BadRequest, match="explain: beyond this model: a map is of the cross-attention of a BLIP of ours"):
        ask(service, picture, ["a"], "match", explain=True)


def test_the_page_says_what_it_can_not_do(qwen, params, tmp_path):
    from blip_core.demo.page import make_page

    shown = make_page(open_service(qwen, packed_settings(qwen, params)), None, title="qwen", cache=tmp_path).get_config_file()
    parts = {part["props"].get("elem_id"): part["props"] for part in shown["components"]}
    assert "No search: it goes by the embeddings" in parts["no-search"]["value"] and "No attention map" in parts["no-map"]["value"]
    assert parts["scores"]["headers"] == ["itm", "text"] and "ask-caption" in parts and "ask-attention" not in parts


def test_one_that_only_writes_says_why_it_does_not_judge(params, picture, tmp_path):
    folder = make_folder("git", tmp_path / "git")
    service = open_service(folder, packed_settings(folder, params))
    assert len(ask(service, picture, [None], "caption", max_tokens=5)[0]["captions"]) == 1
    with pytest.raises(BadRequest, match="task match is beyond this model: .*can't judge"):
        ask(service, picture, ["a"], "match")


@pytest.mark.slow
def test_a_packed_one_serves_itself(qwen, picture, tmp_path):
    """Through the verb, in a process that has nothing but the package."""
    command = [sys.executable, "-m", "blip_core", "pack", str(qwen), "--out", str(tmp_path / "served"), "--params", "params.yaml"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    program = "# warm\nimport sys, json, mlflow; model = mlflow.pyfunc.load_model('served'); " + (
        "print(json.dumps(model.predict([{'image': sys.argv[1], 'text': 'a red ball'}], params={'task': 'match'})))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(picture)], cwd=tmp_path, check=True, capture_output=True, text=True)
    [answer] = json.loads(done.stdout.splitlines()[-1])
    assert 0 < answer["itm"] < 1


def test_an_adapter_is_not_packed_without_its_base(params, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": ADAPTER, "base": "weights/qwen", "prompt": "Say it."}))
    with pytest.raises(ValueError, match="an adapter, which works where its base weights/qwen lies"):
        pack(tmp_path, params, tmp_path / "served")
