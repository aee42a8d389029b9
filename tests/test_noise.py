"""The bound must cover the truth in worlds where the truth is known, and must still say something."""

import numpy as np
import pytest

from blip_core.noise import leftover, lower_limit, residual_noise, upper_limit

RATES = {"true": 0.6, "mismatched": 0.01, "perturbed": 0.1}
CONFIDENCE = 0.9


def planted(rng: np.random.Generator, *, pictures: int, per_picture: int, alike: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Controls whose pass or fail agrees within a picture with intra-class correlation `alike`."""
    kinds, passed, images = [], [], []
    for kind, rate in RATES.items():
        scale = (1 - alike) / alike
        own = rng.beta(rate * scale, (1 - rate) * scale, pictures)
        passed.append((rng.random((pictures, per_picture)) < own[:, None]).ravel())
        images.append(np.repeat(np.arange(pictures), per_picture))
        kinds.append(np.full(pictures * per_picture, kind))
    return np.concatenate(kinds), np.concatenate(passed), np.concatenate(images)


def trial(rng: np.random.Generator, *, noise: float, perturbed: float, texts: int, alike: float):
    """The true share of noise among the texts that pass, and its estimate."""
    kind, passed, image = planted(rng, pictures=150, per_picture=2, alike=alike)
    false = rng.random(texts) < noise
    rate = np.where(~false, RATES["true"], np.where(rng.random(texts) < perturbed, RATES["perturbed"], RATES["mismatched"]))
    kept = rng.random(texts) < rate
    found = residual_noise(kind, passed, image, kept=kept, kept_image=np.arange(texts), confidence=CONFIDENCE)
    return float(false[kept].mean()), found


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("perturbed", [0.0, 0.5, 1.0], ids=["all_mismatched", "half", "all_of_the_worst_kind"])
def test_the_bound_covers_the_truth_as_often_as_it_says(noise, perturbed):
    rng = np.random.default_rng([int(noise * 10), int(perturbed * 10)])
    trials = [trial(rng, noise=noise, perturbed=perturbed, texts=2000, alike=0.3) for _ in range(40)]
    covered = np.mean([found.upper >= truth for truth, found in trials])
    assert covered >= CONFIDENCE - 2 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / 40), covered
    assert np.median([found.upper for _, found in trials]) < noise * 0.9, "no better than no filter at all"


def test_the_bound_covers_where_the_pairs_of_a_picture_agree_wholly_and_the_crawl_is_small():
    rng = np.random.default_rng(5)
    trials = [trial(rng, noise=0.3, perturbed=1.0, texts=300, alike=0.97) for _ in range(60)]
    assert np.mean([found.upper >= truth for truth, found in trials]) >= CONFIDENCE - 0.08


def test_the_point_estimate_is_right_for_an_equal_mixture():
    trials = [trial(np.random.default_rng(i), noise=0.5, perturbed=0.5, texts=4000, alike=0.05) for i in range(30)]
    assert np.mean([f.point for _, f in trials]) == pytest.approx(np.mean([t for t, _ in trials]), abs=0.02)


def test_leftover_inverts_the_mixture():
    clean, tpr, fpr = 0.4, 0.7, 0.1
    keep = clean * tpr + (1 - clean) * fpr
    assert leftover(keep, tpr, fpr) == pytest.approx((1 - clean) * fpr / keep)
    assert leftover(0.05, tpr, fpr) == 1.0  # keeps less than noise alone would
    assert leftover(0.9, tpr, fpr) == 0.0


def exact(tpr: float, mismatched: float, perturbed: float, keep: float, n: int = 200, texts: int = 1000):
    kinds = np.repeat(["true", "mismatched", "perturbed"], n)
    passed = np.concatenate([np.arange(n) < round(r * n) for r in (tpr, mismatched, perturbed)])
    kept = np.arange(texts) < round(keep * texts)
    return residual_noise(kinds, passed, np.tile(np.arange(n), 3), kept=kept, kept_image=np.arange(texts), confidence=0.95)


@pytest.mark.parametrize(
    "tpr, mismatched, perturbed, keep",
    [(1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.2, 0.0, 0.3, 0.2), (0.3, 0.1, 0.3, 0.3), (0.5, 0.0, 0.1, 0.0), (0.5, 0.0, 0.1, 0.9)],
    ids=["all_pass", "none_passes", "worst_kind_passes_more_than_true", "equal", "nothing_kept", "crawl_passes_more_than_true"],
)
def test_where_the_controls_prove_nothing_the_bound_is_one(tpr, mismatched, perturbed, keep):
    assert exact(tpr, mismatched, perturbed, keep).upper == 1.0


def test_no_point_estimate_when_the_filter_is_blind():
    found = exact(0.3, 0.3, 0.5, 0.3)
    assert found.point is None and found.upper == 1.0 and found.by_kind == {}


def test_a_kind_that_was_not_planted_leaves_no_bound():
    kinds = np.repeat(["true", "mismatched"], 200)
    passed = np.concatenate([np.arange(200) < 120, np.arange(200) < 2])
    args = {"kept": np.arange(1000) < 300, "kept_image": np.arange(1000), "confidence": 0.95}
    found = residual_noise(kinds, passed, np.tile(np.arange(200), 2), **args)
    assert found.fpr["perturbed"] == 1.0 and found.upper == 1.0 and set(found.by_kind) == {"mismatched"}


def test_more_controls_and_a_better_filter_lower_the_bound():
    assert exact(0.6, 0.01, 0.1, 0.3, n=1000).upper < exact(0.6, 0.01, 0.1, 0.3, n=100).upper
    assert exact(0.6, 0.01, 0.05, 0.3).upper < exact(0.6, 0.01, 0.1, 0.3).upper
    few = exact(0.6, 0.0, 0.0, 0.3, n=10)
    assert few.point == 0.0 and few.upper > 0.3, "ten pairs without a miss prove little"


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
    kind, passed, image = planted(rng, pictures=90, per_picture=3, alike=0.2)
    kept, kept_image = rng.random(900) < 0.37, rng.integers(500, size=900)
    found = residual_noise(kind, passed, image, kept=kept, kept_image=kept_image, confidence=0.9)
    assert 0 < found.upper < 1
    for _ in range(5):
        order, other, names = rng.permutation(len(kind)), rng.permutation(900), rng.permutation(500).astype(np.uint64) * 7**19
        again = residual_noise(
            kind[order], passed[order], image[order].astype(str), kept=kept[other], kept_image=names[kept_image[other]], confidence=0.9
        )
        assert again == found
