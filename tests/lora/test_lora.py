"""Adapters upon models of others: what is learned is written or judged, resumes give the same bits, and what does not fit is told."""

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from blip_core.capfilt.adapter import save_adapter
from blip_core.capfilt.decoding import write
from blip_core.capfilt.judge import judge_by
from blip_core.capfilt.plugins import identify, identify_captioner, open_captioner, open_filter
from blip_core.capfilt.vlm import VlmCaptioner, own_prompt
from blip_core.compute.pixels import read_picture
from blip_core.config.capfilt import SamplerConfig
from blip_core.config.training import JudgeLoraConfig, LoraConfig
from blip_core.lora.adapted import Adapted, open_base
from blip_core.lora.batches import JudgementBatches, mismatched
from blip_core.lora.examples import IGNORED, answer_ids, answers
from blip_core.lora.objectives import JudgementObjective
from blip_core.stages.caption import caption
from blip_core.stages.tune_captioner import tune_captioner
from blip_core.stages.tune_filter import tune_filter
from blip_core.tables.captions import read_tables
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Rows
from blip_core.weights.hashes import folder_hash
from tests.support.vlms import FAMILIES, make_folder

QUESTION = 'Does it show "{text}"? Yes or no.'
TEXTS = ["a red ball", "2 dogs on the grass", "there is a green box"]
JUDGES = [name for name in FAMILIES if name not in ("paligemma", "blip-2", "instructblip", "git", "florence2")]
GREEDY = SamplerConfig(name="beam", p=1.0, top_k=0, temperature=1.0, beams=1, min_tokens=0, max_tokens=40, repetition_penalty=1.0)

open_tuned = partial(open_captioner, prompt=None, precision="fp32", fetch=None)


def lora(base, **changes) -> LoraConfig:
    return LoraConfig(**{"base": base, "rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"} | changes)


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (h, w, 3), dtype=np.uint8).repeat(50, 0).repeat(50, 1) for h, w in ((2, 3), (2, 3), (6, 2))]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_is_what_is_written(family, tmp_path):
    """Of each family: the tokens that the stored adapter writes are the likeliest ones in training, pictures and texts of any shape
    together."""
    folder = make_folder(family, tmp_path / family)
    vlm = open_base(folder, precision="fp32")
    learner = VlmCaptioner(vlm, "", own_prompt(vlm))
    model = Adapted(vlm.model, lora(folder), recompute=False, seed=0)
    with torch.no_grad():
        for parameter in model.state_dict().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(parameter)))
    save_adapter(model.peft, tmp_path / "adapter", base=str(folder), base_hash=folder_hash(folder), prompt=learner.prompt)
    captioner = open_tuned(str(tmp_path / "adapter"), tmp_path)
    prompts, written = [captioner.prepare(p) for p in pictures()], []
    for prompt, length in zip(prompts, (8, 5, 8), strict=True):
        sampler = GREEDY.model_copy(update={"min_tokens": length, "max_tokens": length})
        written += write(captioner.vlm.model, prompt, ["k"], sampler, seed=0, num_candidates=1, first=0)[0, :, -length:].tolist()
    found = []
    for group in answers(vlm, [learner.prepare(p) for p in pictures()], written):
        logits = model(group["inputs"], group["targets"].shape[1]).index_fill(2, torch.tensor(vlm.ends), -torch.inf)
        found += [own[kept != IGNORED].argmax(-1).tolist() for own, kept in zip(logits, group["targets"], strict=True)]
    assert sorted(found) == sorted(written) and len({tuple(ids) for ids in written}) > 1
    assert answer_ids(vlm, TEXTS[0], max_tokens=60)[-1] in vlm.ends and len(answer_ids(vlm, TEXTS[0], max_tokens=3)) == 3


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return make_folder("llava", tmp_path_factory.mktemp("base") / "llava")


