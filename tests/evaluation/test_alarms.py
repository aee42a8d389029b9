"""Chance levels are what random rankings find; a collapsed captioner and a retrieval at chance are told, and sound models are not."""

import numpy as np
import pytest

from blip_core.evaluation.alarms import alarms, caption_facts, chance_levels
from blip_core.evaluation.metrics import image_ranks, recalls, text_ranks

WORDS = ("red", "blue", "green", "small", "big", "old", "new", "wet", "dry", "tall")
REFERENCES = [[f"a {a} dog on a {b} {c} street", "a dog"] for a in WORDS for b in WORDS for c in WORDS]
ABOVE = {f"{m}{end}": v for m in ("tr_r1", "ir_r1") for end, v in (("", 0.2), ("_low", 0.18), ("_high", 0.22), ("_chance", 0.001))}


@pytest.mark.parametrize("num_texts", [[5] * 40, [1] * 30, [1, 7, 2, 4] * 6, [3, 3]])
def test_chance_is_what_random_scores_find(num_texts):
    owner, draw, levels = np.repeat(np.arange(len(num_texts)), num_texts), np.random.default_rng(0), chance_levels(num_texts)
    found = []
    for _ in range(400):
        scores = draw.random((len(num_texts), len(owner)))
        found.append(recalls(text_ranks(scores, owner), "tr") | recalls(image_ranks(scores, owner), "ir"))
    for name, level in levels.items():
        assert level == pytest.approx(np.mean([f[name] for f in found]), abs=0.03), name


def test_chance_of_the_public_test_sets():
    """COCO's 5,000 images with five texts each."""
    levels = chance_levels([5] * 5000)
    assert levels["ir_r1"] == levels["tr_r1"] == pytest.approx(0.0002) and levels["ir_r10"] == 0.002
    assert levels["tr_r10"] == pytest.approx(0.002, rel=0.01)


def test_what_is_counted_of_the_captions():
    captions = ["A dog.", "a dog", "a cat", "a red a red a red ball"]
    facts = caption_facts(captions, [["one"], ["two"], ["two"], ["three", "four"]])
    assert facts == {
        "images": 4,
        "captions_distinct": 3,
        "captions_distinct_share": 0.75,
        "captions_most_common_share": 0.5,
        "captions_loop_share": 0.25,
        "references_distinct_share": 0.75,
        "references_most_common_share": 0.5,
    }


def alarmed(captions: list[str], references=REFERENCES, **retrieval) -> dict[str, str]:
    return alarms(caption_facts(captions, references) | ABOVE | retrieval)


def test_few_captions_for_many_images_have_collapsed():
    """42 different ones for 1,000 images, each at no more than 24 of them."""
    words = alarmed([f"a man in shirt number {i % 42}" for i in range(1000)])["captions_collapsed"]
    assert words == "the captions have collapsed: 42 different ones for 1,000 images, where people wrote 1,000"


def test_one_caption_at_many_images_and_loops_have_collapsed():
    often = ["a man in a hat" if i < 112 else f"text {i}" for i in range(1000)]
    assert alarmed(often) == {"captions_collapsed": "the captions have collapsed: one stands at 11.2% of the images"}
    loops = [f"the the the the {i}" if i < 112 else f"text {i}" for i in range(1000)]
    assert alarmed(loops) == {"captions_collapsed": "the captions have collapsed: 11.2% are loops of the same words"}


def test_captions_as_various_as_those_of_people_are_sound():
    assert alarmed([texts[0] for texts in REFERENCES]) == {}
    assert alarmed([f"text {i // 3}" for i in range(1000)]) == {}, "three times each"
    few = [["a cat" if i % 2 else "a dog"] for i in range(1000)]
    assert alarmed([texts[0] for texts in few], few) == {}, "people wrote no more"
    assert alarmed(["a", "a", "b"], [["x"], ["y"], ["z"]]) == {}, "two of three images say nothing"


def test_retrieval_is_at_chance_when_no_direction_is_beyond_it():
    chance = {"tr_r1": 0.003, "tr_r1_low": 0.0, "tr_r1_high": 0.007, "ir_r1": 0.0012, "ir_r1_low": 0.0003, "ir_r1_high": 0.002}
    captions = [texts[0] for texts in REFERENCES]
    words = alarmed(captions, **chance)["retrieval_at_chance"]
    assert words.startswith("retrieval by ITC is at chance: text R@1 is 0.30% [0.00%, 0.70%], chance 0.10%; image R@1 is 0.12%")
    assert alarmed(captions, **chance | {"ir_r1_low": 0.0011}) == {}
    worse = {f"{m}{end}": 0.0 for m in ("tr_r1", "ir_r1") for end in ("", "_low", "_high")}
    assert "retrieval_at_chance" in alarmed(captions, **worse), "ties count against a model: it may lie below chance"
