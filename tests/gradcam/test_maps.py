"""Maps: the numbers are those of the attention that the network computes, what a score gains is what they weigh, and the network stays as
it was."""

import threading

import pytest
import torch

from blip_core.compute.padding import pad, tokenize
from blip_core.gradcam import maps as maps_module
from blip_core.gradcam.maps import answer_maps, caption_maps, expose, match_maps, usual_layer
from blip_core.gradcam.words import How, look_for_caption, look_for_match
from blip_core.model.attention import split_heads
from blip_core.model.inference import for_inference
from blip_core.model.packing import Packing
from blip_core.model.vqa import vqa_of

LAYERS = (0, 1)
TEXTS = ["a red ball on grass", "star"]


@pytest.fixture
def pair(tokenizer):
    """Two texts and two pictures: ids, mask and pixels."""
    return *tokenize(tokenizer, TEXTS, max_tokens=12), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def images_of(model, pixels):
    return model.keys_values(model.image_tokens(pixels))


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_exposed_is_what_the_network_computes(model, pair, layer):
    """As image-grounded encoder and as decoder: the states, and weights that sum to one."""
    ids, mask, pixels = pair
    images = images_of(model, pixels)
    with torch.no_grad():
        for causal, expected in ((False, model.med.ground(ids, mask, images)), (True, model.med.decode(ids, images, mask))):
            hidden, weights = expose(model.med, ids, mask, images, layer=layer, causal=causal)
            torch.testing.assert_close(hidden[mask], expected[mask], atol=1e-5, rtol=1e-5)
            assert weights.shape == (2, 3, ids.shape[1], 5)  # [CLS] and four patches
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
            assert weights.std(-1).max() > 1e-3