def tune(stage, cfg, artifacts, out, work, log=None):
    """Returns the history's rows."""
    outs = [out, out.with_suffix(".csv"), out.with_suffix(".json")]
    options = {"cfg": cfg, "seed": 3, "work": work, "log": log}
    stage(artifacts / "none", artifacts / "generations/g0", artifacts / "shards", artifacts / "gates/g0.json", *outs, **options)
    return outs[1].read_text().splitlines()


def ends_at_step_5(values, *, step):
    if step == 5:
        raise InterruptedError


def test_a_captioner_is_tuned_resumed_and_writes(ingested, params, llava, tmp_path):
    optim = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "lr": 5e-3, "recompute": 1}
    optim = params.tune_captioner.optim.model_copy(update=optim)
    cfg = params.tune_captioner.model_copy(update={"lora": lora(llava, dropout=0.2), "optim": optim})
    history = tune(tune_captioner, cfg, ingested, tmp_path / "whole", tmp_path / "a")
    assert history[0] == "step,loss,lm,grad_norm,lr,lm_chance" and len(history) == 7

    with pytest.raises(InterruptedError):
        tune(tune_captioner, cfg, ingested, tmp_path / "again", tmp_path / "b", log=ends_at_step_5)
    (newest,) = (tmp_path / "b").glob("*/step-00000004.pt")
    assert newest.stat().st_size < (llava / "model.safetensors").stat().st_size, "a checkpoint holds no base"
    assert tune(tune_captioner, cfg, ingested, tmp_path / "again", tmp_path / "b") == history
    names = ("adapter_model.safetensors", "adapter_config.json", "config.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    assert {p.name for p in (tmp_path / "whole").iterdir()} == set(names), "the adapter alone"

    identity = identify(tmp_path / "whole")
    assert identity.split("+")[0] == identify(llava)
    assert identify_captioner(tmp_path / "whole", "Say it.").split("+")[0] == identify(llava)
    write = params.caption.model_copy(update={"precision": "fp32"})
    inputs = (ingested / "generations/g0", ingested / "shards", ingested / "gates/g0.json")
    caption(tmp_path / "whole", *inputs, tmp_path / "captions", round="r1", cfg=write, seed=3, work=tmp_path / "c")
    assert set(read_tables(tmp_path / "captions")["model"].to_pylist()) == {identity}


def test_a_judge_is_tuned_on_true_and_false_pairs(ingested, params, llava, tmp_path):
    optim = params.tune_filter.optim.model_copy(update={"steps": 40, "batch_size": 4, "log_every": 1, "lr": 1e-2, "warmup": 0.0})
    adapter = JudgeLoraConfig(**lora(llava).model_dump(), question=QUESTION)
    cfg = params.tune_filter.model_copy(update={"lora": adapter, "optim": optim})
    history = [float(row.split(",")[2]) for row in tune(tune_filter, cfg, ingested, tmp_path / "judge", tmp_path / "a")[1:]]
    assert np.mean(history[:3]) > 0.66 and np.mean(history[-10:]) < 0.66, "it unlearns to say yes or no to all: one pair of three is true"
    judge = open_filter(str(tmp_path / "judge"), tmp_path, question="Is {text} in it?", precision="fp32", fetch=None)
    assert judge.question == QUESTION and judge.identity == identify(tmp_path / "judge")
    scores = judge.score([judge.prepare(p) for p in pictures()], [judge.encode(TEXTS)] * 3)
    before = open_filter(str(llava), tmp_path, question=QUESTION, precision="fp32", fetch=None)
    assert abs(scores.itm_logit - before.score([before.prepare(p) for p in pictures()], [before.encode(TEXTS)] * 3).itm_logit).max() > 0.1
    with pytest.raises(ValueError, match="judge: this adapter was tuned to judge; expected one that writes"):
        open_tuned(str(tmp_path / "judge"), tmp_path)


@pytest.mark.parametrize("family", JUDGES)
def test_what_a_judge_learns_is_its_score(family, ingested, params, tmp_path):
    """Of each family that judges: the log-odds in training are those of the filter, of questions of any length together."""
    folder, rows = make_folder(family, tmp_path / family), Rows.of(ingested / "generations/g0", ["human"])
    images, still = ShardImages(ingested / "shards"), {"crop": (1.0, 1.0), "shift": 0, "brightness": 0.0, "flip": False}
    augment = params.tune_filter.optim.augment.model_copy(update=still)
    optim = params.tune_filter.optim.model_copy(update={"batch_size": 2, "augment": augment})
    judge = judge_by(open_base(folder, precision="fp32"), folder, "", question=QUESTION)
    batches = JudgementBatches(judge, rows, images, shares={"human": 1.0}, cfg=optim, seed=0)
    picked = batches.picked(0)
    others = [mismatched(rows, row, np.random.default_rng([0, 0, 2, place])) for place, row in enumerate(picked.rows)]
    shards, keys, texts = rows.at(picked.rows)
    prepared = [judge.prepare(read_picture(images, shard, key)) for shard, key in zip(shards, keys, strict=True)]
    wanted = judge.score(prepared, [judge.encode([text, *more]) for text, more in zip(texts, others, strict=True)]).itm_logit
    model = Adapted(judge.vlm.model, lora(folder), recompute=False, seed=0)
    with torch.no_grad():
        loss = JudgementObjective(judge.yes, judge.no)(model, batches.read(0))["itm"]
    truth = np.array([1.0, 0.0, 0.0] * 2)
    assert float(loss) == pytest.approx(np.logaddexp(0, np.where(truth, -wanted, wanted)).mean(), abs=1e-4)
    assert len(set(wanted.round(4))) > 4


def test_false_pairs_are_of_other_pictures_and_texts(ingested):
    rows = Rows.of(ingested / "generations/g0", ["human"])
    drawn = [mismatched(rows, 0, np.random.default_rng(n)) for n in range(20)]
    assert all(len(texts) == 2 and rows.text[0].as_py() not in texts for texts in drawn) and len({t for d in drawn for t in d}) > 10


def test_an_adapter_of_another_base_is_refused(llava, tmp_path):
    base = shutil.copytree(llava, tmp_path / "base")
    model = Adapted(open_base(base, precision="fp32").model, lora(base, targets=("q_proj",)), recompute=False, seed=0)
    save_adapter(model.peft, tmp_path / "adapter", base=str(base), base_hash=folder_hash(base), prompt="Say it.")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 7}))
    with pytest.raises(ValueError, match=rf"adapter: an adapter of .*base with the content hash {folder_hash(llava)}; what lies there has"):
        open_tuned(str(tmp_path / "adapter"), tmp_path)
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=rf"an adapter of .*base, which is not here; put the model with .* {folder_hash(llava)} there"):
        open_tuned(str(tmp_path / "adapter"), tmp_path)


def test_what_can_take_no_adapter_is_told(llava, tmp_path, monkeypatch):
    config = transformers.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"lora.base: .*text: model_type is 'gpt2'; expected a model that transformers lists for image-"):
        open_base(tmp_path / "text", precision="fp32")
    model = open_base(llava, precision="fp32").model
    with pytest.raises(ValueError, match=r"lora.targets: .*llava has no linear layer named qproj; expected some of .*q_proj"):
        Adapted(model, lora(llava, targets=("qproj", "v_proj")), recompute=False, seed=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"wants the package peft, which is not installed; pip install 'blip-bootstrap\[lora\]'"):
        Adapted(model, lora(llava), recompute=False, seed=0)


def test_values_that_do_not_go_together_are_refused(params, llava):
    optim = params.tune_captioner.optim.model_dump() | {"compile": True}
    with pytest.raises(ValueError, match="compile is set, but it compiles a BLIP alone"):
        type(params.tune_captioner)(optim=optim, language=params.tune_captioner.language, lora=lora(llava))
    with pytest.raises(ValueError, match="expected a question that has {text} in it once"):
        JudgeLoraConfig(**lora(llava).model_dump(), question="Is it?")
