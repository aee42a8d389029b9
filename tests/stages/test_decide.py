"""Whether another round follows: by val alone, and what it says where it does not."""

import json

import pytest

from blip_core.config.evaluation import DecideConfig
from blip_core.stages.decide import decide
from blip_core.tables.captions import VAL
from blip_core.tables.stopped import stopped
from tests.stages.test_compare import GOOD, IMAGES, evaluation, of_task

CFG = DecideConfig(metrics=("tr_r1", "ir_r1", "cider"), bootstrap=300, confidence=0.95)


def decided(tmp_path, *, cfg: DecideConfig = CFG, **levels) -> tuple[dict, dict]:
    """The answer and the numbers, for two models whose metrics on val lie at these levels; on test the second is always the worse."""
    for name, values, on_test in (("g1", {}, 0.5), ("g2", levels, 0.1)):
        evaluation(tmp_path / name, level=on_test)
        evaluation(tmp_path / name / VAL, **values)
    decide(*(tmp_path / name for name in ("g2", "g1", "of_g2", "of_g1")), tmp_path / "g2.json", tmp_path / "metrics.json", cfg=cfg, seed=0)
    return tuple(json.loads((tmp_path / name).read_text()) for name in ("g2.json", "metrics.json"))


def test_one_gain_beyond_its_interval_and_no_loss_is_enough(tmp_path):
    answer, numbers = decided(tmp_path, cider=0.6)
    assert answer == {"go_on": True} and numbers["go_on"] is True and stopped(tmp_path / "g2.json") is None
    assert numbers["outcome"] == "on val g2 gains over g1 in cider beyond the interval"
    assert numbers["metrics"]["cider"]["low"] > 0 and numbers["metrics"]["tr_r1"]["difference"] == 0


def test_a_gain_in_captions_alone_does_not_count_where_the_model_has_collapsed(tmp_path):
    """CIDEr gains though no recall is beyond chance: one sentence that fits many images a little."""
    low = dict.fromkeys(("tr_r1", "ir_r1"), 0.0)
    decided(tmp_path)
    evaluation(tmp_path / "g1" / VAL, **low)
    evaluation(tmp_path / "g2" / VAL, **low, cider=0.7)
    decide(*(tmp_path / name for name in ("g2", "g1", "of_g2", "of_g1")), tmp_path / "g2.json", tmp_path / "metrics.json", cfg=CFG, seed=0)
    answer, numbers = (json.loads((tmp_path / name).read_text()) for name in ("g2.json", "metrics.json"))
    gain = "on val g2 gains over g1 in cider beyond the interval, which does not count: retrieval by ITC is at chance: text R@1 is "
    assert answer["go_on"] is False and answer["stopped"].startswith(gain) and list(numbers["alarms"]) == ["retrieval_at_chance"]


def test_a_gain_of_captions_that_have_collapsed_does_not_count_and_one_in_retrieval_does(tmp_path):
    decided(tmp_path)
    for name, levels in (("g1", {}), ("g2", {"cider": 0.7})):
        evaluation(tmp_path / name / VAL, **levels, references=[[f"{GOOD} {i}", "a ball"] for i in range(len(IMAGES))])
    outs = (tmp_path / "g2.json", tmp_path / "metrics.json")
    decide(*(tmp_path / name for name in ("g2", "g1", "of_g2", "of_g1")), *outs, cfg=CFG, seed=0)
    assert "the captions have collapsed: 1 different ones for 60 images" in stopped(outs[0])
    evaluation(tmp_path / "g2" / VAL, cider=0.7, tr_r1=0.7, references=[[f"{GOOD} {i}", "a ball"] for i in range(len(IMAGES))])
    decide(*(tmp_path / name for name in ("g2", "g1", "of_g2", "of_g1")), *outs, cfg=CFG, seed=0)
    assert stopped(outs[0]) is None and "captions_collapsed" in json.loads(outs[1].read_text())["alarms"]


def test_a_gain_in_a_task_on_val_is_one(tmp_path):
    """On test the second is the worse."""
    decided(tmp_path)
    for name, shift in (("of_g1", 0.0), ("of_g2", 0.1)):
        of_task(tmp_path / name, value=0.5, shift=-shift)
        of_task(tmp_path / "val", value=0.5, shift=shift)
        on_test, on_val = (json.loads((folder / "task-vqa.json").read_text()) for folder in (tmp_path / name, tmp_path / "val"))
        (tmp_path / name / "task-vqa.json").write_text(json.dumps(on_test | {"val": on_val}))
    outs, cfg = (tmp_path / "g2.json", tmp_path / "metrics.json"), CFG.model_copy(update={"metrics": ("tr_r1", "vqa.accuracy")})
    decide(*(tmp_path / name for name in ("g2", "g1", "of_g2", "of_g1")), *outs, cfg=cfg, seed=0)
    assert json.loads(outs[1].read_text())["outcome"] == "on val g2 gains over g1 in vqa.accuracy beyond the interval"


def test_the_answer_is_the_same_file_whatever_the_numbers(tmp_path):
    """The next round depends on it: another gain that says the same must not train it anew."""
    decided(tmp_path, cider=0.6)
    first = (tmp_path / "g2.json").read_bytes()
    decided(tmp_path, cider=0.7, tr_r1=0.8)
    assert (tmp_path / "g2.json").read_bytes() == first


def test_no_gain_stops_and_the_reason_has_the_numbers(tmp_path):
    answer, numbers = decided(tmp_path)
    assert answer["go_on"] is False and numbers["go_on"] is False
    assert stopped(tmp_path / "g2.json") == (
        "on val no gain of g2 over g1 is beyond its interval: tr_r1 +0.0000 [+0.0000, +0.0000], ir_r1 +0.0000 [+0.0000, +0.0000], "
        "cider +0.0000 [+0.0000, +0.0000] (95% intervals)"
    )


def test_a_loss_beyond_its_interval_stops_whatever_is_gained(tmp_path):
    answer, _ = decided(tmp_path, cider=0.7, ir_r1=0.4)
    assert answer["go_on"] is False and answer["stopped"].startswith("on val g2 loses against g1 in ir_r1 beyond the interval")


def test_a_gain_within_its_interval_is_none(tmp_path):
    """With noise of its own, a gain of a hundredth of 60 images at 0.07 each is no gain."""
    assert decided(tmp_path, level=0.51, noise=1)[0]["go_on"] is False
    wide = CFG.model_copy(update={"confidence": 0.6, "metrics": ("cider",), "bootstrap": 2000})
    assert decided(tmp_path, level=0.53, noise=1, cfg=wide)[0]["go_on"] is True


def test_an_evaluation_of_other_images_is_refused(tmp_path):
    decided(tmp_path)
    evaluation(tmp_path / "g2" / VAL, images=IMAGES[:50])
    with pytest.raises(ValueError, match="different items.*evaluate both models"):
        decide(*(tmp_path / name for name in ("g2", "g1", "of_g2", "of_g1")), tmp_path / "x.json", tmp_path / "m.json", cfg=CFG, seed=0)
