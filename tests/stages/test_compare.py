"""The verdict on a challenger: better only when every test against every baseline says so, on the same items."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.config.evaluation import CompareConfig
from blip_core.evaluation.metrics import bleu, bleu_counts
from blip_core.evaluation.task_metrics import Evidence
from blip_core.files.content import write_json
from blip_core.stages.compare import compare, paired_comparison
from blip_core.tables.captions import write_table
from blip_core.tables.stopped import write_stopped
from tests.report.test_report import make_params

CFG = CompareConfig(metrics=("tr_r1", "ir_r1", "cider"), margin={"bleu4": 0.01, "rouge_l": 0.01}, bootstrap=300, confidence=0.95)
IMAGES = [f"test-{i:03}" for i in range(60)]
GOOD, BAD = "a red ball lies on the grass", "a red ball lies on a box"


def evaluation(folder, *, level=0.5, spoil=(), images=IMAGES, noise=0, references=None, **levels):
    """An evaluation whose metrics lie at `level` or their own, with noise per item by seed; `spoil`: images with a bad caption."""
    rng, rows = np.random.default_rng(noise), []
    for metric in ("tr_r1", "ir_r1", "cider", "rouge_l"):
        for image in images:
            for item in [f"{image}#{n}" for n in range(3)] if metric == "ir_r1" else [image]:
                rows.append((metric, item, image, levels.get(metric, level) + rng.normal(0, 0.05)))
    names = ("metric", "item", "image", "value")
    write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "items.parquet")
    captions = [BAD if image in spoil else GOOD for image in images]
    references = references or [[GOOD, "a ball"]] * len(images)
    write_table(pa.table({"key": images, "caption": captions, "references": references}), folder / "captions.parquet")
    return folder


def verdict(tmp_path, baselines="g0,human", cfg=CFG, seed=0, challenger="g1"):
    outs = (tmp_path / "compare.json", tmp_path / "summary.json")
    compare(tmp_path, challenger, baselines, *outs, tmp_path / "measured", cfg=cfg, params=make_params(rounds=2), seed=seed)
    return json.loads((tmp_path / "compare.json").read_text())


def test_better_in_everything_against_every_baseline(tmp_path, caplog):
    evaluation(tmp_path / "g1", level=0.6)
    evaluation(tmp_path / "g0")
    evaluation(tmp_path / "human", level=0.4)
    with caplog.at_level(logging.INFO, "blip_core.stages.compare"):
        found = verdict(tmp_path)
    assert found["better"] is True and found["reasons"] == [] and found["challenger"] == "g1"
    tested = {name: set(metrics) for name, metrics in found["baselines"].items()}
    assert tested == {name: {*CFG.metrics, *CFG.margin} for name in ("g0", "human")}
    gain = found["baselines"]["g0"]["cider"]
    assert gain["role"] == "gain" and gain["passed"] and gain["difference"] == pytest.approx(0.1)
    assert gain["low"] <= gain["difference"] <= gain["high"] and gain["p"] < 0.05
    assert found["baselines"]["g0"]["bleu4"]["role"] == "margin"
    assert "g1 is better than g0, human" in caplog.text


def test_chance_stands_beside_each_recall_and_a_collapsed_model_is_named(tmp_path, caplog):
    own = [[f"{GOOD} {i}", "a ball"] for i in range(len(IMAGES))]
    evaluation(tmp_path / "g1", references=own, tr_r1=0.0, ir_r1=0.0)
    evaluation(tmp_path / "g0", references=own)
    with caplog.at_level(logging.INFO, "blip_core.stages.compare"):
        found = verdict(tmp_path, "g0")
    chance = {metric: test["chance"] for metric, test in found["baselines"]["g0"].items()}
    assert chance == {"tr_r1": pytest.approx(1 / 60), "ir_r1": pytest.approx(1 / 60), "cider": None, "rouge_l": None, "bleu4": None}
    assert {name: sorted(facts["alarms"]) for name, facts in found["models"].items()} == {
        "g1": ["captions_collapsed", "retrieval_at_chance"],
        "g0": ["captions_collapsed"],
    }
    assert "chance 0.0167" in caplog.text and "g1: retrieval by ITC is at chance" in caplog.text


def test_one_metric_that_does_not_gain_is_enough_to_fail(tmp_path):
    evaluation(tmp_path / "g1", level=0.6, ir_r1=0.5)
    evaluation(tmp_path / "g0")
    evaluation(tmp_path / "human", level=0.4)
    found = verdict(tmp_path)
    assert found["better"] is False
    assert len(found["reasons"]) == 1 and found["reasons"][0].startswith("against g0: ir_r1 is not shown to gain")
    assert [m for m, v in found["baselines"]["g0"].items() if not v["passed"]] == ["ir_r1"]


def test_a_loss_within_the_margin_passes_and_beyond_it_fails(tmp_path):
    evaluation(tmp_path / "g0")
    evaluation(tmp_path / "g1", level=0.6, rouge_l=0.495)
    assert verdict(tmp_path, "g0")["better"] is True
    evaluation(tmp_path / "g1", level=0.6, rouge_l=0.485)
    assert "rouge_l may have fallen by more than 0.01" in verdict(tmp_path, "g0")["reasons"][0]


def test_corpus_bleu_is_compared_from_the_captions(tmp_path):
    evaluation(tmp_path / "g0")
    evaluation(tmp_path / "g1", level=0.6, spoil=IMAGES[:20])
    found = verdict(tmp_path, "g0")["baselines"]["g0"]["bleu4"]
    references = {image: [GOOD, "a ball"] for image in IMAGES}
    captions = {image: BAD if image in IMAGES[:20] else GOOD for image in IMAGES}
    assert found["challenger"] == pytest.approx(bleu(bleu_counts(references, captions).sum(axis=0))[3])
    assert found["baseline"] == pytest.approx(1) and found["high"] < 0 and not found["passed"]


def test_the_same_verdict_whatever_the_order_of_rows(tmp_path):
    evaluation(tmp_path / "g1", level=0.6, noise=1)  # of its own, so that the intervals depend on the draw
    evaluation(tmp_path / "g0")
    first = verdict(tmp_path, "g0")
    for name in ("items", "captions"):
        path = tmp_path / "g0" / f"{name}.parquet"
        table = pq.read_table(path)
        write_table(table.take(np.random.default_rng(1).permutation(table.num_rows)), path)
    assert verdict(tmp_path, "g0") == first
    assert verdict(tmp_path, "g0", seed=1) != first


def test_equal_evaluations_are_no_gain(tmp_path):
    evaluation(tmp_path / "g1")
    evaluation(tmp_path / "g0")
    result = paired_comparison(*(Evidence(tmp_path / name, tmp_path / "none") for name in ("g1", "g0")), cfg=CFG, seed=0)
    assert result["better"] is False and len(result["reasons"]) == len(CFG.metrics)
    assert {v["difference"] for v in result["metrics"].values()} == {0.0}


def of_task(folder, *, value, shift, of="pictures"):
    """What evaluate_task leaves of the task `vqa`; its resamples lie `shift` above common ones."""
    drawn = (value + shift + np.linspace(-0.1, 0.1, 101)).tolist()
    write_json({"accuracy": value + shift, "examples": 9, "set_aside": 0, "of": of, "draws": {"accuracy": drawn}}, folder / "task-vqa.json")


def test_a_metric_of_a_task_is_tested_in_pairs(tmp_path):
    """Each model's interval is wide, their difference is the same in every resample."""
    cfg = CFG.model_copy(update={"metrics": ("tr_r1", "vqa.accuracy")})
    for name, level, shift in (("g1", 0.6, 0.02), ("g0", 0.5, 0.0)):
        evaluation(tmp_path / name, level=level)
        of_task(tmp_path / "measured" / name, value=0.5, shift=shift)
    found = verdict(tmp_path, "g0", cfg=cfg)
    test = found["baselines"]["g0"]["vqa.accuracy"]
    assert found["better"] and (test["challenger"], test["baseline"]) == (0.52, 0.5) and test["role"] == "gain"
    assert test["low"] == test["high"] == test["difference"] == pytest.approx(0.02)
    of_task(tmp_path / "measured/g0", value=0.5, shift=0.05)
    assert "vqa.accuracy is not shown to gain: 0.5500 -> 0.5200" in verdict(tmp_path, "g0", cfg=cfg)["reasons"][0]
    of_task(tmp_path / "measured/g0", value=0.5, shift=0.0, of="others")
    with pytest.raises(ValueError, match="task-vqa.json are of different examples"):
        verdict(tmp_path, "g0", cfg=cfg)
    with pytest.raises(ValueError, match="task-nlvr.json: missing; the stage evaluate_task"):
        verdict(tmp_path, "g0", cfg=cfg.model_copy(update={"metrics": ("nlvr.accuracy",)}))


