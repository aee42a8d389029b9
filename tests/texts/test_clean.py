"""What becomes of a text at ingest, and what is set aside."""

import json
import unicodedata

import pytest

from blip_core.config.intake import TextLimits
from blip_core.files.rejected import Rejected
from blip_core.texts.clean import clean_text, lines_of, pre_caption

KEEP = TextLimits(max_chars=20, rule="keep", max_words=50)
PAPER = TextLimits(max_chars=100, rule="paper", max_words=3)


def test_pre_caption_equals_the_public_code_on_real_texts(shared):
    rows = json.loads((shared / "oracles/captions/blip_pre_caption.json").read_text())
    assert len(rows) == 3915
    assert [[text, pre_caption(text, 50), pre_caption(text, 10)] for text, _, _ in rows] == rows


def test_pre_caption_on_a_known_sentence():
    assert pre_caption('A "red" Ball; (on) the cloud.gov  mat!\n', 50) == "a red ball on the cloud gov mat"
    assert pre_caption("one two three four", 2) == "one two"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t red\n ball\u00a0 ", "a red ball"),
        ("水煮牛肉-预览图-6", "水煮牛肉-预览图-6"),
        ("cafe\u0301", "caf\u00e9"),
        ("bell\x07 rings", "bell rings"),
        ("\ufeffwith a mark", "with a mark"),
        ("👩\u200d🚀", "👩\u200d🚀"),  # a joiner inside an emoji is not noise
        ("IMG_2231.jpg", "IMG_2231.jpg"),  # bad, but that is for the filter to find
    ],
)
def test_clean_text_normalises(text, expected):
    assert clean_text(text, KEEP) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_text"),
        (" \n\t\u3000", "empty_text"),
        ("\x01\x02\x7f", "control_text"),
        ("\u200b\u200b \ufeff", "control_text"),
        ("a\0b", "nul_text"),
        ("a\ud800b", "bad_encoding"),
        ("x" * 21, "text_too_long"),
        ("\u0301\u0323" * 2_000_000, "text_too_long"),  # NFC alone would take minutes to sort these marks
    ],
)
def test_clean_text_sets_aside(text, reason):
    with pytest.raises(Rejected) as e:
        clean_text(text, KEEP)
    assert e.value.reason == reason


def test_length_counts_what_is_stored():
    """White space and decomposed letters must not make a text too long that is stored short."""
    assert clean_text(" " * 1000 + "x" * 20, KEEP) == "x" * 20
    hangul = "한" * 20
    assert clean_text(unicodedata.normalize("NFD", hangul), KEEP) == hangul


def test_paper_rule_comes_on_top():
    assert clean_text("A Red\tBall. On grass", PAPER) == "a red ball"
    for text in ("...!!!", "!\u200b", "(\u200e) *"):
        with pytest.raises(Rejected, match="empty_text"):
            clean_text(text, PAPER)
    with pytest.raises(Rejected, match="text_too_long: 120 characters, at most 100"):
        clean_text("İ" * 60, PAPER)


def test_cleaning_twice_changes_nothing():
    for text in ["  a  b ", "e\u0301\x07!", "A.B (c) d e"]:
        for limits in (KEEP, PAPER):
            once = clean_text(text, limits)
            assert clean_text(once, limits) == once


def test_a_line_is_a_text_and_bytes_that_are_no_utf8_cost_their_own():
    assert lines_of("\ufeffnaïve\r\n\n two\u2028parts \r".encode()) == ["naïve", " two\u2028parts "]
    assert lines_of(b"\n") == [""]
    good, bad = lines_of(b"fine\ncaf\xe9 noir")
    assert clean_text(good, KEEP) == "fine"
    with pytest.raises(Rejected, match="bad_encoding.*0xe9 at character 3"):
        clean_text(bad, KEEP)
