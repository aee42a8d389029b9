"""A BLIP-2 of both stages goes through the stages: a frozen language model with a tokenizer of its own writes, stage 1 scores."""

import csv
import json
import subprocess
import sys

import pytest
import torch
import yaml

from blip_core.capfilt.med import write_captions
from blip_core.capfilt.plugins import open_captioner, open_filter
from blip_core.compute.pixels import load_pixels
from blip_core.config.params import Params
from blip_core.serving.options import BadRequest, choose, packed_settings
from blip_core.serving.rows import read_rows
from blip_core.serving.service import open_service
from blip_core.stages.evaluate import evaluate
from blip_core.stages.pretrain import pretrain
from blip_core.stages.tune_captioner import tune_captioner
from blip_core.stages.tune_filter import tune_filter
from blip_core.weights.blip2 import load_blip2
from blip_core.weights.blip2_export import export_generation
from blip_core.weights.checkpoint import model_hash, new_model, save_model
from blip_core.weights.models import BothStages, load_any, save_blip2
from tests.support.blip2_chain import blip2_values, picture_files, pictures
from tests.support.blip2s import language_folder
from tests.support.processes import wait_until
from tests.support.small import ROOT, small_values
from tests.support.trainings import command_of, environment


def values_with(language, encoder) -> dict:
    values = blip2_values(small_values(yaml.safe_load((ROOT / "params.yaml").read_text())), encoder)
    values["model"]["language"] = {"folder": str(language), "end": None}
    values["pretrain"]["stage_2"] = {"steps": 6, "checkpoint_every": 2, "log_every": 2}
    values["training"]["language"]["prompt"] = "a photo of"
    return values


def pretrained(params, artifacts, root, *, name="model", log=None):
    """The folder of a model that `pretrain` leaves."""
    inputs = (artifacts / "generations/g0", "human,web", artifacts / "shards", artifacts / "gates/g0.json", artifacts / "tokenizer.json")
    outs = (root / name, root / f"{name}.csv", root / f"{name}.json")
    pretrain(*inputs, *outs, cfg=params.pretrain, model_cfg=params.model, seed=0, work=root / "work", log=log)
    return root / name


@pytest.fixture(scope="module")
def trained(ingested, model_cfg, tokenizer, tmp_path_factory):
    return trained_with("opt", ingested, model_cfg, tokenizer, tmp_path_factory.mktemp("opt"))


def trained_with(kind, ingested, model_cfg, tokenizer, root):
    """Its parameters, and the folder that holds the model."""
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, root / "encoder", prompt="", max_tokens=20, precision="fp32")
    params = Params(**values_with(language_folder(kind, root / "language"), root / "encoder"))
    pretrained(params, ingested, root)
    return params, root


@pytest.fixture(scope="module")
def tuned(trained, ingested):
    params, root = trained
    for tune, name in ((tune_captioner, "captioner"), (tune_filter, "filter")):
        inputs = (root / "model", ingested / "generations/g0", ingested / "shards", ingested / "gates/g0.json")
        outs = (root / name, root / f"{name}.csv", root / f"{name}.json")
        tune(*inputs, *outs, cfg=getattr(params, tune.__name__), seed=0, work=root / "work")
    return params, root


