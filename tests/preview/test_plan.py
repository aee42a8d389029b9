"""The plan's numbers: parameters as the paper has them, work as PyTorch counts it, larger where the work is larger."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blip_core.compute.precision import resolved
from blip_core.config.model import ModelConfig
from blip_core.config.params import load_params
from blip_core.preview.figures import duration, product_speed, scaled
from blip_core.preview.memory import image_bytes, state_bytes, within
from blip_core.preview.plan import cross_flops, keys_values_flops, plan, skeleton, text_flops, vit_flops
from blip_core.preview.writers import writer_needs
from blip_core.tokenizer.folders import load_tokenizer
from tests.support.small import small_params
from tests.support.vlms import make_folder

ROOT = Path(__file__).parents[2]
NONE = Path("no/tokenizer.json")  # before ingest has run
PAPER_B = dict(width=768, depth=12, heads=12)


def vit_b16() -> ModelConfig:
    init = dict.fromkeys(("weight", "patch", "image_position", "token", "text_position"), 0.02)
    vision = dict(image_size=224, patch_size=16, mlp_ratio=4.0, activation="gelu", norm_eps=1e-6, drop_path=0.0, **PAPER_B)
    text = dict(mlp_width=3072, max_positions=512, activation="gelu", norm_eps=1e-12, dropout=0.1, **PAPER_B)
    return ModelConfig(vision=vision, text=text, embed_dim=256, init=init)


def test_vit_b_has_the_252_million_parameters_of_table_3():
    assert sum(p.numel() for p in skeleton(vit_b16(), 30524).parameters()) / 1e6 == pytest.approx(252, abs=1)


def test_work_is_what_pytorch_counts(model_cfg):
    """Forward passes of the small model, one image and one text of 10 tokens, counted operation by operation."""
    model = skeleton(model_cfg, 64)
    ids, mask = torch.zeros(1, 10, dtype=torch.long, device="meta"), torch.ones(1, 10, dtype=torch.bool, device="meta")
    pixels = torch.zeros(1, 3, 16, 16, device="meta")

    def counted(act) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            act()
        return counter.get_total_flops()

    tokens = model.image_tokens(pixels)
    keys_values = model.keys_values(tokens)
    assert vit_flops(model_cfg) == pytest.approx(counted(lambda: model.image_tokens(pixels)), rel=0.01)
    assert keys_values_flops(model_cfg) == counted(lambda: model.keys_values(tokens))
    for first_only in (False, True):
        how = dict(first_only=first_only)
        text, cross = text_flops(model_cfg, 10, **how), cross_flops(model_cfg, 10, **how)
        assert text == pytest.approx(counted(lambda how=how: model.med.encode(ids, mask, **how)), rel=0.01)
        assert text + cross == pytest.approx(counted(lambda how=how: model.med.ground(ids, mask, keys_values, **how)), rel=0.01)


def test_the_plan_speaks_of_each_training():
    said = plan(small_params(), NONE)
    for stage in ("pretrain", "tune_captioner", "tune_filter"):
        assert f"{stage}: 12 steps of 16 images = 192 images" in said
    assert said.count(" for its matrix products, at the ") == 3


def test_the_figures_of_a_small_model_say_something():
    """The demo's: "0.0 M" and "0.03 M images" said nothing. Its vocabulary is one that ingest builds."""
    params = small_params()
    said, model = plan(params, NONE), skeleton(params.model, params.ingest.vocab_size)
    head = sum(
        p.numel() for p in (*model.image_projection.parameters(), *model.text_projection.parameters(), *model.match_head.parameters())
    )
    assert f"(vocabulary of at most {params.ingest.vocab_size + 2:,};" in said
    assert f"  projections and ITM head: {scaled(head)}\n" in said and not re.search(r"(?<![\d.])0\.0+ ", said)


def test_the_plan_takes_the_vocabulary_that_ingest_made(ingested):
    """The demo's has a quarter of the entries that it may have, and the model with it of the parameters."""
    params, vocab = small_params(), ingested / "tokenizer.json"
    size = load_tokenizer(vocab).size
    total = sum(p.numel() for p in skeleton(params.model, size).parameters())
    assert plan(params, vocab).startswith(f"model: {scaled(total)} parameters (vocabulary of {size:,}, by {vocab})")
    named = params.model_copy(update={"ingest": params.ingest.model_copy(update={"vocab": vocab})})
    assert f"by {vocab}" in plan(named, NONE)
    named = params.model_copy(update={"ingest": params.ingest.model_copy(update={"vocab": NONE})})
    assert "(vocabulary of 30,524, BERT's)" in plan(named, vocab)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0.00 "),
        (7, "7.00 "),
        (868, "868 "),
        (999.7, "1.00 K"),
        (8_321, "8.32 K"),
        (5_313_000, "5.31 M"),
        (252e6, "252 M"),
        (2.87e19, "28.7 E"),
    ],
)
def test_a_number_has_three_digits_and_a_prefix(number, words):
    assert scaled(number) == words


