"""Which parts of the text transformer encoding and decoding share: the four rows of the paper's Table 3."""

from pathlib import Path

import pytest
import torch

from blip_core.compute.padding import tokenize
from blip_core.config.params import load_params
from blip_core.export.graphs import graphs
from blip_core.gradcam.maps import caption_maps, match_maps
from blip_core.model.generate import Limits, greedy
from blip_core.model.vqa import vqa_of
from blip_core.preview.plan import keys_values_flops, skeleton
from blip_core.training.contrast import momentum_twin
from blip_core.weights.checkpoint import load_model, new_model, save_model
from blip_core.weights.names import text_stack
from blip_core.weights.pretrained import captioning_weights, load_bert, theirs

ROOT = Path(__file__).parents[2]
SHARES = ("all", "all_but_cross", "all_but_self", "none")
ATTENTION = {"encoder_attention", "decoder_attention"}
CROSS = {"cross_attention", "decoder_cross_attention"}
REST = {"mlp", "mlp_norm", "decoder_mlp", "decoder_mlp_norm"}
EMBEDDINGS = {f"{own}{name}" for own in ("", "decoder_") for name in ("tokens", "positions", "embedding_norm")}
APART = {"all": set(), "all_but_cross": CROSS, "all_but_self": ATTENTION, "none": ATTENTION | CROSS | REST | EMBEDDINGS}
TEXTS = ["a red ball", "there is a blue star on grass"]


@pytest.fixture(params=SHARES)
def shared(request, model_cfg, tokenizer):
    return new_model(model_cfg.model_copy(update={"share": request.param}), tokenizer, seed=0).eval()


def seen(model, count: int = 2):
    return model.keys_values(model.image_tokens(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))))


def touched(model, loss: torch.Tensor) -> set[str]:
    """The parts of the text transformer, the head left out, that the gradient reaches."""
    model.zero_grad(set_to_none=True)
    loss.sum().backward()
    names = {n for n, p in model.med.named_parameters() if p.grad is not None and not n.startswith("head")}
    return {name.split(".")[2 if name.startswith("blocks") else 0] for name in names}


@pytest.mark.parametrize("share, millions", zip(SHARES, (224, 252, 252, 361), strict=True))
def test_parameters_are_as_many_as_in_the_paper(share, millions):
    cfg = load_params(ROOT / "configs/vit-b16.yaml").model.model_copy(update={"share": share})
    assert round(sum(p.numel() for p in skeleton(cfg, 30524).parameters()) / 1e6) == millions


def test_parameters_are_those_counted_by_hand(shared, model_cfg):
    t, wide, vocabulary = model_cfg.text, model_cfg.vision.width, shared.special.vocab_size
    norm, square = 2 * t.width, t.width * t.width + t.width
    own = {
        "attention": t.depth * (4 * square + norm),
        "cross": t.depth * (2 * square + 2 * (wide * t.width + t.width) + norm),
        "rest": t.depth * (2 * t.width * t.mlp_width + t.mlp_width + t.width + norm) + (vocabulary + t.max_positions) * t.width + norm,
    }
    kinds = {"all": (), "all_but_cross": ("cross",), "all_but_self": ("attention",), "none": ("attention", "cross", "rest")}
    expected = sum(own.values()) + sum(own[kind] for kind in kinds[shared.cfg.share]) + square + norm + vocabulary
    assert sum(p.numel() for p in shared.med.parameters()) == expected
    layers = 2 if "cross" in kinds[shared.cfg.share] else 1
    assert keys_values_flops(shared.cfg) == layers * keys_values_flops(model_cfg)


def test_a_gradient_of_one_role_reaches_what_the_other_shares_and_no_more(shared, tokenizer):
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    matched = touched(shared, shared.match_logits(ids, mask, seen(shared)))
    written = touched(shared, shared.med.vocabulary_logits(shared.caption_hidden(ids, seen(shared))))
    assert matched ^ written == APART[shared.cfg.share]
    assert all(name.startswith("decoder_") == (name in written) for name in matched ^ written)
    twin = momentum_twin(shared)
    assert not any("decoder_" in n or "cross" in n for n, _ in twin.named_parameters())


