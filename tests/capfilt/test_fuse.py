"""Fused texts: what a text model makes of a web text and a caption, alone as in a batch, and with both parents named."""

import json

import pyarrow.compute as pc
import pytest
import torch
import transformers
from pydantic import ValidationError

from blip_core.capfilt.fuse import filled
from blip_core.capfilt.plugins import identify_captioner, open_captioner, open_fuser
from blip_core.config.capfilt import SamplerConfig
from blip_core.explain.history import history
from blip_core.explain.image import explain
from blip_core.stages.assemble import assemble
from blip_core.stages.calibrate import calibrate
from blip_core.stages.caption import caption
from blip_core.stages.describe import describe
from blip_core.stages.gate import gate
from blip_core.stages.score import score
from blip_core.tables.captions import read_tables
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.vlms import TEMPLATE, TEXT, make_tokenizer, spread

SAMPLER = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.3, beams=3, min_tokens=2, max_tokens=6, repetition_penalty=1.0)
PROMPT = "{web}; {caption}."
PAIRS = [("Anna in Rome, 2019", "a red ball"), ("Anna in Rome, 2018", "a red ball"), ("12 dogs", "a green box on the grass")]
CHAT = TEMPLATE.replace("{% for part in turn.content %}", "{{ turn.content }}{% for part in [] %}")
KEYS = ["k0", "k1", "k2"]
CONFIGS = {
    "gpt2": lambda size: transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=900),
    "llama": lambda size: transformers.LlamaConfig(**TEXT, vocab_size=size),
    "t5": lambda size: transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
}


def make_text_model(name, folder):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = CONFIGS[name](len(tokenizer))
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = spread(kind.from_config(config), 0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    model.generation_config.update(**ids, decoder_start_token_id=tokenizer.bos_token_id)
    model.save_pretrained(folder)
    if name == "llama":
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_follows_from_its_pair_key_and_number_alone(name, tmp_path):
    fuser = open_fuser(str(make_text_model(name, tmp_path / name)), tmp_path, prompt=None, precision="fp32", fetch=None)
    prepared = [fuser.prepare_pair(*pair) for pair in PAIRS]
    numbers = {"seed": 5, "num_candidates": 2, "first": 0}
    whole = fuser.captions(prepared, KEYS, SAMPLER, **numbers)
    assert [fuser.captions([p], [k], SAMPLER, **numbers)[0] for p, k in zip(prepared, KEYS, strict=True)] == whole
    sure = fuser.captions([prepared[0]], ["k"], SAMPLER.model_copy(update={"top_k": 1}), **numbers)[0][0]
    model = fuser.vlm.model
    ids = model.generate(**prepared[0], max_new_tokens=6, min_new_tokens=2, do_sample=False)
    own = ids if model.config.is_encoder_decoder else ids[:, prepared[0]["input_ids"].shape[1] :]
    assert sure.text == fuser.vlm.decode(own)[0]


def test_texts_fill_their_places_alone():
    assert filled("{web}|{caption}", "a {caption}", "b {web}") == "a {caption}|b {web}"


def test_a_text_model_is_no_captioner(tmp_path):
    folder = make_text_model("gpt2", tmp_path / "gpt2")
    with pytest.raises(ValueError, match="can't write; expected a BLIP"):
        open_captioner(str(folder), folder, prompt=None, precision="fp32", fetch=None)


def test_a_writer_fuses_one_before_it(params):
    cfg = params.caption.model_dump()
    cfg["writers"][0]["fuses"] = 0
    with pytest.raises(ValidationError, match="writer 0 fuses 0, expected the number of a writer before it"):
        type(params.caption)(**cfg)
    cfg["writers"][0]["prompt"] = "{web} alone"
    with pytest.raises(ValidationError, match="expected {web} and {caption} in it"):
        type(params.caption)(**cfg)


def test_a_round_fuses_judges_and_tells_of_it(ingested, params, tmp_path):
    """Each fused text names its parents, is scored and chosen as all are, and people are shown what it is made of."""
    folder = make_text_model("gpt2", tmp_path / "gpt2")
    (own,) = params.caption.writers
    fuser = own.model_copy(update={"captioner": str(folder), "prompt": PROMPT, "fuses": 0, "num_candidates": 1, "sampler": SAMPLER})
    first = own.model_copy(update={"num_candidates": 2})
    tokenizer, artifacts, work = load_tokenizer(ingested / "tokenizer.json"), tmp_path / "artifacts", tmp_path / "work"
    save_model(new_model(params.model, tokenizer, seed=1), tokenizer, tmp_path / "own", prompt="", max_tokens=24)
    g0, g1, shards, heldout = ingested / "generations/g0", artifacts / "generations/g1", ingested / "shards", ingested / "heldout"
    captions, scores, calibration = (artifacts / name for name in ("captions", "scores", "calibration.json"))

    cfg = params.caption.model_copy(update={"writers": (first, fuser)})
    caption(tmp_path / "own", g0, shards, ingested / "gates/g0.json", captions, round="r1", cfg=cfg, seed=3, work=work)
    made = read_tables(captions)
    fused = made.filter(pc.equal(made["source"], "fused")).to_pylist()
    written = {(r["key"], r["candidate"]) for r in made.to_pylist() if r["source"] == "synthetic" and r["text"].strip()}
    assert fused and {(r["key"], r["fused_synthetic"]) for r in fused} <= written
    assert {(r["candidate"], r["fused_synthetic"], r["fused_web"]) for r in fused} == {(2, 0, 0), (3, 1, 0)}

    score(tmp_path / "own", g0, captions, shards, heldout, scores, cfg=params.score, seed=3, work=work)
    (tmp_path / "labels").mkdir()
    options = {"cfg": params.calibrate, "score_cfg": params.score, "seed": 3, "work": work}
    calibrate(tmp_path / "own", shards, heldout, tmp_path / "labels", calibration, tmp_path / "calibrate.json", **options)
    limits = {"threshold": {"web": 0.0, "synthetic": 0.0, "fused": 0.0}, "sources": ("web", "synthetic", "fused")}
    rule = params.assemble.model_copy(update=limits)
    assemble(g0, scores, calibration, g1, tmp_path / "assemble.json", cfg=rule)
    gate_cfg = params.gate.model_copy(update={"max_noise": dict.fromkeys(limits["sources"], 1.0)})
    outs = [tmp_path / name for name in ("gate.json", "metrics.json", "docs/g", "summary.json", "curve.csv", "histogram.csv")]
    gate(g1, scores, calibration, shards, tmp_path / "labels", *outs, cfg=gate_cfg, assemble_cfg=rule)
    checks = {check["name"] for check in json.loads(outs[0].read_text())["checks"]}
    assert {"noise_fused", "degenerate_share_fused", "distinct_share_fused"} <= checks
    describe(g0, g1, tmp_path / "described.json", tmp_path / "numbers.json", cfg=params.section("describe"))
    assert json.loads((tmp_path / "described.json").read_text())["sources"]["fused"]["judged"] == len(fused)

    rows = {(r["key"], r["source"], r["candidate"]): r for r in read_tables(g1).to_pylist()}
    one = next(r for r in rows.values() if r["source"] == "fused" and r["reason"] == "kept")
    parents = [rows[one["key"], source, one[f"fused_{source}"]]["text"] for source in ("web", "synthetic")]
    said = f"of web#0 {parents[0]!r} and synthetic r1#{one['fused_synthetic']} {parents[1]!r} ("
    who = f"{identify_captioner(folder, PROMPT)}: {folder}, asked {PROMPT!r}"
    for told in (explain(one["key"], g1), history(one["key"], artifacts)):
        assert said in told and who in told
