"""Scripts without spaces are scored by characters, and a result says so."""

import pytest

from blip_core.evaluation.metrics import bleu_counts, caption_scores
from blip_core.evaluation.tokens import characters, tokenization_of

CHINESE = {
    "a": ["一只红色的猫坐在草地上。", "草地上有一只红猫"],
    "b": ["桌子上有两部iPhone 15手机", "两部手机在桌子上"],
    "c": ["海边的一艘船"],
}
CLOSE = {"a": "一只红猫坐在草地上", "b": "桌子上有一部iPhone手机", "c": "海边有船"}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("一只红猫，坐在草地上。", "一 只 红 猫 坐 在 草 地 上"),
        ("两部iPhone 15手机", "两 部 iphone 15 手 机"),
        ("ＡＢＣ公司２０２４", "abc 公 司 2024"),
        ("東京タワーの前で", "東 京 タ ワ ー の 前 で"),
        ("แมวดำตัวนี้", "แ ม ว ดํ า ตั ว นี้"),
        ("고양이 두 마리", "고 양 이 두 마 리"),
        ("Un café, s'il vous plaît", "un café s il vous plaît"),
        ("。！", ""),
        ("", ""),
    ],
)
def test_characters(text, tokens):
    assert characters(text) == tokens


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["a red ball on grass"], "ptb"),
        (["El niño pequeño"], "ptb"),
        (["красный мяч на траве"], "ptb"),
        (["कुत्ता घास पर"], "ptb"),
        (["一只红猫"], "characters"),
        (["赤いボール"], "characters"),
        (["แมวดำ"], "characters"),
        (["빨간 공"], "characters"),
        (["iPhone 一部", "一只红猫坐在草地上"], "characters"),
        (["Beijing 北京 is a city"], "ptb"),
        (["123", ""], "ptb"),
    ],
)
def test_the_references_say_how(texts, found):
    assert tokenization_of(texts) == found


def test_chinese_is_scored_between_nothing_and_all():
    by_word, found = caption_scores(CHINESE, CLOSE, tokenization="ptb"), caption_scores(CHINESE, CLOSE)
    assert by_word.corpus["cider"] == 0 and by_word.corpus["bleu1"] < 0.2
    assert found.tokenization == "characters" and 0.3 < found.corpus["bleu4"] < 0.9 and found.corpus["cider"] > 1
    copied = caption_scores(CHINESE, {key: texts[0] for key, texts in CHINESE.items()}).corpus
    assert copied["bleu4"] == pytest.approx(1) and copied["cider"] > found.corpus["cider"]


def test_characters_score_as_tokens_that_are_given():
    tokens = {key: [characters(text) for text in texts] for key, texts in CHINESE.items()}, {k: characters(t) for k, t in CLOSE.items()}
    given, found = caption_scores(*tokens, tokenization="given"), caption_scores(CHINESE, CLOSE)
    assert (
        given.corpus == found.corpus
        and (given.bleu_counts == found.bleu_counts).all()
        and (bleu_counts(CHINESE, CLOSE) == found.bleu_counts).all()
    )