def test_the_history_goes_on_from_stage_1_to_stage_2(trained):
    _, root = trained
    with (root / "model.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 14, 16, 18]
    assert [row["itc"] != "" for row in rows] == [True] * 3 + [False] * 3 and all(float(row["lm"]) > 0 for row in rows)
    metrics = json.loads((root / "model.json").read_text())
    assert metrics["stage_2_lm"] == pytest.approx(float(rows[-1]["lm"]), rel=1e-4) and metrics["itm"] > 0


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_caption_is_what_the_language_model_writes_behind_the_soft_prompt(request, ingested, model_cfg, tokenizer, tmp_path, kind):
    """Token by token, without what is kept of earlier ones, by the model's own words."""
    params, root = request.getfixturevalue("trained") if kind == "opt" else trained_with(kind, ingested, model_cfg, tokenizer, tmp_path)
    model, tokenizer = load_any(root / "model")
    assert isinstance(model, BothStages)
    said, sampler = model.language, params.evaluate.sampler.model_copy(update={"beams": 1, "min_tokens": 0, "max_tokens": 5})
    written = write_captions(model, tokenizer, pictures(), ["a", "b"], sampler, seed=0, prompt="a photo of")
    soft, own = (
        model.prompter(model.features(load_pixels(pictures(), 16))),
        said.tokenizer("a photo of", add_special_tokens=False)["input_ids"],
    )
    embed = said.model.get_input_embeddings()
    for prompt, [caption] in zip(soft, written, strict=True):
        before, ids = torch.cat([prompt, embed(torch.tensor(own))])[None], []
        while len(ids) < 5 and said.end not in ids:
            if said.reads:
                start = torch.tensor([[said.model.config.decoder_start_token_id, *ids]])
                logits = said.model(inputs_embeds=before, decoder_input_ids=start).logits
            else:
                logits = said.model(inputs_embeds=torch.cat([before, embed(torch.tensor([ids], dtype=torch.long))], dim=1)).logits
            ids.append(int(logits[0, -1].argmax()))
        assert caption == (said.decode(ids), said.end not in ids)
    if not said.reads:
        with pytest.raises(ValueError, match="max_tokens: 64, the language model writes 61 at most behind 3 queries"):
            write_captions(model, tokenizer, pictures(), ["a", "b"], sampler.model_copy(update={"max_tokens": 64}), seed=0)


def test_each_tuning_teaches_what_it_is_for(tuned):
    _, root = tuned
    weights = {name: load_any(root / name)[0].state_dict() for name in ("model", "captioner", "filter")}
    changed = {
        name: {key.split(".")[0] for key, value in own.items() if not torch.equal(value, weights["model"][key])}
        for name, own in weights.items()
    }
    assert changed == {"model": set(), "captioner": {"prompter"}, "filter": {"trained"}}
    assert not (root / "filter/language").exists() and len({model_hash(root / name) for name in weights}) == 3


def test_the_stages_open_it_and_it_is_evaluated_and_served(tuned, ingested, tmp_path):
    params, root = tuned
    options = {"precision": "fp32", "fetch": None}
    captioner = open_captioner("tuned", root / "captioner", prompt=None, **options)
    assert captioner.identity == model_hash(root / "captioner") and captioner.prompt == "a photo of"
    drawn = {"seed": 0, "num_candidates": 2, "first": 0}
    both = captioner.captions(pictures(), ["a", "b"], params.caption.writers[0].sampler, **drawn)
    assert captioner.captions(pictures()[1:], ["b"], params.caption.writers[0].sampler, **drawn) == both[1:]  # whatever stands beside it
    judge = open_filter("tuned", root / "filter", question="", **options)
    assert judge.score([judge.prepare(p) for p in pictures()], [judge.encode(["a red ball"])] * 2).itm_logit.shape == (2,)
    sampler = params.evaluate.sampler.model_copy(update={"max_tokens": 4})
    cfg = params.evaluate.model_copy(update={"rerank": 4, "bootstrap": 5, "sampler": sampler})
    evaluate(root / "model", ingested / "heldout", ingested / "shards", tmp_path / "out", tmp_path / "metrics.json", cfg=cfg, seed=0)
    assert {"tr_r1", "itm_tr_r1", "cider"} <= json.loads((tmp_path / "metrics.json").read_text()).keys()
    service = open_service(root / "model", settings := packed_settings(root / "model", params))
    rows = read_rows(picture_files(tmp_path), ["a red ball", "a star"], "match", settings, paths=True)
    [[caption]] = [a["captions"] for a in service.answer(rows[:1], choose({"task": "caption"}, settings))]
    assert isinstance(caption, str) and 0 <= service.answer(rows[:1], choose({"task": "match"}, settings))[0]["itm"] <= 1
    with pytest.raises(BadRequest, match="a map knows a BLIP alone"):
        service.answer(rows, choose({"task": "match", "explain": True}, settings))


def test_what_is_exported_has_the_same_soft_prompt(trained, tmp_path):
    model = load_any(trained[1] / "model")[0]
    assert isinstance(model, BothStages)
    export_generation(model.stage_2, model.language, tmp_path / "theirs")
    theirs = load_blip2(tmp_path / "theirs").model
    features = model.features(load_pixels(pictures(), 16))
    torch.testing.assert_close(theirs.trained(theirs.features(load_pixels(pictures(), 16))), model.prompter(features), atol=1e-5, rtol=1e-5)


def test_identity_and_content_are_those_of_the_language_model_too(trained, tmp_path):
    _, root = trained
    assert {p.name for p in (root / "language").iterdir()} == {p.name for p in (root / "model/language").iterdir()}
    model, tokenizer = load_any(root / "model")
    assert isinstance(model, BothStages)
    save_blip2(model, tokenizer, tmp_path / "again", label_smoothing=0.1, prompt="a photo of", max_tokens=24, precision="fp32")
    assert model_hash(tmp_path / "again") == model_hash(root / "model")
    config = tmp_path / "again/language/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": 1}))
    assert model_hash(tmp_path / "again") != model_hash(root / "model")