def test_other_items_cannot_be_compared(tmp_path):
    evaluation(tmp_path / "g1")
    evaluation(tmp_path / "g0", images=[*IMAGES[:-1], "test-999"])
    with pytest.raises(ValueError, match=r"different items.*\['test-059'\].*\['test-999'\]"):
        verdict(tmp_path, "g0")


def test_other_references_cannot_be_compared(tmp_path):
    """Items are named by key and number: the same names can stand for other texts."""
    evaluation(tmp_path / "g1")
    folder = evaluation(tmp_path / "g0")
    table = {"key": IMAGES, "caption": [GOOD] * 60, "references": [[GOOD, "a box" if i == 7 else "a ball"] for i in range(60)]}
    write_table(pa.table(table), folder / "captions.parquet")
    with pytest.raises(ValueError, match=r"captions.*\['test-007'\]"):
        verdict(tmp_path, "g0")


@pytest.mark.parametrize("value", [None, float("nan")])
def test_values_that_are_none_are_refused(tmp_path, value):
    evaluation(tmp_path / "g0")
    folder = evaluation(tmp_path / "g1")
    table = pq.read_table(folder / "items.parquet").to_pydict()
    table["value"][0] = value
    write_table(pa.table(table), folder / "items.parquet")
    with pytest.raises(ValueError, match="g1/items.parquet.*NaN"):
        verdict(tmp_path, "g0")