def test_what_is_written_of_the_papers_sharing_is_as_before(model):
    assert "share" not in model.cfg.model_dump()
    assert {n.split(".")[2] for n in model.med.state_dict() if ".decoder_" in n} == {"decoder_attention"}
    assert not any(n.startswith("decoder_") for n in model.med.state_dict())


def test_a_saved_model_writes_and_judges_as_before(shared, tokenizer, tmp_path):
    save_model(shared, tokenizer, tmp_path / "m")
    loaded, (ids, mask) = load_model(tmp_path / "m")[0], tokenize(tokenizer, TEXTS, max_tokens=20)
    assert loaded.cfg == shared.cfg and loaded.state_dict().keys() == shared.state_dict().keys()
    assert torch.equal(loaded.match_logits(ids, mask, seen(loaded)), shared.match_logits(ids, mask, seen(shared)))
    limits = Limits(min_tokens=1, max_tokens=6, repetition_penalty=1.0)
    written = greedy(loaded, seen(loaded), [shared.special.dec], limits)
    assert torch.equal(written, greedy(shared, seen(shared), [shared.special.dec], limits))
    whole = shared.med.vocabulary_logits(shared.caption_hidden(torch.cat([ids[:, :1], written], dim=1), seen(shared)))
    assert torch.equal(whole.argmax(-1)[:, 1:2], written[:, 1:2]), "token by token it writes what one pass over the text says"


def test_maps_follow_the_role(shared, tokenizer):
    """With the attention's own weights: the maps of a role are of its own cross-attention, and whole."""
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    by = [m(shared, ids, mask, seen(shared), layer=0, kind="attention") for m in (match_maps, caption_maps)]
    assert all(torch.allclose(maps[0, 1].sum(), torch.ones(())) for maps in by)


def test_a_decoder_leaves_for_others_under_their_names(shared):
    block = shared.med.blocks[0]
    found = captioning_weights(shared)
    attention, cross = (getattr(block, name)(decoding=True) for name in ("attention", "cross"))
    layer = "text_decoder.bert.encoder.layer.0."
    assert torch.equal(found[f"{layer}attention.output.dense.weight"], attention.out.weight)
    assert torch.equal(found[f"{layer}crossattention.output.dense.weight"], cross.out.weight)
    assert torch.equal(found["text_decoder.bert.embeddings.word_embeddings.weight"], shared.med.written.weight)
    answers = vqa_of(shared).med.blocks[0]
    assert torch.equal(answers.decoder_attention.out.weight, attention.out.weight)
    assert torch.equal(answers.cross_attention.out.weight, cross.out.weight)


def test_both_roles_begin_as_bert(shared, model, tokenizer):
    tensors = theirs(model, [*text_stack("", model.cfg.text.depth, attention="encoder_attention", cross=False)])
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"][:-2]
    load_bert(shared, tensors, source="bert")
    block, berts = shared.med.blocks[1], model.med.blocks[1]
    assert torch.equal(block.attention(decoding=True).qkv.weight, berts.encoder_attention.qkv.weight)
    x = torch.randn(3, model.cfg.text.width)
    assert torch.equal(block.finish(x, decoding=True), berts.finish(x))
    ids = tokenize(tokenizer, TEXTS, max_tokens=20)[0]
    assert torch.equal(shared.med.embed(ids, decoding=True), model.med.embed(ids))


def test_an_export_needs_one_cross_attention(model_cfg, tokenizer):
    model = new_model(model_cfg.model_copy(update={"share": "all_but_cross"}), tokenizer, seed=0)
    with pytest.raises(ValueError, match="model.share is all_but_cross, .*expected a model with share: all_but_self or all"):
        graphs(model)
