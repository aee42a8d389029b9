"""Models that answer questions as filters: the log-odds of yes as the whole prompt gives them, texts side by side or alone."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from blip_core.capfilt.plugins import identify_captioner, identify_filter, open_filter
from blip_core.capfilt.vlm import together
from blip_core.stages.assemble import assemble
from blip_core.stages.calibrate import calibrate
from blip_core.stages.caption import caption
from blip_core.stages.score import score
from blip_core.tables.captions import REASONS, read_tables
from blip_core.tables.manifest import read_manifest
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
    scores, seen = [], set()
    for question in (QUESTION, "Is {text} in it?"):
        judge = opened(folder, question)
        scores.append(judge.score([judge.prepare(pictures()[0])], [judge.encode(TEXTS[0])]).itm_logit)
        seen.add(judge.identity)
    assert len(seen) == 2 and identify_filter(folder, QUESTION) in seen
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


def test_a_template_that_always_thinks_cannot_judge(tmp_path):
    folder = make_folder("llava", tmp_path / "llava")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<turn>assistant\n{%", "<turn>assistant\n<think>\n{%"))
    with pytest.raises(ValueError, match="its template opens a block of thoughts"):
        opened(folder)


def test_a_round_by_a_model_that_writes_and_judges(ingested, params, tmp_path):
    """One folder is captioner and judge, through calibration, controls and choice; its sentences are candidates."""
    folder, work = make_folder("llava", tmp_path / "llava"), tmp_path / "work"
    g0, shards, heldout = (ingested / name for name in ("generations/g0", "shards", "heldout"))
    (own,) = params.caption.writers
    sampler = own.sampler.model_copy(update={"max_tokens": 24, "temperature": 2.0})
    writer = own.model_copy(
        update={"captioner": str(folder), "prompt": "Say it.", "sentences": "split", "num_candidates": 2, "sampler": sampler}
    )
    cfg = params.caption.model_copy(update={"writers": (writer, writer.model_copy(update={"sentences": "all"})), "precision": "fp32"})
    options = {"seed": 3, "work": work}
    caption(folder, g0, shards, ingested / "gates/g0.json", tmp_path / "captions", round="r1", cfg=cfg, **options)
    made = read_tables(tmp_path / "captions")
    numbers = set(made["candidate"].to_pylist())
    assert {0, 100, 200, 201} <= numbers and numbers - {0, 100, 200, 201} <= {*range(1, 100), *range(101, 200)}
    assert (
        set(made["model"].to_pylist()) == {identify_captioner(folder, "Say it.")} == set(read_manifest(tmp_path / "captions")["captioners"])
    )

    score_cfg = params.score.model_copy(update={"filters": (str(folder),), "question": QUESTION, "precision": "fp32"})
    score(folder, g0, tmp_path / "captions", shards, heldout, tmp_path / "scores", cfg=score_cfg, **options)
    (tmp_path / "labels").mkdir()
    outs = (tmp_path / "calibration.json", tmp_path / "metrics.json")
    calibrate(
        folder, shards, heldout, tmp_path / "labels", *outs, cfg=params.calibrate, score_cfg=score_cfg, seed=3, work=tmp_path / "work"
    )
    assemble(g0, tmp_path / "scores", outs[0], tmp_path / "g1", tmp_path / "m.json", cfg=params.assemble)
    chosen = read_tables(tmp_path / "g1")
    judged = chosen.filter(pc.equal(chosen["filter"], identify_filter(folder, QUESTION)))
    assert judged.num_rows and not judged["match"].null_count and judged["itc"].null_count == judged.num_rows
    assert set(chosen["reason"].to_pylist()) <= set(REASONS)