@pytest.mark.parametrize(
    ("baselines", "cfg", "message"),
    [
        ("g7", {}, "g7: no such evaluation; run the stage evaluate of model 'g7'"),
        ("", {}, "baselines: expected different names"),
        ("g1", {}, "without the challenger 'g1'"),
        ("g0,g0", {}, "different names"),
        ("g0", {"metrics": ("spice",)}, "no items of metric 'spice'; it has"),
    ],
)
def test_what_cannot_be_compared_says_what_to_do(tmp_path, baselines, cfg, message):
    evaluation(tmp_path / "g1")
    evaluation(tmp_path / "g0")
    with pytest.raises(ValueError, match=message):
        verdict(tmp_path, baselines, CFG.model_copy(update=cfg))
    assert not (tmp_path / "compare.json").exists()


def test_where_the_rounds_stopped_the_newest_trained_model_is_the_challenger(tmp_path):
    """And is no baseline of itself; a baseline that was not trained is left out."""
    evaluation(tmp_path / "g1", level=0.6)
    evaluation(tmp_path / "g0")
    write_stopped("no gain", tmp_path / "g2")
    found = verdict(tmp_path, "g0,g1", challenger="g2")
    assert (found["challenger"], found["asked"], set(found["baselines"]), found["better"]) == ("g1", "g2", {"g0"}, True)
    assert found["instead_because"] == "g2 was not trained, since r2 did not follow: no gain"
    write_stopped("no gain", tmp_path / "human")
    assert set(verdict(tmp_path, "g0,human", challenger="g1")["baselines"]) == {"g0"}
    alone = verdict(tmp_path, "g1", challenger="g2")
    assert not alone["better"] and alone["reasons"] == ["no baseline but g1 itself was trained, so there is none to be better than"]


def test_where_they_went_on_it_is_the_one_that_was_asked_for(tmp_path):
    for level, name in enumerate(("g0", "g1", "g2")):
        evaluation(tmp_path / name, level=level / 4)
    found = verdict(tmp_path, "g0,g1", challenger="g2")
    assert (found["challenger"], found["instead_because"], set(found["baselines"])) == ("g2", None, {"g0", "g1"})
