"""Models that answer questions as filters: the log-odds of yes as the whole prompt gives them, texts side by side or alone."""

import numpy as np
import pytest
import torch

from blip_core.capfilt.plugins import open_filter
from blip_core.capfilt.vlm import together
from tests.support.vlms import FAMILIES, make_folder

QUESTION = 'Does it show "{text}"? Yes or no.'
TEXTS = [["a red ball", "a <image> and <end> of a photo, 2 dogs", "x"], ["there is a box"], ["yes", "a green box next to a blue star"]]
JUDGES = [name for name in FAMILIES if name not in ("paligemma", "blip-2", "instructblip", "git", "florence2")]


def opened(folder, question=QUESTION):
    return open_filter(str(folder), folder, question=question, precision="fp32", fetch=None)


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (h, w, 3), dtype=np.uint8).repeat(50, 0).repeat(50, 1) for h, w in ((2, 3), (2, 3), (6, 2))]


@pytest.mark.parametrize("family", JUDGES)
def test_scores_are_those_of_whole_prompts(family, tmp_path):
    judge = opened(make_folder(family, tmp_path / family))
    assert judge.ending.around, "the tokenizer alone makes what follows on the picture"
    prepared, encoded = [judge.prepare(p) for p in pictures()], [judge.encode(texts) for texts in TEXTS]
    found = judge.score(prepared, encoded)
    assert np.isnan(found.itc).all() and len(np.unique(found.itm_logit.round(4))) == 6
    alone = [judge.score([p], [[text]]).itm_logit[0] for p, own in zip(prepared, encoded, strict=True) for text in own]
    assert found.itm_logit == pytest.approx(alone, abs=1e-4)
    whole = [whole_prompt(judge, picture, text) for picture, texts in zip(pictures(), TEXTS, strict=True) for text in texts]
    assert found.itm_logit == pytest.approx(whole, abs=1e-4)


@torch.inference_mode()
def whole_prompt(judge, picture, text) -> float:
    """As a plain loop asks."""
    inputs = together([judge.vlm.inputs(picture, QUESTION.replace("{text}", judge.vlm.plain(text)))])
    logits = judge.vlm.model(**inputs).logits[0, -1].double()
    spelt = {
        w: [judge.vlm.tokenizer.convert_tokens_to_ids(t) for t in (w, w.capitalize(), f"Ġ{w}", f"Ġ{w.capitalize()}")] for w in ("yes", "no")
    }
    known = {w: [i for i in ids if i is not None and i != judge.vlm.tokenizer.unk_token_id] for w, ids in spelt.items()}
    return float(logits[known["yes"]].logsumexp(-1) - logits[known["no"]].logsumexp(-1))


def test_a_text_of_the_web_sets_no_mark_of_the_prompt(tmp_path):
    judge = opened(make_folder("llava", tmp_path / "llava"))
    assert judge.vlm.plain("a <image> of <end> < b") == "a < image> of < end> < b"
    ids = judge.encode(["<image><end></s>"])[0]
    marks = judge.vlm.tokenizer.convert_tokens_to_ids(["<image>", "</s>"])
    assert not set(marks) & set(ids) and ids.count(judge.vlm.tokenizer.convert_tokens_to_ids("<end>")) == 1


def test_the_question_decides(tmp_path):
    folder = make_folder("llava", tmp_path / "llava")
    scores = []
    for question in (QUESTION, "Is {text} in it?"):
        judge = opened(folder, question)
        scores.append(judge.score([judge.prepare(pictures()[0])], [judge.encode(TEXTS[0])]).itm_logit)
    assert abs(scores[0] - scores[1]).min() > 1e-3


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("florence2", "expected a decoder that has the picture among its tokens"),
        ("git", "expected a decoder that has the picture among its tokens"),
        ("paligemma", "what it makes of the picture depends on the text behind it"),
    ],
)
def test_a_model_that_cannot_judge_so_is_told(family, why, tmp_path):
    with pytest.raises(ValueError, match=f"{family}: a {family} can't judge: {why}"):
        opened(make_folder(family, tmp_path / family))