@pytest.mark.parametrize("last", [8, 16])
def test_a_run_that_ends_in_either_stage_goes_on_bit_for_bit(trained, ingested, tmp_path, last):
    params, root = trained

    def stop(values: dict, *, step: int) -> None:
        if step == last:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pretrained(params, ingested, tmp_path, log=stop)
    assert not (tmp_path / "model").exists()
    pretrained(params, ingested, tmp_path)
    for name in ("model.csv", "model.json", "model/model.safetensors", "model/config.json"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), name
    assert not any((tmp_path / "work").glob("pretrain*"))


@pytest.mark.slow  # processes that load transformers, each seconds
def test_a_killed_run_goes_on_bit_for_bit(ingested, model_cfg, tokenizer, tmp_path):
    """SIGKILL in stage 1, SIGKILL in stage 2, then to the end; dropout is on."""
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, tmp_path / "encoder", prompt="", max_tokens=20, precision="fp32")
    values = values_with(language_folder("opt", tmp_path / "language"), tmp_path / "encoder")
    values["model"]["qformer"]["dropout"] = 0.1
    values["pretrain"]["optim"] |= {"steps": 100, "checkpoint_every": 10}
    values["pretrain"]["stage_2"] |= {"steps": 100, "checkpoint_every": 10}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"cwd": ROOT, "env": environment(), "stderr": subprocess.PIPE}
    subprocess.run([sys.executable, *command_of(ingested, whole, values)], check=True, **options)
    for place in ("work/*/step-*.pt", "work/*/stage_2/step-*.pt"):
        with subprocess.Popen([sys.executable, *command_of(ingested, broken, values)], **options) as process:
            wait_until(lambda place=place: any(broken.glob(place)), pause=0.002)
            process.kill()
        assert not (broken / "m").exists()
    subprocess.run([sys.executable, *command_of(ingested, broken, values)], check=True, **options)
    for name in ("m/model.safetensors", "h.csv", "m.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_language_model_and_its_stage_come_together(trained):
    params, _ = trained
    values = params.model_dump(by_alias=True)
    assert params.pretrain.stage_2.batch_size == params.pretrain.optim.batch_size
    values["pretrain"]["stage_2"] = None
    with pytest.raises(ValueError, match="model.language is set and pretrain.stage_2 is not"):
        Params(**values)
