"""A BLIP-2 goes through the stages as a BLIP does."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import yaml

from blip_core.capfilt.med import image_features, score_texts, write_captions
from blip_core.capfilt.plugins import open_captioner, open_filter
from blip_core.compute.pixels import load_pixels
from blip_core.config.model import Blip2Config
from blip_core.config.params import Params, load_params
from blip_core.evaluation.retrieval import Similarities
from blip_core.model.blip2 import Blip2
from blip_core.model.qformer import best_query
from blip_core.serving.options import BadRequest, choose, packed_settings
from blip_core.serving.rows import read_rows
from blip_core.serving.service import open_service
from blip_core.stages.evaluate import evaluate
from blip_core.stages.pretrain import pretrain
from blip_core.stages.tune_captioner import tune_captioner
from blip_core.stages.tune_filter import tune_filter
from blip_core.tables.captions import read_tables
from blip_core.weights.checkpoint import load_model, model_hash, save_model
from blip_core.weights.encoders import load_encoder
from blip_core.weights.models import load_any
from tests.support.blip2_chain import blip2_values, clip_folder, picture_files, pictures
from tests.support.blip2s import language_folder
from tests.support.plain_qformer import match, next_tokens, similarity
from tests.support.small import ROOT, small_values
from tests.support.whole_chain import project_at, run, run_chain

TEXTS = ["a red ball", "a blue star on grass"]


def blip2_params(encoder) -> Params:
    return Params(**blip2_values(small_values(yaml.safe_load((ROOT / "params.yaml").read_text())), encoder))


@pytest.fixture(scope="module")
def trained(ingested, tmp_path_factory):
    """Parameters and folders of a BLIP-2 that was pretrained upon a CLIP, and of its tunings."""
    root = tmp_path_factory.mktemp("blip2")
    params, a, r = blip2_params(clip_folder(root / "clip")), ingested, root / "artifacts"
    inputs, common = (a / "generations/g0", a / "shards", a / "gates/g0.json"), {"seed": 0, "work": root / "work"}

    def outs(name: str):
        return r / name, r / f"{name}.csv", r / f"{name}.json"

    g0, shards, gate = inputs
    options = {"cfg": params.pretrain, "model_cfg": params.model, **common}
    pretrain(g0, "human,web", shards, gate, a / "tokenizer.json", *outs("model"), **options)
    tune_captioner(r / "model", *inputs, *outs("captioner"), cfg=params.tune_captioner, **common)
    tune_filter(r / "model", *inputs, *outs("filter"), cfg=params.tune_filter, **common)
    return params, r


def test_each_training_teaches_what_it_is_for_and_leaves_the_encoder(trained):
    params, root = trained
    first = load_encoder(params.model.encoder).module.state_dict()
    weights = {name: load_any(root / name)[0].state_dict() for name in ("model", "captioner", "filter")}
    for found in weights.values():
        assert all(torch.equal(found[f"encoder.{key}"], value) for key, value in first.items())
    changed = {n: {k for k, v in found.items() if not torch.equal(v, weights["model"][k])} for n, found in weights.items()}
    assert "trained.head.0.weight" in changed["captioner"] and "trained.match_head.weight" not in changed["captioner"]
    assert "trained.match_head.weight" in changed["filter"] and "trained.head.0.weight" not in changed["filter"]
    columns = {name: (root / f"{name}.csv").read_text().splitlines()[0].split(",") for name in weights}
    losses = {"model": {"itc", "itm", "lm"}, "captioner": {"lm"}, "filter": {"itc", "itm"}}
    assert {name: {"itc", "itm", "lm"} & set(found) for name, found in columns.items()} == losses
    assert len({model_hash(root / name) for name in weights}) == 3


def test_scores_and_captions_are_those_of_the_plain_passes(trained):
    """By the reference of tests/support/plain_qformer.py, one pair at a time, on what the encoder sees."""
    model, tokenizer = load_any(trained[1] / "filter")
    assert isinstance(model, Blip2)
    features = model.features(load_pixels(pictures(), 16))
    scores = score_texts(model, tokenizer, pictures(), [TEXTS, TEXTS[:1]], max_tokens=24)
    places = [(0, TEXTS[0]), (0, TEXTS[1]), (1, TEXTS[0])]
    with torch.no_grad():
        for (i, text), logit, itc in zip(places, scores.itm_logit, scores.itc, strict=True):
            ids = torch.tensor(tokenizer.encode(text, max_tokens=24))
            mismatch, fits = match(model.qformer, features[i], ids)
            assert logit == pytest.approx(float(fits - mismatch), abs=1e-5)
            assert itc == pytest.approx(float(similarity(model.qformer, features[i], ids)), abs=1e-5)
        sampler = trained[0].evaluate.sampler.model_copy(update={"name": "beam", "beams": 1, "min_tokens": 0, "max_tokens": 4})
        written = write_captions(model, tokenizer, pictures(), ["a", "b"], sampler, seed=0)
        for i, [caption] in enumerate(written):
            ids = [tokenizer.cls]
            for _ in range(4):
                ids.append(int(next_tokens(model.qformer, features[i], torch.tensor(ids))[-1].argmax()))
                if ids[-1] == tokenizer.sep:
                    break
            assert caption.text == tokenizer.decode(ids[1:])
    with pytest.raises(ValueError, match="ITC features of 3 queries"):
        image_features(model, pictures(), precision="fp32")


def test_the_stages_open_it_as_captioner_and_filter(trained):
    params, root = trained
    options = {"precision": "fp32", "fetch": None}
    captioner = open_captioner("tuned", root / "captioner", prompt=None, **options)
    judge = open_filter("tuned", root / "filter", question="", **options)
    assert (captioner.identity, judge.identity) == (model_hash(root / "captioner"), model_hash(root / "filter"))
    sampler = params.caption.writers[0].sampler
    drawn = {"seed": 0, "num_candidates": 2, "first": 0}
    both = captioner.captions(pictures(), ["a", "b"], sampler, **drawn)
    assert captioner.captions(pictures()[1:], ["b"], sampler, **drawn) == both[1:]  # whatever stands beside it
    scores = judge.score([judge.prepare(p) for p in pictures()], [judge.encode(TEXTS)] * 2)
    assert scores.itm_logit.shape == (4,) and np.isfinite(scores.itm_logit).all() and (abs(scores.itc) <= 1 + 1e-6).all()


def test_retrieval_takes_the_best_query():
    seed, unit = torch.Generator().manual_seed(0), torch.nn.functional.normalize
    images, texts = (unit(torch.randn(shape, generator=seed), dim=-1) for shape in ((4, 3, 8), (6, 8)))
    found = Similarities(images, texts)
    expected = best_query(images, texts).numpy()
    np.testing.assert_allclose(found[1:3, 2:6], expected[1:3, 2:6], rtol=1e-6)
    np.testing.assert_allclose(found.of_pairs([2, 0], np.array([[1, 5], [0, 3]])), [expected[2, [1, 5]], expected[0, [0, 3]]], rtol=1e-5)
    assert found.shape == (4, 6)


def test_it_is_evaluated_and_served(trained, ingested, tmp_path):
    params, root = trained
    sampler = params.evaluate.sampler.model_copy(update={"max_tokens": 6})
    cfg = params.evaluate.model_copy(update={"rerank": 4, "bootstrap": 5, "sampler": sampler, "precision": "bf16"})
    evaluate(root / "model", ingested / "heldout", ingested / "shards", tmp_path / "out", tmp_path / "metrics.json", cfg=cfg, seed=0)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"tr_r1", "itm_tr_r1", "ir_r10", "cider"} <= metrics.keys()
    service = open_service(root / "model", settings := packed_settings(root / "model", params))
    rows = read_rows(picture_files(tmp_path), TEXTS, "match", settings, paths=True)
    [first, second] = service.answer(rows, choose({"task": "match"}, settings))
    assert 0 <= first["itm"] <= 1 and first != second
    [[caption]] = [a["captions"] for a in service.answer(rows[:1], choose({"task": "caption"}, settings))]
    assert isinstance(caption, str)
    for asked, words in (({"task": "embed"}, "no one embedding"), ({"task": "match", "explain": True}, "a map knows a BLIP alone")):
        with pytest.raises(BadRequest, match=words):
            service.answer(rows, choose(asked, settings))


def test_what_it_does_not_fit_is_said(trained, model, tokenizer, tmp_path):
    _, root = trained
    with pytest.raises(ValueError, match="a BLIP-2, which only the chain"):
        load_model(root / "model")
    with pytest.raises(ValueError, match="a BLIP-2 of ours, whose encoder is another's"):
        load_encoder(root / "model")
    with pytest.raises(ValueError, match="kind is 'blip3'; expected med or blip2"):
        Params(**small_values(yaml.safe_load((ROOT / "params.yaml").read_text())) | {"model": {"kind": "blip3"}})
    save_model(model, tokenizer, tmp_path / "med")
    ours = blip2_params(tmp_path / "med").model
    assert isinstance(load_encoder(ours.encoder).module, torch.nn.Module)


def test_a_named_med_is_the_med_that_no_name_is(model_cfg):
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    named = Params(**values | {"model": {"kind": "med", **values["model"]}})
    assert named.model_dump_json() == Params(**values).model_dump_json() and "kind" not in named.model.model_dump()


def test_the_ready_files_have_the_demo_s_values_and_the_paper_s():
    demo, paper, own = (load_params(ROOT / name) for name in ("configs/blip2-demo.yaml", "configs/blip2-paper.yaml", "params.yaml"))
    assert demo.model_dump(exclude={"model"}) == own.model_dump(exclude={"model"})
    assert isinstance(demo.model, Blip2Config) and isinstance(paper.model, Blip2Config)
    optim, qformer = paper.pretrain.optim, paper.model.qformer
    assert (qformer.num_queries, qformer.cross_every, qformer.width, optim.steps, optim.batch_size) == (32, 2, 768, 250_000, 1680)
    assert optim.warmup * optim.steps == pytest.approx(2000)
    [writer], choice = paper.caption.writers, paper.assemble
    assert (writer.num_candidates, choice.score, choice.keep_best, set(choice.threshold.values())) == (10, "itc", 2, {-1.0})


@pytest.mark.slow  # whole chains by DVC, minutes; test_chain.py has the first, of BLIP
@pytest.mark.parametrize("stages", [1, 2])
def test_the_whole_chain_runs_to_a_version(model, tokenizer, tmp_path, stages):
    values = blip2_values(small_values(yaml.safe_load((ROOT / "params.yaml").read_text())), "frozen/encoder")
    del values["models"]["human"]
    folder = tmp_path / "project"
    folder.mkdir()
    if stages == 2:
        values["model"]["language"] = {"folder": "frozen/language", "end": None}
        values["pretrain"]["stage_2"] = {"steps": 6}
    project_at(folder, values | {"baselines": "g0"})
    save_model(model, tokenizer, folder / "frozen/encoder", prompt="", max_tokens=20, precision="fp32")
    if stages == 2:
        language_folder("opt", folder / "frozen/language")
    run_chain(folder)
    registered = json.loads((folder / "artifacts/registration.json").read_text())
    assert registered["model"] == "g1" and registered["model_hash"] == model_hash(folder / "artifacts/models/g1")
    assert isinstance(load_any(folder / "artifacts/models/g1")[0], Blip2)
    rows = read_tables(folder / "artifacts/generations/g1").filter(pc.field("source") == "synthetic")
    assert rows.num_rows and set(rows["model"].to_pylist()) == {model_hash(folder / "artifacts/rounds/r1/captioner")}
    assert not rows["match"].null_count and (folder / "artifacts/report/index.html").exists()
    assert (folder / "artifacts/models/g1/language").exists() == (stages == 2)
    (folder / "frozen/encoder/config.json").write_text((folder / "frozen/encoder/config.json").read_text() + " ")
    for stage in ("pretrain@g0", "ingest"):  # which may look for near copies by an encoder there
        assert "modified:           frozen" in run("dvc", "status", stage, cwd=folder).stdout