def test_weights_are_the_softmax_of_the_layers_own_queries_and_keys(model, pair):
    ids, mask, pixels = pair
    images, seen = images_of(model, pixels), {}
    attention = model.med.blocks[1].cross_attention
    hook = attention.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        model.med.ground(ids, mask, images)
        hook.remove()
        _, weights = expose(model.med, ids, mask, images, layer=1)
        q = split_heads(attention.query(Packing(mask).spread(seen["x"])), attention.num_heads)
        expected = torch.einsum("bhtd,bhnd->bhtn", q, images[1][0]).div(q.shape[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close(weights.transpose(1, 2)[mask], expected.transpose(1, 2)[mask])


def test_another_patch_is_another_map_of_its_own_picture_alone(model, pair):
    ids, mask, pixels = pair
    changed = pixels.clone()
    changed[0, :, 8:, 8:] += 2
    before, after = (match_maps(model, ids, mask, images_of(model, p), layer=1, kind="attention") for p in (pixels, changed))
    assert (before[0] - after[0]).abs().max() > 1e-3
    torch.testing.assert_close(before[1], after[1])


@pytest.fixture
def judged(model, pair, tokenizer):
    """By name: the maps of a score, B x T x N, and the score itself: one number, or one for each token."""
    ids, mask, pixels = pair
    images, vqa = images_of(model, pixels), vqa_of(model).eval()
    answer_ids, answer_mask = tokenize(tokenizer, ["blue", "a ball"], max_tokens=12)
    with torch.no_grad():
        seen = vqa.question.keys_values(vqa.vit(pixels))
    written, _ = pad([tokenizer.encode_prompt("") + tokenizer.encode(t, max_tokens=12)[1:] for t in TEXTS], tokenizer.pad)

    def matched():
        return model.match_head(expose(model.med, model.pair_ids(ids), mask, images, layer=0)[0][:, 0])[0, 1]

    def answered():
        states = expose(vqa.question, vqa.question_ids(ids), mask, seen, layer=0)[0]
        return -vqa.answer_loss(vqa.med.keys_values(states, mask), answer_ids, answer_mask, label_smoothing=0.0)[0]

    def said():
        logits = model.med.vocabulary_logits(expose(model.med, written, mask, images, layer=0, causal=True)[0][:, :-1])
        return logits.log_softmax(-1).gather(2, written[:, 1:, None])[0, :, 0]

    return {
        "match": (match_maps(model, ids, mask, images, layer=0), matched),
        "answer": (answer_maps(vqa, ids, mask, answer_ids, answer_mask, seen, layer=0), answered),
        "caption": (caption_maps(model, written, mask, images, layer=0), said),
    }


@pytest.mark.parametrize("name", ["match", "answer", "caption"])
def test_grad_cam_weighs_by_what_the_score_gains(judged, name, monkeypatch):
    """Against finite differences: the score when one weight of one head grows a little. A caption's token has all places before it."""
    found, score = judged[name]
    plain, shape, step = maps_module._weights, (2, 3, found.shape[1], 5), 1e-2
    grown, seen = torch.zeros(shape), {}
    monkeypatch.setattr(maps_module, "_weights", lambda *args: seen.setdefault("weights", plain(*args)) + grown)
    with torch.no_grad():
        before = score()
        for token, patch in ((1, 2), (2, 4), (3, 0)):
            expected = 0.0
            for head in range(3):
                for row in range(token) if name == "caption" else (token,):
                    grown.zero_()[0, head, row, patch] = step
                    gain = (score() - before) / step
                    gain = gain[token - 1] if name == "caption" else gain
                    expected += max(0.0, float(gain)) * float(seen["weights"][0, head, row, patch]) / 3
            assert float(found[0, token, patch]) == pytest.approx(expected, rel=0.1, abs=2e-4)
    assert found[:, 1:].max() > 1e-3


def test_the_last_layer_has_a_gradient_for_the_first_token_alone(model, pair):
    ids, mask, pixels = pair
    cam = match_maps(model, ids, mask, images_of(model, pixels), layer=1)
    assert cam[:, 0].max() > 0 and cam[:, 1:].max() == 0
    assert [usual_layer(depth) for depth in (1, 2, 3, 12)] == [0, 0, 1, 8]


@pytest.fixture
def pictures():
    return list(torch.randint(0, 256, (11, 20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy())


def test_a_pair_has_its_own_map_in_any_company(model, tokenizer, pictures):
    """Over several parts, with a prompt, of words with several pieces."""
    how, texts = How(12, "fp32"), ["a red ball", "next to Grass, on a star", "box"] * 3 + ["a", "green green"]
    for look, options in ((look_for_match, {}), (look_for_caption, {"prompt": "a photo of"})):
        together = look(model, tokenizer, pictures, texts, how, **options)
        assert [len(found.words) for found in together[:3]] == [3, 7, 1] and together[1].words[2:4] == ["Grass", ","]
        for i in (0, 1, 10):
            [alone] = look(model, tokenizer, [pictures[i]], [texts[i]], how, **options)
            torch.testing.assert_close(alone.weights, together[i].weights, atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(alone.whole, together[i].whole, atol=1e-6, rtol=1e-3)
        assert all(found.whole.shape == (2, 2) and found.whole.max() > 0 for found in together)


def test_a_served_network_stays_as_it_is_and_answers_others_meanwhile(model, tokenizer, pictures):
    """In bf16, asked from inference mode, in several threads."""
    for_inference(model, "bf16")
    how, texts, found = How(12, "bf16"), ["a red ball on grass"] * 11, {}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.inference_mode()
    def ask(number):
        found[number] = look_for_match(model, tokenizer, pictures, texts, how) + look_for_caption(model, tokenizer, pictures, texts, how)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (1, 2):
        assert all((one.weights == other.weights).all() for one, other in zip(found[0], found[number], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_what_has_no_map_is_said(model, tokenizer, pictures):
    def match(**how):
        return look_for_match(model, tokenizer, pictures[:1], ["a"], How(12, "fp32", **how))

    with pytest.raises(ValueError, match="layer 2 is the last.*no word has a gradient there"):
        match(layer=1)
    assert match(layer=1, kind="attention")[0].layer == 1
    with pytest.raises(ValueError, match="layer 4: this model has 2"):
        match(layer=3)
    model.missing = frozenset({"match"})
    with pytest.raises(ValueError, match="the head of ITM.: not in the loaded checkpoint"):
        match()


def test_words_of_a_text_and_the_places_of_their_pieces(tokenizer):
    words = tokenizer.words("A red, Bax!", max_tokens=12)
    assert [word for word, _ in words] == ["A", "red", ",", "Bax", "!"]
    ids = tokenizer.encode("A red, Bax!", max_tokens=12)
    assert [p for _, places in words for p in places] == list(range(1, len(ids) - 1))
    cut = tokenizer.words("a red ball on grass", max_tokens=5)
    assert [word for word, _ in cut] == ["a", "red", "ball"]
