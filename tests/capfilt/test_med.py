"""Scores do not depend on company; captions are texts, as many as asked for."""

import numpy as np
import pyarrow as pa
import simplejpeg

from blip_core.capfilt.med import MedFilter, caption_images, score_texts, write_captions
from blip_core.capfilt.scoring import score_table
from blip_core.compute.pixels import read_picture
from blip_core.config.capfilt import SamplerConfig
from blip_core.tables.manifest import write_manifest
from blip_core.tables.shards import ShardImages, ShardWriter

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
    found = score_table(MedFilter(model, tokenizer, "f", 20, "fp32"), pa.Table.from_pylist(rows), stored, batch_size=4)
    alone = [score_texts(model, tokenizer, [read_picture(stored, r["shard"], r["key"])], [[r["text"]]], max_tokens=20) for r in rows]
    np.testing.assert_allclose(found.itm_logit, np.concatenate([s.itm_logit for s in alone]), atol=1e-5)
    np.testing.assert_allclose(found.itc, np.concatenate([s.itc for s in alone]), atol=1e-6)
    assert np.std(found.itm_logit) > 1e-3


def test_captions_are_texts_without_special_tokens(model, tokenizer):
    for name in ("nucleus", "beam"):
        cfg = SamplerConfig(name=name, p=0.9, top_k=5, temperature=0.7, beams=3, min_tokens=2, max_tokens=8, repetition_penalty=1.0)
        found = caption_images(model, tokenizer, images(2), ["web-a", "web-b"], cfg, seed=0, num_candidates=3)
        assert [len(c) for c in found] == [3, 3]
        assert not any("[" in text for candidates in found for text in candidates)


def test_candidates_are_numbered_on_behind_those_of_the_writer_before(model, tokenizer):
    """A second writer with the same sampler must not write the first one's captions again."""
    cfg = SamplerConfig(name="nucleus", p=1.0, top_k=0, temperature=1.0, beams=3, min_tokens=2, max_tokens=8, repetition_penalty=1.0)
    whole = caption_images(model, tokenizer, images(2), ["web-a", "web-b"], cfg, seed=0, num_candidates=3)
    later = caption_images(model, tokenizer, images(2), ["web-a", "web-b"], cfg, seed=0, num_candidates=2, first=1)
    assert [c[1:] for c in whole] == later


def test_a_sampler_says_what_it_is():
    cfg = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.0, beams=3, min_tokens=2, max_tokens=8, repetition_penalty=1.0)
    labels = [cfg.model_copy(update=u).label for u in ({}, {"top_k": 50, "temperature": 0.7}, {"name": "beam"})]
    assert labels == ["nucleus p=0.9", "nucleus p=0.9 k=50 t=0.7", "beam 3"]


def test_a_caption_that_its_limit_cut_off_is_marked(model, tokenizer):
    cfg = SamplerConfig(name="nucleus", p=1.0, top_k=0, temperature=1.0, beams=3, min_tokens=0, max_tokens=12, repetition_penalty=1.0)
    written = [c for image in write_captions(model, tokenizer, images(12), [str(n) for n in range(12)], cfg, seed=0) for c in image]
    assert {c.truncated for c in written} == {True, False}
