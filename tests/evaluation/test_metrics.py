"""Metrics equal the published ones on reference data, and have the properties that their names promise."""

import json
import time

import numpy as np
import pytest

from blip_core.evaluation import metrics
from blip_core.evaluation.metrics import (
    caption_scores,
    cider,
    expected_calibration_error,
    image_ranks,
    precision_recall_curve,
    recalls,
    roc_auc,
    rouge_l,
    text_ranks,
)

NAMES = {"Bleu_1": "bleu1", "Bleu_2": "bleu2", "Bleu_3": "bleu3", "Bleu_4": "bleu4", "ROUGE_L": "rouge_l", "CIDEr": "cider"}


@pytest.mark.parametrize("suffix", ["", "_tok"])
@pytest.mark.parametrize("name", ["clipscore_good", "clipscore_bad", "coco_fakecap_126"])
def test_caption_scores_equal_published_ones(shared, name, suffix):
    oracle = json.loads((shared / "oracles" / "captions" / f"{name}.json").read_text())
    options = {"tokenization": "given"} if suffix else {}
    scores = caption_scores(oracle["refs" + suffix], oracle["cands" + suffix], **options)
    rows = [scores.keys.index(key) for key in oracle["per_image"]["ids"]]
    for published, ours in NAMES.items():
        assert scores.corpus[ours] == pytest.approx(oracle["scores"][published], abs=1e-9)
        if published in oracle["per_image"]:
            assert scores.per_image[ours][rows] == pytest.approx(oracle["per_image"][published], abs=1e-6)


REFERENCES = {"a": ["a red ball on grass", "the red ball"], "b": ["a blue box", "one blue box"], "c": ["a star next to a box"]}


def test_a_copied_reference_has_perfect_bleu_and_rouge():
    scores = caption_scores(REFERENCES, {"a": "A red ball, on grass.", "b": "One blue box", "c": "a star next to a box"})
    assert scores.corpus["bleu1"] == pytest.approx(1) and scores.corpus["rouge_l"] == pytest.approx(1)


def test_an_empty_caption_scores_nothing_and_spoils_nothing():
    full = caption_scores(REFERENCES, {"a": "a red ball", "b": "a blue box", "c": "a star"})
    empty = caption_scores(REFERENCES, {"a": "", "b": "a blue box", "c": "..."})
    for name, values in empty.per_image.items():
        assert values[0] == 0 and values[2] == 0 and values[1] == full.per_image[name][1]
    assert caption_scores(REFERENCES, dict.fromkeys("abc", "")).corpus["bleu4"] == 0


def test_words_that_every_image_shares_count_nothing_in_cider():
    """With one image in the set log(1 / 1) is 0 for every n-gram, so there is nothing to score by, and no NaN."""
    assert cider(["a ball"], [["a ball"]]).tolist() == [0]
    same, other = cider(["a dog", "a cat"], [["a dog"], ["a cat"]])
    assert same == other > 0
    assert cider(["a", "a"], [["a"], ["a"]]).tolist() == [0, 0]


def test_rouge_takes_the_longest_common_subsequence():
    assert rouge_l("a b c d", ["x a y c z d"]) == pytest.approx((1 + 1.44) * 0.75 * 0.5 / (0.5 + 1.44 * 0.75))
    assert rouge_l("a b", ["b a"]) == pytest.approx(0.5) and rouge_l("a", ["b"]) == 0
    long = [str(i % 97) for i in range(3000)]
    assert rouge_l(" ".join(long), [" ".join(long)]) == pytest.approx(1)


def test_unicode_and_long_texts():
    references = {"k": ["Ein schöner Café 日本語"] * 2, "l": ["x " * 5000]}
    scores = caption_scores(references, {"k": "ein schöner café 日本語", "l": "x " * 5000})
    assert scores.corpus["bleu4"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({"a": []}, {"a": "x"}, "image 'a'.*one or more references"),
        ({"a": "one string"}, {"a": "x"}, "image 'a'.*list"),
        ({"a": ["x"], "b": ["x"]}, {"a": "x"}, r"1 without a caption \['b'\]"),
        ({"a": ["x"]}, {"a": "x", "z": "x"}, r"1 without references \['z'\]"),
        ({}, {}, "no image"),
    ],
)
def test_captions_that_cannot_be_scored_are_named(references, candidates, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(references, candidates)


def test_two_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(2000)])
    texts = [" ".join(words[(rng.pareto(1, 11) * 20).astype(int) % 2000]) for _ in range(12000)]
    references = {str(i): texts[5 * i : 5 * i + 5] for i in range(2000)}
    start = time.process_time()
    caption_scores(references, dict(zip(references, texts[10000:], strict=True)))
    assert time.process_time() - start < 30  # measured: 1 to 6 s


def test_recalls_equal_the_public_evaluation(shared):
    folder = shared / "oracles" / "retrieval"
    scores = np.load(folder / "retrieval_200.npz")["scores"]
    expected = json.loads((folder / "retrieval_200.json").read_text())
    owner = np.repeat(np.arange(200), 4)
    found = recalls(text_ranks(scores, owner), "tr") | recalls(image_ranks(scores, owner), "ir")
    names = {f"{ours}_r{k}": f"{public}_r{k}" for ours, public in (("tr", "txt"), ("ir", "img")) for k in (1, 5, 10)}
    assert {m: 100 * v for m, v in found.items()} == pytest.approx({m: expected[public] for m, public in names.items()})


