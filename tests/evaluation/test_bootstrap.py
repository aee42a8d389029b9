"""Intervals and paired tests: right coverage, clusters kept together, bits that depend on nothing but data and seed."""

import numpy as np
import pytest

from blip_core.evaluation import bootstrap
from blip_core.evaluation.bootstrap import interval, paired, sums_by_image
from blip_core.evaluation.metrics import bleu, bleu_counts

OPTIONS = {"resamples": 500, "confidence": 0.95, "seed": 0}


def columns(values):
    return sums_by_image(np.asarray(values, dtype=float), [f"image-{i:04}" for i in range(len(values))])


def test_interval_equals_the_normal_theory_of_a_large_sample():
    values = np.random.default_rng(1).normal(5, 2, 2000)
    found = interval(columns(values), resamples=4000, confidence=0.9, seed=0)
    error = 1.645 * values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_intervals_hold_the_truth_as_often_as_they_claim():
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        of_image = np.repeat(rng.normal(0, 1, 40), 5)  # five texts that agree with their image
        found = interval(sums_by_image(of_image + rng.normal(0, 0.1, 200), [str(i // 5) for i in range(200)]), **OPTIONS)
        held += found.low <= 0 <= found.high
    assert 0.88 < held / 200 <= 1  # drawing the texts one by one gives 0.6


def test_texts_of_an_image_stay_together():
    values, images = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    found = interval(sums_by_image(np.array(values), images), **OPTIONS)
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


def test_order_of_rows_and_size_of_blocks_change_no_bit(monkeypatch):
    rng = np.random.default_rng(2)
    values, images = rng.normal(size=300), rng.integers(40, size=300).astype(str)
    other = rng.permutation(300)
    first = interval(sums_by_image(values, images), **OPTIONS)
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", 100)
    assert interval(sums_by_image(values[other], images[other]), **OPTIONS) == first
    assert interval(sums_by_image(values, images), **{**OPTIONS, "seed": 1}) != first


def test_a_clear_gain_is_found_and_the_other_way_round_is_its_mirror():
    rng = np.random.default_rng(3)
    theirs = rng.normal(0, 1, 200)
    ours = theirs + rng.normal(0.05, 0.1, 200)  # far below the spread over images: only pairing can see it
    gain, loss = paired(columns(ours), columns(theirs), **OPTIONS), paired(columns(theirs), columns(ours), **OPTIONS)
    assert gain.low > 0 and gain.p < 0.01
    assert (loss.difference, loss.low, loss.high, loss.p) == pytest.approx((-gain.difference, -gain.high, -gain.low, gain.p))
    assert gain.difference == pytest.approx(gain.challenger - gain.baseline)


def test_equal_models_do_not_differ():
    found = paired(columns([0, 1, 1, 0]), columns([0, 1, 1, 0]), **OPTIONS)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_false_alarms_are_as_rare_as_promised():
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        alarms += paired(columns(rng.normal(size=80)), columns(rng.normal(size=80)), **OPTIONS).p < 0.05
    assert alarms / 200 < 0.1


def test_corpus_bleu_is_drawn_as_a_corpus():
    """Equal images have equal corpus BLEU however they are drawn, though BLEU is no mean of the images' values."""
    references = {f"{i:02}": ["a red ball lies on the green grass"] for i in range(10)}
    counts = bleu_counts(references, dict.fromkeys(references, "a red ball lies on grass"))
    found = interval(counts, lambda sums: bleu(sums)[..., 3], **OPTIONS)
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high) and 0 < found.value < 1


def test_one_image_gives_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        interval(columns([1.0]), **OPTIONS)


@pytest.mark.parametrize("values", [[np.nan, 1.0], [np.inf, 1.0], [1.0], []])
def test_values_that_cannot_be_averaged_are_refused(values):
    with pytest.raises(ValueError, match="NaN|one value for each item"):
        sums_by_image(np.array(values), ["a", "b"])
