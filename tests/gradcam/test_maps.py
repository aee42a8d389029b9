"""Attention maps: the numbers are those of the attention that the model computes, and they follow the picture."""

import pytest
import torch

from blip_core.compute.padding import tokenize
from blip_core.demo import attention_map
from blip_core.demo.attention_map import cross_attention, grad_cam, usual_layer
from blip_core.model.attention import split_heads
from blip_core.model.packing import Packing

LAYERS = (0, 1)


@pytest.fixture
def pair(model, tokenizer):
    """Two texts and two pictures: ids, mask, keys and values; the pictures' pixels."""
    ids, mask = tokenize(tokenizer, ["a red ball on grass", "star"], max_tokens=12)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return ids, mask, pixels


def images_of(model, pixels):
    with torch.no_grad():
        return model.keys_values(model.image_tokens(pixels))


@pytest.mark.parametrize("layer", LAYERS)
def test_logits_are_those_of_the_model_and_rows_sum_to_one(model, pair, layer):
    ids, mask, pixels = pair
    images = images_of(model, pixels)
    with torch.no_grad():
        logits, weights = cross_attention(model, ids, mask, images, layer=layer)
        torch.testing.assert_close(logits, model.match_logits(ids, mask, images), atol=1e-5, rtol=1e-5)
    assert weights.shape == (2, 3, ids.shape[1], 5)  # [CLS] and four patches
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    assert weights.std(-1).max() > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_the_softmax_of_the_layers_own_queries_and_keys(model, pair, layer):
    ids, mask, pixels = pair
    images, seen = images_of(model, pixels), {}
    attention = model.med.blocks[layer].cross_attention
    hook = attention.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        model.med.ground(model.pair_ids(ids), mask, images)
        hook.remove()
        _, weights = cross_attention(model, ids, mask, images, layer=layer)
        q = split_heads(attention.query(Packing(mask).spread(seen["x"])), attention.num_heads)
        expected = torch.einsum("bhtd,bhnd->bhtn", q, images[layer][0]).div(q.shape[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close(weights.transpose(1, 2)[mask], expected.transpose(1, 2)[mask])


def test_another_patch_is_another_map_of_its_own_picture_alone(model, pair):
    ids, mask, pixels = pair
    changed = pixels.clone()
    changed[0, :, 8:, 8:] += 2
    with torch.no_grad():
        before, after = (cross_attention(model, ids, mask, images_of(model, p), layer=1)[1] for p in (pixels, changed))
    assert (before[0] - after[0]).abs().max() > 1e-3
    torch.testing.assert_close(before[1], after[1])


def test_grad_cam_weighs_by_what_the_match_logit_gains(model, pair, monkeypatch):
    """Against finite differences: the logit when one weight of one head grows a little."""
    ids, mask, pixels = pair
    images, step = images_of(model, pixels), 1e-2
    cam = grad_cam(model, ids, mask, images, layer=0)
    with torch.no_grad():
        before, weights = cross_attention(model, ids, mask, images, layer=0)
    plain, grown = attention_map._weights, torch.zeros_like(weights)
    monkeypatch.setattr(attention_map, "_weights", lambda *args: plain(*args) + grown)
    for token, patch in ((1, 2), (2, 4), (3, 0)):
        expected = 0.0
        for head in range(weights.shape[1]):
            grown.zero_()[0, head, token, patch] = step
            with torch.no_grad():
                gain = (cross_attention(model, ids, mask, images, layer=0)[0] - before)[0, 1] / step
            expected += max(0.0, float(gain)) * float(weights[0, head, token, patch]) / weights.shape[1]
        assert float(cam[0, token, patch]) == pytest.approx(expected, rel=0.05, abs=1e-4)
    assert cam[:, 1:].max() > 1e-3


def test_the_last_layer_has_a_gradient_for_the_first_token_alone(model, pair):
    ids, mask, pixels = pair
    cam = grad_cam(model, ids, mask, images_of(model, pixels), layer=1)
    assert cam[:, 0].max() > 0 and cam[:, 1:].max() == 0
    assert [usual_layer(depth) for depth in (1, 2, 3, 12)] == [0, 0, 1, 8]


def test_words_of_a_text_and_the_places_of_their_pieces(tokenizer):
    words = tokenizer.words("A red, Bax!", max_tokens=12)
    assert [word for word, _ in words] == ["A", "red", ",", "Bax", "!"]
    ids = tokenizer.encode("A red, Bax!", max_tokens=12)
    assert [p for _, places in words for p in places] == list(range(1, len(ids) - 1))
    cut = tokenizer.words("a red ball on grass", max_tokens=5)
    assert [word for word, _ in cut] == ["a", "red", "ball"]
