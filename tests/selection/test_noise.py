"""The bound must cover the truth in worlds where the truth is known, and must still say something."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from blip_core.selection.noise import FALSE_KINDS, Judged, leftover, lower_limit, residual_noise, upper_limit

MEANS = {"true": 0.25, "mismatched": -2.3, "crawled": -2.0, "perturbed": -1.3}  # of normal scores; what is above 0 passes
CONFIDENCE = 0.9


def judged(score: np.ndarray, image: np.ndarray) -> Judged:
    return Judged(score, score > 0, image)


def planted(rng: np.random.Generator, *, pictures: int, per_picture: int, alike: float) -> tuple[np.ndarray, Judged]:
    """Controls whose scores correlate within a picture and kind by `alike`."""
    own = np.repeat(rng.normal(size=(len(MEANS), pictures)), per_picture, axis=1) * alike**0.5
    scores = own + rng.normal(size=own.shape) * (1 - alike) ** 0.5 + np.array(list(MEANS.values()))[:, None]
    images = np.tile(np.repeat(np.arange(pictures), per_picture), len(MEANS))
    return np.repeat(list(MEANS), pictures * per_picture), judged(scores.ravel(), images)


def trial(rng: np.random.Generator, *, noise: float, kinds: dict[str, float], texts: int, alike: float, lower: float = 0.0):
    """The true share of noise among the texts that pass, and its estimate. Fitting texts of the crawl score `lower` than planted ones."""
    kind, controls = planted(rng, pictures=150, per_picture=2, alike=alike)
    false = rng.random(texts) < noise
    means = np.array([MEANS.get(k, -0.9) for k in kinds])[rng.choice(len(kinds), texts, p=list(kinds.values()))]
    score = rng.normal(size=texts) + np.where(false, means, MEANS["true"] - lower)
    found = residual_noise(kind, controls, judged(score, np.arange(texts)), confidence=CONFIDENCE)
    return float(false[score > 0].mean()), found


MIXTURES = {
    "all_mismatched": {"mismatched": 1.0},
    "all_of_the_worst_kind": {"perturbed": 1.0},
    "of_each": {"mismatched": 0.4, "crawled": 0.3, "perturbed": 0.3},
    "lower_than_any": {"mismatched": 0.0, "perturbed": 0.0, "crawled": 1.0},
}


@pytest.mark.parametrize("noise", [0.1, 0.4, 0.7])
@pytest.mark.parametrize("kinds", list(MIXTURES.values()), ids=list(MIXTURES))
@pytest.mark.parametrize("lower", [0.0, 0.3], ids=["as_planted", "fitting_texts_score_lower"])
def test_the_bounds_cover_the_truth_as_often_as_they_say(noise, kinds, lower):
    rng = np.random.default_rng([int(noise * 10), len(kinds), int(lower * 10)])
    trials = [trial(rng, noise=noise, kinds=kinds, texts=2000, alike=0.3, lower=lower) for _ in range(20)]
    for covered in (np.mean([found.upper >= truth for truth, found in trials]), np.mean([found.worst >= truth for truth, found in trials])):
        assert covered >= CONFIDENCE - 2 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / 20), covered
    if noise > 0.1 or not lower:
        assert np.median([found.upper for _, found in trials]) < noise * 0.9, "no better than no filter at all"


def test_scores_tell_more_than_the_pass_rate():
    """Noise that is all of the easy kind: the bound is far below the one that takes it to be of the worst."""
    trials = [trial(np.random.default_rng(i), noise=0.6, kinds={"mismatched": 1.0}, texts=4000, alike=0.1) for i in range(5)]
    assert all(found.upper < 0.6 * found.worst for _, found in trials)


def test_the_itc_cosine_tells_kinds_apart_that_score_alike():
    """The noise scores like captions with one wrong word, but with a low cosine as only crawled texts have it, and never passes."""
    rng = np.random.default_rng(0)
    kind, controls = planted(rng, pictures=150, per_picture=2, alike=0.1)
    score, cosine = controls.score.copy(), rng.normal(0.8, 0.1, len(kind))
    odd = (kind == "crawled") & (np.arange(len(kind)) % 2 == 0)
    score[odd], cosine[odd] = -np.abs(rng.normal(MEANS["perturbed"], 1, odd.sum())), 0.2
    false = rng.random(4000) < 0.6
    own, itc = rng.normal(np.where(false, 0, MEANS["true"]), 1.0), rng.normal(0.8, 0.1, 4000)
    own[false], itc[false] = -np.abs(rng.normal(MEANS["perturbed"], 1, false.sum())), 0.2
    known, crawl = judged(score, controls.image), judged(own, np.arange(4000))
    without = residual_noise(kind, known, crawl, confidence=CONFIDENCE)
    found = residual_noise(kind, replace(known, itc=cosine), replace(crawl, itc=itc), confidence=CONFIDENCE)
    assert found.upper < 0.6 * without.upper and found.worst == without.worst, "no noise passes here"
    assert residual_noise(kind, replace(known, itc=np.full(len(kind), np.nan)), crawl, confidence=CONFIDENCE) == without, "without a cosine"


def test_the_bound_covers_where_the_pairs_of_a_picture_agree_wholly_and_the_crawl_is_small():
    rng = np.random.default_rng(5)
    trials = [trial(rng, noise=0.3, kinds={"perturbed": 1.0}, texts=300, alike=0.97) for _ in range(40)]
    assert np.mean([found.upper >= truth for truth, found in trials]) >= CONFIDENCE - 0.1


@pytest.mark.parametrize("kinds", [{"perturbed": 1.0}, {"mismatched": 0.5, "perturbed": 0.5}], ids=["worst", "half"])
def test_the_point_estimate_is_about_right_where_the_crawl_scores_as_planted(kinds):
    trials = [trial(np.random.default_rng(i), noise=0.5, kinds=kinds, texts=4000, alike=0.05) for i in range(15)]
    assert np.mean([f.point for _, f in trials]) == pytest.approx(np.mean([t for t, _ in trials]), abs=0.03)


def test_leftover_inverts_the_mixture():
    clean, tpr, fpr = 0.4, 0.7, 0.1
    keep = clean * tpr + (1 - clean) * fpr
    assert leftover(keep, tpr, fpr) == pytest.approx((1 - clean) * fpr / keep)
    assert leftover(0.05, tpr, fpr) == 1.0  # keeps less than noise alone would
    assert leftover(0.9, tpr, fpr) == 0.0


def exact(tpr: float, mismatched: float, perturbed: float, keep: float, n: int = 200, texts: int = 1000, kinds=("true", *FALSE_KINDS)):
    """Exactly these shares pass; scores say no more than that."""
    rates = {"true": tpr, "mismatched": mismatched, "crawled": mismatched, "perturbed": perturbed}
    passed = np.concatenate([np.arange(n) < round(rates[k] * n) for k in kinds])
    kept, pictures = np.arange(texts) < round(keep * texts), np.tile(np.arange(n), len(kinds))
    known, crawl = Judged(passed.astype(float), passed, pictures), Judged(kept.astype(float), kept, np.arange(texts))
    return residual_noise(np.repeat(kinds, n), known, crawl, confidence=0.95)


def test_where_scores_tell_nothing_the_bound_is_about_that_of_the_worst_kind():
    for rates in ((0.6, 0.01, 0.1, 0.3), (0.6, 0.0, 0.05, 0.5), (0.9, 0.2, 0.4, 0.6)):
        found = exact(*rates)
        assert found.upper == pytest.approx(found.worst, abs=0.08) and found.by_kind["perturbed"] < found.upper


@pytest.mark.parametrize(
    "tpr, mismatched, perturbed, keep",
    [(1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.2, 0.0, 0.3, 0.2), (0.3, 0.1, 0.3, 0.3), (0.5, 0.0, 0.1, 0.0), (0.5, 0.0, 0.1, 0.9)],
    ids=["all_pass", "none_passes", "worst_kind_passes_more_than_true", "equal", "nothing_kept", "crawl_passes_more_than_true"],
)
def test_where_the_controls_prove_nothing_the_bound_is_one(tpr, mismatched, perturbed, keep):
    found = exact(tpr, mismatched, perturbed, keep)
    assert found.upper == found.worst == 1.0


def test_no_point_estimate_when_the_filter_is_blind():
    found = exact(0.3, 0.3, 0.5, 0.3)
    assert found.point is None and found.upper == 1.0 and found.by_kind == {}


@pytest.mark.parametrize("missing", FALSE_KINDS)
def test_a_kind_that_was_not_planted_leaves_no_bound(missing):
    found = exact(0.6, 0.01, 0.1, 0.3, kinds=tuple(k for k in ("true", *FALSE_KINDS) if k != missing))
    assert found.fpr[missing] == 1.0 and found.upper == found.worst == 1.0 and found.point is None and missing not in found.by_kind


def test_more_controls_and_a_better_filter_lower_the_bound():
    assert exact(0.6, 0.01, 0.1, 0.3, n=1000).upper < exact(0.6, 0.01, 0.1, 0.3, n=100).upper
    assert exact(0.6, 0.01, 0.05, 0.3).upper < exact(0.6, 0.01, 0.1, 0.3).upper
    few = exact(0.6, 0.0, 0.0, 0.3, n=10)
    assert few.point < 0.01 and few.upper > 0.3, "ten pairs without a miss prove little"


def test_the_bound_is_the_same_each_time():
    assert exact(0.6, 0.01, 0.1, 0.3) == exact(0.6, 0.01, 0.1, 0.3)


def test_limits_are_clopper_pearson_and_count_pictures():
    passed = np.arange(100) < 10
    # one-sided 95 % Clopper-Pearson limits of 10 out of 100 and of 0 out of 100
    assert upper_limit(passed, np.arange(100), alpha=0.05) == pytest.approx(0.16372, abs=1e-4)
    assert lower_limit(passed, np.arange(100), alpha=0.05) == pytest.approx(0.05526, abs=1e-4)
    assert upper_limit(np.zeros(100, bool), np.arange(100), alpha=0.05) == pytest.approx(1 - 0.05**0.01, abs=1e-9)
    twice = np.repeat(passed, 2)  # a second text per picture with the same answer is no news
    assert upper_limit(twice, np.repeat(np.arange(100), 2), alpha=0.05) == pytest.approx(0.16372, abs=3e-3)


def test_neither_the_order_of_rows_nor_the_names_of_pictures_matter():
    """To the last bit, so that equal data give equal files."""
    rng = np.random.default_rng(0)
    kind, known = planted(rng, pictures=90, per_picture=3, alike=0.2)
    crawl = judged(rng.normal(size=900) - 0.33, rng.integers(500, size=900))
    found = residual_noise(kind, known, crawl, confidence=0.9)
    assert 0 < found.upper < 1
    for _ in range(3):
        order, other, names = rng.permutation(len(kind)), rng.permutation(900), rng.permutation(500).astype(np.uint64) * 7**19
        planted_again = Judged(known.score[order], known.passed[order], known.image[order].astype(str))
        crawl_again = Judged(crawl.score[other], crawl.passed[other], names[crawl.image[other]])
        assert residual_noise(kind[order], planted_again, crawl_again, confidence=0.9) == found


def test_a_rule_that_is_more_than_a_threshold():
    """Votes of other filters let pass what scores low and stop what scores high; the estimate goes by what passes."""
    rng = np.random.default_rng(1)
    kind, known = planted(rng, pictures=200, per_picture=3, alike=0.1)
    false = rng.random(4000) < 0.5
    score = rng.normal(size=4000) + np.where(false, MEANS["perturbed"], MEANS["true"])
    second, vote = known.score + rng.normal(size=len(kind)), score + rng.normal(size=4000)
    found = residual_noise(
        kind, Judged(known.score, second > 0, known.image), Judged(score, vote > 0, np.arange(4000)), confidence=CONFIDENCE
    )
    assert false[vote > 0].mean() <= found.upper < 0.4


def test_the_rates_of_the_tests_are_what_they_look_like():
    assert {k: round(norm.cdf(m), 2) for k, m in MEANS.items()} == {"true": 0.6, "mismatched": 0.01, "crawled": 0.02, "perturbed": 0.1}
