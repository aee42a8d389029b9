"""Scores do not depend on company, calibration tells the truth about its own probabilities, thresholds reach their target."""

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from blip_core.capfilt import Calibration, PairScores, caption_images, score_table, score_texts, threshold_for_precision
from blip_core.captions import write_manifest
from blip_core.config import SamplerConfig
from blip_core.data import read_picture
from blip_core.metrics import expected_calibration_error, roc_auc
from blip_core.shards import ShardImages, ShardWriter

WORDS = "a red blue green ball box star on grass and next to there is photo of".split()


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


def test_a_score_does_not_depend_on_the_texts_and_images_beside_it(model, tokenizer):
    texts = [["a red ball"], ["a blue star on grass", "a box", "there is a green ball"], ["a photo of a box", "a ball"]]
    together = score_texts(model, tokenizer, images(3), texts, max_tokens=20)
    alone = [score_texts(model, tokenizer, [image], [[t]], max_tokens=20) for image, row in zip(images(3), texts, strict=True) for t in row]
    np.testing.assert_allclose(together.itm_logit, np.concatenate([s.itm_logit for s in alone]), atol=1e-5)
    np.testing.assert_allclose(together.itc, np.concatenate([s.itc for s in alone]), atol=1e-6)


def test_rows_of_a_table_keep_their_scores_whatever_order_they_are_computed_in(model, tokenizer, tmp_path):
    """Images are sorted by the number and length of their texts and read ahead; each row still gets the score of its own pair."""
    with ShardWriter(tmp_path, "web", num_images=9) as writer:
        for n, image in enumerate(images(9)):
            writer.add(f"k{n}", simplejpeg.encode_jpeg(image, quality=95), image_id=f"{n}", width=16, height=16)
    write_manifest(tmp_path)
    stored, draw = ShardImages(tmp_path), np.random.default_rng(1)
    rows = [
        {"shard": "web-00000", "key": f"k{n}", "text": " ".join(draw.choice(WORDS, 1 + (5 * n + i) % 11))}
        for n in range(9)
        for i in range(1 + n % 3)
    ]
    rows = [rows[i] for i in draw.permutation(len(rows))]
    found = score_table(model, tokenizer, pa.Table.from_pylist(rows), stored, max_tokens=20, precision="fp32", batch_size=4)
    alone = [score_texts(model, tokenizer, [read_picture(stored, r["shard"], r["key"])], [[r["text"]]], max_tokens=20) for r in rows]
    np.testing.assert_allclose(found.itm_logit, np.concatenate([s.itm_logit for s in alone]), atol=1e-5)
    np.testing.assert_allclose(found.itc, np.concatenate([s.itc for s in alone]), atol=1e-6)
    assert np.std(found.itm_logit) > 1e-3


def test_captions_are_texts_without_special_tokens(model, tokenizer):
    for name, count in (("nucleus", 3), ("beam", 1)):
        cfg = SamplerConfig(name=name, p=0.9, beams=3, min_tokens=2, max_tokens=8, repetition_penalty=1.0)
        found = caption_images(model, tokenizer, images(2), ["web-a", "web-b"], cfg, seed=0, num_candidates=3)
        assert [len(c) for c in found] == [count, count]
        assert not any("[" in text for candidates in found for text in candidates)


def simulated(count: int, seed: int) -> tuple[PairScores, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.5
    return PairScores(3 * truth - 1 + 2 * rng.standard_normal(count), 0.3 * truth + 0.2 * rng.standard_normal(count)), truth


def test_calibration_joins_both_scores_and_means_what_it_says():
    scores, truth = simulated(4000, 0)
    match = Calibration.fit(*simulated(4000, 1)).match(scores)
    assert roc_auc(truth, match) > max(roc_auc(truth, scores.itm_logit), roc_auc(truth, scores.itc)) + 0.01
    assert expected_calibration_error(truth, match) < 0.03


def test_a_calibration_survives_its_file(tmp_path):
    scores, truth = simulated(100, 0)
    calibration = Calibration.fit(scores, truth)
    calibration.save(tmp_path, auc=0.9)
    assert Calibration.load(tmp_path) == calibration
    with pytest.raises(ValueError, match="no calibrated filter; run tune_filter"):
        Calibration.load(tmp_path / "other")


def test_the_threshold_reaches_its_precision_and_no_lower_one_does():
    scores, truth = simulated(2000, 2)
    match = Calibration.fit(scores, truth).match(scores)

    def precision(threshold: float) -> float:
        kept = match >= threshold
        true, false = kept[truth].mean(), kept[~truth].mean()
        return true / (true + false)

    threshold = threshold_for_precision(match, truth, 0.95)
    assert precision(threshold) >= 0.95
    assert all(precision(t) < 0.95 for t in match[match < threshold])
    assert threshold_for_precision(np.array([0.1, 0.9]), np.array([True, False]), 1.0) is None
