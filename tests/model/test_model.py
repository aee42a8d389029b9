"""The network: three roles that share all but self-attention, and shortcuts that change no number."""

import copy

import pytest
import torch

from blip_core.compute.padding import tokenize
from blip_core.model.inference import for_inference
from blip_core.weights.checkpoint import load_model, save_model
from blip_core.weights.export import export_huggingface

TEXTS = ["a red ball", "there is a blue star on grass", "a photo of a green box next to a red ball"]


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_roles_share_all_but_self_attention(model, tokenizer):
    """Table 3 of the paper, "all but SA": a gradient of encoding touches no decoder self-attention, and the reverse."""
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    keys_values = model.keys_values(model.image_tokens(pixels(3)))
    model.match_logits(ids, mask, keys_values).sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.med.vocabulary_logits(model.caption_hidden(ids, model.keys_values(model.image_tokens(pixels(3))))).sum().backward()
    decoded = {n for n, p in model.named_parameters() if p.grad is not None}
    only_one = {n for n in touched ^ decoded if n.startswith("med.blocks")}
    assert only_one and all("encoder_attention" in n or "decoder_attention" in n for n in only_one)
    assert any("cross_attention" in n for n in touched & decoded) and any(".mlp." in n for n in touched & decoded)


def test_texts_of_one_image_share_its_keys_and_values(model, tokenizer):
    """Folding an image's texts into one query gives what repeating the image per text gives."""
    tokens = model.image_tokens(pixels(2))
    ids, mask = tokenize(tokenizer, TEXTS + TEXTS[::-1], max_tokens=20)
    folded = model.match_logits(ids, mask, model.keys_values(tokens))
    repeated = model.match_logits(ids, mask, model.keys_values(tokens.repeat_interleave(3, dim=0)))
    torch.testing.assert_close(folded, repeated, atol=1e-6, rtol=1e-6)


