"""The metrics of the door are those of an evaluation, and bad input is told by its image."""

import numpy as np
import pytest

import blip_core
from blip_core.evaluation.metrics import caption_scores, image_ranks, recalls, text_ranks

CANDIDATES = {"a": "a red ball on the grass", "b": "two dogs run"}
REFERENCES = {"a": ["a red ball lies on the grass", "a ball"], "b": ["two dogs are running on a beach"]}


def test_captions_are_measured_as_an_evaluation_does():
    found = blip_core.evaluate_captions(CANDIDATES, REFERENCES)
    assert found == caption_scores(REFERENCES, CANDIDATES).corpus
    assert set(found) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"} and 0 < found["bleu4"] < 1
    assert blip_core.evaluate_captions({k: r[0] for k, r in REFERENCES.items()}, REFERENCES)["bleu4"] == pytest.approx(1)


def test_tokens_may_be_given():
    """Of one's own segmenter, in place of characters."""
    candidates, references = {"a": "红色 的 猫", "b": "船"}, {"a": ["红色 的 狗"], "b": ["船"]}
    found = blip_core.evaluate_captions(candidates, references, tokenization="given")
    assert found["bleu1"] == pytest.approx(3 / 4) and blip_core.evaluate_captions(candidates, references)["bleu1"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    "candidates,references,message",
    [
        ({}, REFERENCES, r"2 without a caption \['a', 'b'\]"),
        (CANDIDATES, {"a": ["a ball"]}, r"1 without references \['b'\]"),
        (CANDIDATES, REFERENCES | {"b": None}, "image 'b': expected a list of one or more references, got None"),
        (CANDIDATES, REFERENCES | {"b": ["x", None]}, r"image 'b': expected .* got \['x', None\]"),
        (CANDIDATES, REFERENCES | {"b": "a dog"}, "image 'b': expected a list"),
        (CANDIDATES, REFERENCES | {"b": []}, "image 'b': expected a list"),
        (CANDIDATES | {"b": None}, REFERENCES, "image 'b': expected one caption as a string, got None"),
        (CANDIDATES | {"b": ["two dogs"]}, REFERENCES, "image 'b': expected one caption"),
        ({}, {}, "no image to score"),
    ],
)
def test_captions_that_do_not_fit_are_named(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        blip_core.evaluate_captions(candidates, references)


def test_recalls_of_both_directions():
    owner = np.arange(300) // 3
    similarity = np.random.default_rng(0).random((100, 300))
    found = blip_core.evaluate_retrieval(similarity, owner)
    assert found == recalls(text_ranks(similarity, owner), "tr") | recalls(image_ranks(similarity, owner), "ir")
    right = (owner == np.arange(100)[:, None]).astype(float)
    assert set(blip_core.evaluate_retrieval(right, owner).values()) == {1.0}


def test_nested_lists_will_do_and_a_tie_is_no_hit():
    similarity = [[0.9, 0.1, 0.5], [0.2, 0.3, 0.5]]
    found = blip_core.evaluate_retrieval(similarity, [0, 1, 1])
    assert (found["tr_r1"], found["ir_r1"]) == (1.0, pytest.approx(2 / 3))
    assert set(blip_core.evaluate_retrieval(np.ones((20, 20)), range(20)).values()) == {0.0}


@pytest.mark.parametrize(
    "similarity,owner,message",
    [
        (np.eye(3), [0, 1], r"got shapes \(3, 3\) and \(2,\)"),
        (np.eye(3), [0, 1, 3], "rows 0 to 3 of 3"),
        (np.eye(3), [0, 1, 1], "1 images have no text, the first in row 2"),
        (np.eye(3), [0.0, 1.0, 2.0], "expected rows as whole numbers, got float64"),
        (np.full((2, 2), np.nan), [0, 1], "NaN"),
    ],
)
def test_a_matrix_that_does_not_fit_is_told(similarity, owner, message):
    with pytest.raises(ValueError, match=message):
        blip_core.evaluate_retrieval(similarity, owner)
