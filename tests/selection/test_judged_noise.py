"""People judge a sample of the kept texts, and their labels bound the noise of all: how often the bound holds, and how near it is."""

import numpy as np
import pytest
from scipy.stats import binomtest

from blip_core.review.choose import choose_cards, read_rule
from blip_core.selection.judged_noise import drawn_for, judged_noise, regression_estimate, upper_bound
from blip_core.tables.captions import read_tables
from tests.support.reviews import GENERATION, said, words, write_generation

ALPHA = 0.05


def drawn(rate: float, told_by_score: float, count: int, trials: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Estimates, bounds and the truth of samples of 4,000 kept texts, half of each from the third with the lowest scores."""
    draw = np.random.default_rng(7)
    wrong = (draw.random(4000) < rate).astype(float)
    score = draw.normal(size=4000) - told_by_score * wrong
    low, high = np.split(np.argsort(score), [1333])
    weight = np.repeat([len(low), len(high)], count // 2) / (count // 2 * 4000)
    found = []
    for _ in range(trials):
        rows = np.r_[draw.choice(low, count // 2, replace=False), draw.choice(high, count // 2, replace=False)]
        share, variance = regression_estimate(wrong[rows], weight, score[rows], np.arange(count), float(score.mean()))
        found.append((share, upper_bound(share, variance, count, ALPHA)))
    share, upper = np.array(found).T
    return share, upper, float(wrong.mean())


@pytest.mark.parametrize("count", [30, 100])
@pytest.mark.parametrize("told_by_score", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("rate", [0.01, 0.06, 0.3, 0.6])
def test_the_bound_holds_as_often_as_it_says_and_the_estimate_leans_to_no_side(rate, told_by_score, count):
    share, upper, truth = drawn(rate, told_by_score, count, 600)
    assert np.mean(upper >= truth) >= 0.93  # 0.95 less two standard errors of 600 trials
    assert abs(share.mean() - truth) < 0.2 * share.std() + 0.003


def test_a_score_that_tells_brings_the_bound_nearer():
    plain, sharp = (float(np.mean(upper - truth)) for _, upper, truth in (drawn(0.3, told, 100, 200) for told in (0.0, 2.5)))
    assert sharp < 0.7 * plain


def test_without_help_of_the_score_it_is_clopper_and_pearsons():
    wrong = np.repeat([1.0, 0.0], [12, 88])
    share, variance = regression_estimate(wrong, np.full(100, 0.01), np.zeros(100), np.arange(100), 0.0)
    exact = binomtest(12, 100).proportion_ci(0.9, "exact").high
    assert share == pytest.approx(0.12) and upper_bound(share, variance, 100, ALPHA) == pytest.approx(exact, abs=0.003)
    assert upper_bound(0.0, 0.0, 60, ALPHA) == pytest.approx(1 - ALPHA ** (1 / 60))
    assert upper_bound(1.0, 0.0, 60, ALPHA) == 1.0


def test_a_score_that_rises_with_the_noise_is_not_believed():
    wrong, score = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.1, 0.8, 0.2])
    share, _ = regression_estimate(wrong, np.full(4, 0.25), score, np.arange(4), 0.9)
    assert share == 0.5


def test_texts_of_a_picture_count_as_one_as_far_as_they_agree():
    wrong, weight, score = np.repeat([1.0, 0.0], [10, 30]), np.full(40, 1 / 40), np.zeros(40)
    alone = regression_estimate(wrong, weight, score, np.arange(40), 0.0)
    in_pairs = regression_estimate(wrong, weight, score, np.arange(40) // 2, 0.0)
    assert alone[0] == in_pairs[0] and in_pairs[1] == pytest.approx(2 * alone[1], rel=0.1)


def test_a_sheet_of_kept_texts_bounds_each_source(tmp_path):
    folder = tmp_path / "g1"
    truth = write_generation(folder, 1200)
    cards = choose_cards(folder, rule=read_rule(folder, kept=True), count=200, seed=0)
    assert {r.reason for card in cards for r in card.rows} == {"kept"}
    found = judged_noise(said(cards, words(truth)), folder, score="match", confidence=0.95, min_labels=30)
    rows = read_tables(folder).to_pylist()
    for source in ("web", "synthetic"):
        fates = [truth[r["text"]] for r in rows if r["source"] == source and r["reason"] == "kept"]
        noise = 1 - sum(fates) / len(fates)
        assert found[source].texts == 100 and abs(found[source].share - noise) < 0.1 and noise < found[source].upper < noise + 0.2
    assert not judged_noise(said(cards, words(truth)), folder, score="match", confidence=0.95, min_labels=101)
    web = choose_cards(folder, rule=read_rule(folder, source="web"), count=100, seed=0)
    assert {r.pair.source for card in web for r in card.rows} == {"web"}
    with pytest.raises(ValueError, match="no threshold for the texts of source 'wbe'; there are web, synthetic"):
        read_rule(folder, source="wbe")


def test_labels_of_other_candidates_or_of_a_narrower_sheet_stand_for_nothing(tmp_path):
    folder = tmp_path / "g1"
    truth = write_generation(folder, 60)
    cards = choose_cards(folder, rule=read_rule(folder), count=24, seed=0)
    one, other = "a" * 16, "b" * 16
    for asked, candidates, generation, counts in (
        ("all", None, GENERATION, True),
        ("kept", one, GENERATION, True),
        ("all", one, other, True),
        ("kept", one, other, False),  # a text that is kept since then had no chance to be asked about
        ("all", other, other, False),
        ("all", None, other, False),
    ):
        labels = said(cards, words(truth), asked=asked, candidates=candidates, generation=generation)
        assert bool(drawn_for(labels, generation=GENERATION * 4, scores=one * 4)) is counts
