"""Maps say what a network needs: without its hottest patches it is less sure than without as many random ones.

The network learns for some seconds pictures with one coloured thing on grey, at any place: what matches, what to say, what to answer.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blip_core.capfilt.med import score_texts
from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.gradcam.words import How, look_for_match
from blip_core.model.vqa import vqa_of
from blip_core.weights.checkpoint import new_model

COLOURS = {"a red ball": (220, 30, 20), "a green box": (20, 200, 40), "a blue star": (30, 40, 220)}
QUESTION, SIDE, PATCH = "what is there", 4, 8


def scenes(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of 4 x 4 patches, and the text of each."""
    rng, pictures = np.random.default_rng(seed), []
    texts = [list(COLOURS)[i] for i in rng.integers(3, size=count)]
    for (y, x), text in zip(rng.integers(4, SIDE * PATCH - 4, (count, 2)), texts, strict=True):
        picture = rng.integers(80, 160, (SIDE * PATCH, SIDE * PATCH, 3))
        picture[y - 4 : y + 4, x - 4 : x + 4] = COLOURS[text]
        pictures.append(picture.astype(np.uint8))
    return pictures, texts


@pytest.fixture(scope="module")
def learned(model_cfg, tokenizer):
    """A model that has learned ITM and LM, and one that answers, each trained for some seconds."""
    vision = model_cfg.vision.model_copy(update={"image_size": SIDE * PATCH})
    model = new_model(model_cfg.model_copy(update={"vision": vision}), tokenizer, seed=0)

    def both(pixels, ids, mask):
        images = model.keys_values(model.image_tokens(pixels))
        wrong, wrong_mask = (t[torch.arange(1, len(ids) + 1) % len(ids)] for t in (ids, mask))
        odds = model.match_logits(torch.cat([ids, wrong]), torch.cat([mask, wrong_mask]), images, images)
        truth = torch.cat([torch.ones(len(ids)), (wrong == ids).all(1)]).long()
        words = model.med.vocabulary_logits(model.caption_hidden(ids, images, mask))[:, :-1]
        return F.cross_entropy(odds, truth) + F.cross_entropy(words.flatten(0, 1), ids[:, 1:].flatten())

    train(model, both, tokenizer, steps=150)
    vqa = vqa_of(model)

    def answer(pixels, ids, mask):
        asked, asked_mask = tokenize(tokenizer, [QUESTION] * len(ids), max_tokens=12)
        return vqa.answer_loss(vqa.memory(pixels, asked, asked_mask), ids, mask, label_smoothing=0.0).mean()

    train(vqa, answer, tokenizer, steps=60)
    return model, vqa


def train(network, loss, tokenizer, *, steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        pictures, texts = scenes(24, step)
        value = loss(load_pixels(pictures, SIDE * PATCH), *tokenize(tokenizer, texts, max_tokens=12))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    network.eval()


@pytest.fixture
def deletion(monkeypatch):
    """The benchmark's own measure."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks/truth"))
    import deletion

    yield deletion
    del sys.modules["deletion"]


def test_without_the_hottest_patches_the_score_falls_further(learned, deletion, tokenizer):
    model, vqa = learned
    pictures, texts = scenes(64, 10_000)
    for found in (
        deletion.match_drops(model, tokenizer, pictures, texts, seed=0),
        deletion.caption_drops(model, tokenizer, pictures, texts, seed=0),
        deletion.answer_drops(vqa, tokenizer, pictures, [QUESTION] * 64, texts, seed=0),
    ):
        gain = found.hot - found.random
        assert found.hot.mean() > 2 * found.random.mean() > 0
        assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


def test_the_map_of_another_picture_says_nothing(learned, deletion, tokenizer):
    """The measure tells a right map from a wrong one."""
    pictures, texts = scenes(64, 20_000)

    def score(shown):
        return score_texts(learned[0], tokenizer, list(shown), [[t] for t in texts], max_tokens=12).itm_logit

    own = [look.whole for look in look_for_match(learned[0], tokenizer, pictures, texts, How(12, "fp32"))]
    right, wrong = (deletion.drops(pictures, maps, score, seed=0).hot.mean() for maps in (own, own[1:] + own[:1]))
    assert right > 2 * wrong
