"""Sampling draws from the right distribution and depends on the image alone; beam search finds what enumeration finds."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from blip_core.capfilt.med import sample_draws
from blip_core.model.generate import Limits, beam_search, draw_nucleus, most_probable, nucleus


def images(model, count: int):
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return model.keys_values(model.image_tokens(pixels))


def test_nucleus_draws_from_the_renormalised_smallest_set():
    """p = 0.8 over (.5, .2, .15, .1, .05): the set is the first three, the third crosses p."""
    probability = torch.tensor([0.1, 0.5, 0.05, 0.2, 0.15])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens = draw_nucleus(probability.log().expand(20_000, -1), 0.8, draws)
    counts = torch.bincount(tokens, minlength=5).numpy()
    assert counts[0] == counts[2] == 0
    expected = np.array([0.5, 0.2, 0.15]) / 0.85 * 20_000
    assert chisquare(counts[[1, 3, 4]], expected).pvalue > 0.01


def test_nucleus_of_one_keeps_every_token_and_of_zero_the_best():
    logits = torch.zeros(1000, 4)
    logits[:, 2] = 1.0
    draws = torch.linspace(0, 1 - 1e-6, 1000)
    assert set(draw_nucleus(logits, 1.0, draws).tolist()) == {0, 1, 2, 3}
    assert set(draw_nucleus(logits, 1e-9, draws).tolist()) == {2}


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("levels", [0, 3])
def test_the_short_list_holds_what_the_whole_sort_begins_with(spread, levels):
    """Also where many tokens are equally probable, as in bf16: the same token for the same draw."""
    generator = torch.Generator().manual_seed(int(spread * 100) + levels)
    logits = torch.randn(6, 500, generator=generator) * spread
    if levels:
        logits = (logits * levels).round() / levels
    probability = logits.softmax(-1)
    whole_probability, whole = most_probable(probability, 0.9, first=500)
    short_probability, short = most_probable(probability, 0.9, first=32)
    inside = int(((whole_probability.cumsum(-1) - whole_probability) < 0.9).sum(-1).max())
    assert torch.equal(short[:, :inside], whole[:, :inside]) and torch.equal(short_probability[:, :inside], whole_probability[:, :inside])
    assert short.shape[1] == (32 if spread == 8.0 else 500)


def test_a_sample_depends_on_its_key_and_not_on_the_batch(model, tokenizer):
    keys, limits = ["web-a", "web-b", "web-c"], Limits(min_tokens=2, max_tokens=8)
    all_images = images(model, 3)
    start = tokenizer.encode_prompt("")
    together = nucleus(model, all_images, start, limits, p=0.9, draws_IKL=sample_draws(keys, 2, 8, seed=5))
    order = [2, 0, 1]
    shuffled = nucleus(
        model,
        [(k[order], v[order]) for k, v in all_images],
        start,
        limits,
        p=0.9,
        draws_IKL=sample_draws([keys[i] for i in order], 2, 8, seed=5),
    )
    alone = nucleus(model, [(k[1:2], v[1:2]) for k, v in all_images], start, limits, p=0.9, draws_IKL=sample_draws(keys[1:2], 3, 8, seed=5))
    assert torch.equal(together[order][..., : shuffled.shape[-1]], shuffled)
    shortest = min(together.shape[-1], alone.shape[-1])
    assert torch.equal(together[1][:, :shortest], alone[0][:2, :shortest])
    other_seed = nucleus(model, all_images, start, limits, p=0.9, draws_IKL=sample_draws(keys, 2, 8, seed=6))
    assert not torch.equal(together, other_seed)


def test_limits_hold(model, tokenizer):
    for ids in nucleus(
        model,
        images(model, 4),
        tokenizer.encode_prompt(""),
        Limits(min_tokens=3, max_tokens=5),
        p=1.0,
        draws_IKL=sample_draws(list("abcd"), 5, 5, 0),
    ).flatten(0, 1):
        before_end = ids.tolist().index(tokenizer.sep) if tokenizer.sep in ids else 5
        assert before_end >= 3
        assert all(i == tokenizer.pad for i in ids[before_end + 1 :])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beam_search_finds_the_best_of_all_captions(model, tokenizer, length_penalty):
    """With as many beams as there are prefixes nothing is pruned: the answer is the best by enumeration."""
    allowed = [tokenizer.sep, *tokenizer.encode("red ball star", max_tokens=9)[1:-1]]
    with torch.no_grad():
        blocked = torch.ones_like(model.med.head_bias, dtype=torch.bool)
        blocked[allowed] = False
        model.med.head_bias[blocked] = -1e4
    limits, start = Limits(min_tokens=1, max_tokens=3), tokenizer.encode_prompt("")
    keys_values = images(model, 2)
    found = beam_search(model, keys_values, start, limits, beams=27, length_penalty=length_penalty)[:, 0]
    for i in range(2):
        image = [(k[i : i + 1], v[i : i + 1]) for k, v in keys_values]
        best = max(captions(allowed, limits), key=lambda c: log_probability(model, image, start, c) / len(c) ** length_penalty)
        assert [t for t in found[i].tolist() if t != tokenizer.pad] == list(best)


def captions(allowed: list[int], limits: Limits):
    """Every caption of the allowed tokens: words, then [SEP] unless the limit cuts it."""
    sep, *words = allowed
    for length in range(limits.max_tokens + 1):
        for body in itertools.product(words, repeat=length):
            if length == limits.max_tokens:
                yield body
            elif length >= limits.min_tokens:
                yield (*body, sep)


def log_probability(model, image, start: list[int], caption: tuple[int, ...]) -> float:
    ids = torch.tensor([[*start, *caption]])
    logits = model.med.vocabulary_logits(model.med.decode(ids[:, :-1], image)).log_softmax(-1)
    return float(sum(logits[0, len(start) - 1 + i, t] for i, t in enumerate(caption)))