def test_ranks_equal_a_plain_count_in_any_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.concatenate([np.arange(30), rng.integers(30, size=50)]))  # one to many texts, in any order
    scores = rng.integers(20, size=(30, 80)).astype(float)  # many ties
    to_text = [sum(scores[i, t] >= scores[i, owner == i].max() for t in range(80) if owner[t] != i) for i in range(30)]
    to_image = [sum(scores[i, t] >= scores[owner[t], t] for i in range(30) if i != owner[t]) for t in range(80)]
    for cells in (1, 7 * 80, 1 << 20):
        monkeypatch.setattr(metrics, "BLOCK_CELLS", cells)
        assert text_ranks(scores, owner).tolist() == to_text
        assert image_ranks(scores, owner).tolist() == to_image


def test_a_model_that_scores_everything_alike_hits_nothing():
    owner = np.repeat(np.arange(20), 2)
    alike = np.ones((20, 40), dtype=np.float32)
    assert set((recalls(text_ranks(alike, owner), "tr") | recalls(image_ranks(alike, owner), "ir")).values()) == {0.0}


def test_ranks_come_from_a_file_larger_than_memory_may_be(tmp_path):
    scores = np.random.default_rng(0).random((50, 100), dtype=np.float32)
    np.save(tmp_path / "scores.npy", scores)
    mapped, owner = np.load(tmp_path / "scores.npy", mmap_mode="r"), np.repeat(np.arange(50), 2)
    assert text_ranks(mapped, owner).tolist() == text_ranks(scores, owner).tolist()
    assert image_ranks(mapped, owner).tolist() == image_ranks(scores, owner).tolist()


def test_scores_that_cannot_be_ranked_are_refused():
    scores = np.eye(3)
    with pytest.raises(ValueError, match="row 2"):
        text_ranks(scores, np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="rows 0 to 3 of 3"):
        image_ranks(scores, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2,\)"):
        image_ranks(scores, np.array([0, 1]))
    scores[1, 1] = np.nan
    for ranks in (text_ranks, image_ranks):
        with pytest.raises(ValueError, match="NaN"):
            ranks(scores, np.arange(3))


def test_auc_counts_pairs_in_the_right_order_and_ties_half():
    rng = np.random.default_rng(0)
    truth, score = rng.random(60) < 0.4, rng.integers(5, size=60) / 5
    true, false = score[truth][:, None], score[~truth][None]
    assert roc_auc(truth, score) == pytest.approx(((true > false) + 0.5 * (true == false)).mean())
    assert roc_auc(truth, np.zeros(60)) == 0.5


def test_precision_and_recall_at_each_threshold():
    truth, score = np.array([1, 0, 1, 1, 0], dtype=bool), np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    precision, recall, thresholds = precision_recall_curve(truth, score)
    for p, r, t in zip(precision, recall, thresholds, strict=False):
        assert (p, r) == pytest.approx((truth[score >= t].mean(), (score[truth] >= t).mean()))
    assert (precision[-1], recall[-1]) == (1, 0) and len(precision) == len(thresholds) + 1


@pytest.mark.parametrize("measure", [roc_auc, precision_recall_curve])
@pytest.mark.parametrize("truth", [[True, True], [False, False], []])
def test_one_class_tells_nothing(measure, truth):
    with pytest.raises(ValueError, match="true and false pairs"):
        measure(np.array(truth, dtype=bool), np.zeros(len(truth)))


def test_calibration_error_is_the_distance_from_the_truth():
    rng = np.random.default_rng(0)
    probability = rng.random(20000)
    truth = rng.random(20000) < probability
    assert expected_calibration_error(truth, probability) < 0.02
    assert expected_calibration_error(np.zeros(500), np.full(500, 0.3)) == pytest.approx(0.3)
    assert expected_calibration_error(truth, np.clip(probability + 0.2, 0, 1)) > 0.1


def test_a_pair_of_weight_two_counts_as_two():
    rng = np.random.default_rng(1)
    truth, score = rng.random(400) < 0.4, rng.integers(50, size=400) / 50
    weight = rng.integers(1, 4, size=400)
    many = np.repeat(np.arange(400), weight)
    found = expected_calibration_error(truth, score, weight=weight, bins=7)
    assert found == pytest.approx(expected_calibration_error(truth[many], score[many], bins=7), abs=0.005)
    for ours, repeated in zip(
        precision_recall_curve(truth, score, weight=weight), precision_recall_curve(truth[many], score[many]), strict=True
    ):
        assert ours == pytest.approx(repeated)


def test_calibration_error_knows_no_order_among_ties():
    truth, probability = np.array([1, 0] * 50), np.repeat([0.5, 0.5], 50)
    assert expected_calibration_error(truth, probability) == expected_calibration_error(np.sort(truth), probability) == pytest.approx(0)


def test_calibration_error_needs_probabilities():
    with pytest.raises(ValueError, match=r"\[0, 1\].*from -1.0 to 2.0"):
        expected_calibration_error(np.array([0, 1]), np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="at least one"):
        expected_calibration_error(np.array([]), np.array([]))
