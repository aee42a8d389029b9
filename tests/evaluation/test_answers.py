"""VQA's official accuracy: values worked out by hand from the official rules, each of its quirks once."""

import pytest

from blip_core.evaluation.answers import direct_accuracy, normalise, vqa_accuracy


@pytest.mark.parametrize("agreeing,expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)])
def test_ten_people(agreeing, expected):
    people = ["red"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("red", people) == pytest.approx(expected)


@pytest.mark.parametrize("people,expected", [(1, 0.0), (2, 1 / 3), (3, 2 / 3), (4, 1.0)])
def test_other_numbers_of_people_who_agree(people, expected):
    assert vqa_accuracy("red", ["red"] * people) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("The Red  ball", "red ball"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("yes!", "yes"),
        ("left/right", "left right"),
        ("left / right", "left right"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a number with commas makes every mark go without a blank
        ("U.S.A.", "usa"),
        ("1.5", "1.5"),
        (".5", ".5"),
        ("b" + ". " * 33 + "c", "b . c"),  # 32 periods go, the 33rd stays
    ],
)
def test_normalisation(text, expected):
    assert normalise(text) == expected


def test_the_two_versions_differ_where_all_agree_and_on_articles():
    same, differ = ["the table"] * 10, ["the table"] * 5 + ["desk"] * 5
    assert vqa_accuracy("the table", same, rules="2021") == 1.0  # nothing is normalised
    assert vqa_accuracy("the table", same, rules="2017") == 0.0  # the answer alone loses its article
    assert vqa_accuracy("table", differ, rules="2021") == 1.0
    assert vqa_accuracy("table", differ, rules="2017") == 0.0


def test_no_people():
    with pytest.raises(ValueError, match="no answer of a person"):
        vqa_accuracy("red", [])


def test_direct_answers_leave_nobody_out():
    assert [direct_accuracy("red", ["red"] * n + ["blue"]) for n in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