def test_bytes_go_by_1024_and_durations_by_their_largest_unit():
    assert (scaled(2**30, 1024), scaled(14.2 * 2**20, 1024)) == ("1.00 G", "14.2 M")
    expected = {0.0042: "4.2 ms", 0.3: "300 ms", 37: "37 s", 119: "119 s", 120: "2.0 minutes", 7200: "2.0 hours", 200_000: "2.3 days"}
    assert {seconds: duration(seconds) for seconds in expected} == expected


def test_a_product_is_timed_by_its_work():
    """Ten times the work at about the same speed would be ten times the time; here only that the unit is right: a CPU core makes between
    0.1 GFLOP/s and 10 TFLOP/s, a GPU no more than 10 PFLOP/s."""
    assert 1e8 < product_speed(64, "fp32", 1) < 1e16


def test_activations_are_of_the_precision_that_auto_comes_to():
    params = small_params()
    sizes = {
        precision: image_bytes(params.model, params.pretrain.optim.model_copy(update={"precision": precision}), "pretrain", vocabulary=64)
        for precision in ("fp32", "bf16", "auto")
    }
    assert sizes["bf16"] < sizes["fp32"] and sizes["auto"] == sizes[resolved("auto")]


@pytest.mark.parametrize("name,millions", [("vit-b16", 252), ("vit-l16", 475)])
def test_the_ready_configurations_are_whole(name, millions):
    params = load_params(ROOT / f"configs/{name}.yaml")
    assert sum(p.numel() for p in skeleton(params.model, 30524).parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert params.pretrain.optim.warmup * params.pretrain.optim.steps == pytest.approx(3000, rel=0.01)
    assert "pretrain" in plan(params, NONE)


def test_a_captioner_of_others_says_what_memory_it_needs(tmp_path):
    """16 tokens beside 400 of the prompt, 2 layers, keys and values of 2 heads of 8 numbers in fp32, 3 candidates of 4 pictures."""
    params, folder = small_params(), make_folder("llava", tmp_path / "llava")
    (own,) = params.caption.writers
    writer = own.model_copy(
        update={"captioner": str(folder), "num_candidates": 3, "sampler": own.sampler.model_copy(update={"max_tokens": 16})}
    )
    caption = params.caption.model_copy(update={"writers": (own, writer), "batch_size": 4, "precision": "fp32"})
    weights, texts = writer_needs(writer, caption)
    stored = (folder / "model.safetensors").stat().st_size
    assert 0.8 * stored < weights <= stored and texts == 12 * 416 * 2 * 2 * 2 * 8 * 4
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"head_dim": None, "num_key_value_heads": None}  # as many that are published have them
    (folder / "config.json").write_text(json.dumps(config))
    heads = config["text_config"]["num_attention_heads"]
    assert writer_needs(writer, caption) == (weights, 12 * 416 * 2 * 2 * heads * 8 * 4)
    said = plan(params.model_copy(update={"caption": caption}), NONE)
    assert said.count("caption by ") == 1 and f"caption by {folder}: {scaled(weights, 1024)}iB for weights" in said


def test_the_plan_says_what_to_compute_twice_within_so_much_memory():
    """The least number of blocks with which the micro-batch fits, by the same estimate that the plan prints."""
    params = load_params(ROOT / "configs/vit-b16.yaml")
    model, micro = skeleton(params.model, 30524), params.pretrain.optim.batch_size // params.pretrain.optim.accumulate

    def gib(recompute: int) -> float:
        optim = params.pretrain.optim.model_copy(update={"recompute": recompute})
        return (state_bytes(params, model, "pretrain") + micro * image_bytes(params.model, optim, "pretrain", vocabulary=30524)) / 2**30

    def said(memory: float) -> str:
        return within(memory, params, "pretrain", params.pretrain.optim, model)

    assert f"optim.recompute 0 of 12 blocks, which leaves room for {micro:,} images" in said(gib(0))
    assert "optim.recompute 5 of 12 blocks" in said(gib(5)) and "optim.recompute 6 of 12 blocks" in said(gib(5) - 0.01)
    assert re.search(
        rf"not the {micro:,} images of a micro-batch, but {micro - 1:,} with optim.recompute 12; a larger", said(gib(12) - 0.01)
    )
    assert "not one image" in said(state_bytes(params, model, "pretrain") / 2**30)
    assert plan(small_params(), NONE, memory=1000).count("\n  within 1000 GiB: optim.recompute 0 of ") == 3
