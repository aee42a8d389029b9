"""Answers of models become candidates: thoughts are cut, sentences parted, and only what was cut off says so."""

import pytest

from blip_core.capfilt.answers import MOST_SENTENCES, parted, without_thoughts
from blip_core.capfilt.med import Caption

ANSWER = "A man of the U.S. Army stands near Mr. Smith. He holds a 2.5 m pole! Is it red"


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("a dog", False, "a dog"),
        ("<think>\nIs it a dog?\n</think>\n\na dog", False, "a dog"),
        ("Is it a dog?</think> a dog", True, "a dog"),  # the template opened the block
        ("Is it a dog?</think> a dog", False, "a dog"),
        ("<think>Is it", False, ""),
        ("Is it a dog? I think", True, ""),
        ("<thinking>a</thinking>a dog<think>b</think>", False, "a dog"),
        ("◁think▷a◁/think▷a dog", False, "a dog"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text, opened, expected):
    assert without_thoughts(text, opened=opened) == expected


def test_sentences():
    first, second, third = "A man of the U.S. Army stands near Mr. Smith.", "He holds a 2.5 m pole!", "Is it red"
    assert parted(Caption(ANSWER, True), "all") == [Caption(ANSWER, True)]
    assert parted(Caption(ANSWER, True), "first") == [Caption(first, False)]
    assert parted(Caption(ANSWER, True), "split") == [Caption(first, False), Caption(second, False), Caption(third, True)]
    assert parted(Caption("一只狗在草地上。它很快乐！", False), "first") == [Caption("一只狗在草地上。", False)]
    assert parted(Caption("", True), "split") == parted(Caption("", True), "first") == [Caption("", True)]


def test_no_sentence_is_lost_behind_the_last_number():
    words = [f"It is {n}." for n in range(MOST_SENTENCES + 20)]
    found = parted(Caption(" ".join(words), False), "split")
    assert len(found) == MOST_SENTENCES and " ".join(c.text for c in found) == " ".join(words)