def test_groups_of_images_share_out_the_texts(model, tokenizer):
    """One pass over several groups gives what repeating the images in one gives."""
    ids, mask = tokenize(tokenizer, TEXTS + TEXTS[::-1], max_tokens=20)
    images = model.keys_values(model.image_tokens(pixels(3)))
    swapped = [(k[[1, 2, 0]], v[[1, 2, 0]]) for k, v in images]
    grouped = model.match_logits(ids, mask, images, swapped)
    joined = model.match_logits(ids, mask, [(torch.cat([k, j]), torch.cat([v, w])) for (k, v), (j, w) in zip(images, swapped, strict=True)])
    torch.testing.assert_close(grouped, joined, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(grouped[3:], model.match_logits(ids, mask, images, images)[3:], atol=1e-4)


def kept_values(model) -> tuple[int, list[torch.Tensor]]:
    """Numbers that a forward pass keeps for the backward one, weights left out; and the gradients."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.image_tokens(pixels(2)).square().sum()
    out.backward()
    return sum(kept.values()), [p.grad for p in model.vit.parameters()]


def test_what_is_cheap_to_make_again_is_not_kept(model, monkeypatch):
    """The same gradients, bit for bit, and a quarter of the activations less."""
    monkeypatch.setattr("blip_core.model.memory.WORTH_IT", 0)
    thrifty, gradients = kept_values(copy.deepcopy(model))
    monkeypatch.setattr("blip_core.model.vit.keep_input", lambda module, x: module(x))
    plain, expected = kept_values(copy.deepcopy(model))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert thrifty < 0.75 * plain


def test_weights_in_bf16_give_what_autocast_makes_of_fp32(model, tokenizer):
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    lowered = for_inference(copy.deepcopy(model), "bf16")
    assert lowered.med.blocks[0].mlp[0].weight.dtype == torch.bfloat16 and lowered.vit.norm.weight.dtype == torch.float32

    @torch.inference_mode()
    def logits(network, bf16: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            images = network.keys_values(network.image_tokens(pixels(3)))
            hidden = network.caption_hidden(ids, images)
            return [network.match_logits(ids, mask, images), network.med.vocabulary_logits(hidden).float()]

    for exact, cast, low in zip(logits(model, False), logits(model, True), logits(lowered, True), strict=True):
        assert 0 < (low - exact).std() < 1.5 * (cast - exact).std(), "further from fp32 than autocast"
    unchanged = for_inference(copy.deepcopy(model), "fp32")
    assert all(torch.equal(a, b) for a, b in zip(unchanged.state_dict().values(), model.state_dict().values(), strict=True))


def test_a_loaded_model_can_be_trained(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    loaded.image_tokens(pixels(1)).sum().backward()
    assert loaded.vit.cls.grad.abs().sum() > 0 and all(p.requires_grad and p.is_leaf for p in loaded.parameters())


def test_padding_changes_nothing(model, tokenizer):
    short, long = tokenize(tokenizer, TEXTS[:1], max_tokens=20), tokenize(tokenizer, TEXTS, max_tokens=20)
    tokens = model.image_tokens(pixels(1))
    torch.testing.assert_close(model.text_features(*short)[0], model.text_features(*long)[0])
    alone = model.match_logits(*short, model.keys_values(tokens))
    padded = model.match_logits(*long, model.keys_values(tokens))[:1]
    torch.testing.assert_close(alone, padded, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("role", ["encode", "ground"])
def test_the_first_token_alone_is_that_of_the_whole(model, tokenizer, role):
    """What ITC and ITM read, and its gradient, do not depend on whether the last layer makes the other tokens too."""
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    images = [model.keys_values(model.image_tokens(pixels(3)))] if role == "ground" else []
    alone, whole = (getattr(model.med, role)(ids, mask, *images, first_only=first_only) for first_only in (True, False))
    assert alone.shape == (len(ids), 1, whole.shape[-1])
    torch.testing.assert_close(alone[:, 0], whole[:, 0], atol=1e-6, rtol=1e-6)
    weights = model.med.blocks[0].encoder_attention.qkv.weight
    of_alone, of_whole = (torch.autograd.grad(t[:, 0, 0].sum(), weights, retain_graph=True)[0] for t in (alone, whole))
    assert of_whole.abs().max() > 1e-3
    torch.testing.assert_close(of_alone, of_whole, atol=1e-5, rtol=1e-5)


def test_the_mean_of_a_texts_tokens_is_compared_where_pooling_says_so(model, tokenizer, tmp_path):
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    assert "pooling" not in model.cfg.model_dump(), "what is written of a model that compares the first token stays as it was"
    first = model.text_features(ids, mask)
    model.cfg = model.cfg.model_copy(update={"pooling": "mean"})
    save_model(model.eval(), tokenizer, tmp_path / "m")
    found = load_model(tmp_path / "m")[0].text_features(ids, mask)
    for row, (text, apart) in enumerate(zip(TEXTS, found, strict=True)):
        alone = model.med.encode(*tokenize(tokenizer, [text], max_tokens=20))[0].mean(0)
        torch.testing.assert_close(apart, torch.nn.functional.normalize(model.text_projection(alone), dim=-1), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(apart, first[row], atol=1e-3)
    with pytest.raises(ValueError, match="model.pooling is mean, and transformers compares the first token"):
        export_huggingface(model, tokenizer, tmp_path / "hf", kind="retrieval")


def test_decoding_is_causal_and_steps_equal_the_whole(model, tokenizer):
    """Token by token with cached keys and values, the decoder gives what one pass over the whole text gives."""
    ids, _ = tokenize(tokenizer, TEXTS[1:2], max_tokens=20)
    keys_values = model.keys_values(model.image_tokens(pixels(1)))
    whole = model.caption_hidden(ids, keys_values)
    ids = ids.clone()
    ids[:, 0] = model.special.dec
    past, steps = None, []
    for i in range(ids.shape[1]):
        hidden, past = model.med.step(ids[:, i : i + 1], keys_values, past)
        steps.append(hidden)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_enc_stands_first_when_matching(model, tokenizer):
    """The trained ITM score has [ENC] at position 0, whatever token the caller left there."""
    keys_values = model.keys_values(model.image_tokens(pixels(3)))
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    other = ids.clone()
    other[:, 0] = model.special.enc
    assert torch.equal(model.match_logits(ids, mask, keys_values), model.match_logits(other, mask, keys_values))
    hidden_with_cls = model.med.ground(ids, mask, keys_values)
    assert not torch.allclose(model.match_head(hidden_with_cls[:, 0]), model.match_logits(ids, mask, keys_values), atol=1e-3)
