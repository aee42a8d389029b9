"""A calibration tells the truth about its own probabilities, a threshold reaches its target, and tables get what it says."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from blip_core.capfilt.pair_scores import PairScores, opinions, set_opinions
from blip_core.evaluation.metrics import expected_calibration_error, roc_auc
from blip_core.selection.calibration import (
    Calibrated,
    Calibration,
    best_precision,
    read_calibrations,
    threshold_for_precision,
    with_match,
    write_calibrations,
)
from blip_core.stages.calibrate import calibrate, fit
from blip_core.tables.captions import SCHEMA, caption_table
from blip_core.tables.slices import keys_of
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.weights.checkpoint import new_model, save_model


def simulated(count: int, seed: int) -> tuple[PairScores, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.5
    return PairScores(3 * truth - 1 + 2 * rng.standard_normal(count), 0.3 * truth + 0.2 * rng.standard_normal(count)), truth


def overconfident(count: int, seed: int) -> tuple[PairScores, np.ndarray]:
    """The ITM logit is four times what it should be."""
    rng = np.random.default_rng(seed)
    logit = 2 * rng.standard_normal(count)
    return PairScores(4 * logit, np.full(count, np.nan)), rng.random(count) < 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_both_scores_join_and_mean_what_they_say(method):
    scores, truth = simulated(4000, 0)
    match = Calibration.fit(*simulated(4000, 1), method=method).match(scores)
    assert roc_auc(truth, match) > max(roc_auc(truth, scores.itm_logit), roc_auc(truth, scores.itc)) + 0.01
    assert expected_calibration_error(truth, match) < 0.03


def test_a_temperature_cools_an_overconfident_head_and_leaves_the_order():
    scores, truth = overconfident(4000, 0)
    found = Calibration.fit(*overconfident(4000, 1), method="temperature")
    assert found.bias == 0 and found.itm_logit == pytest.approx(0.25, rel=0.1)
    assert expected_calibration_error(truth, scores.itm) > 0.1 > 0.03 > expected_calibration_error(truth, found.match(scores))
    assert np.array_equal(np.argsort(found.match(scores), kind="stable"), np.argsort(scores.itm_logit, kind="stable"))


def test_isotonic_mends_what_no_logistic_curve_fits():
    """Scores in two clumps, of which the upper one is right in 60 % only."""

    def clumps(count: int, seed: int) -> tuple[PairScores, np.ndarray]:
        rng = np.random.default_rng(seed)
        upper = rng.random(count) < 0.5
        logit = np.where(upper, 5, -1) + rng.standard_normal(count)
        return PairScores(logit, np.full(count, np.nan)), rng.random(count) < np.where(upper, 0.6, np.clip(0.35 + 0.1 * (logit + 1), 0, 1))

    scores, truth = clumps(4000, 0)
    errors = [
        expected_calibration_error(truth, Calibration.fit(*clumps(4000, 1), method=m).match(scores)) for m in ("logistic", "isotonic")
    ]
    assert errors[1] < 0.03 and errors[1] < errors[0]


def test_a_filter_without_an_itm_head_is_calibrated_by_its_cosine():
    """As CLIP. Either method takes a bias then: a cosine of 0 is no even chance."""
    scores, truth = simulated(4000, 0)
    for method in ("logistic", "temperature"):
        found = Calibration.fit(PairScores(np.full(4000, np.nan), scores.itc), truth, method=method)
        assert found.itm_logit == 0 and found.bias < -0.1
        assert expected_calibration_error(truth, found.match(PairScores(np.full(4000, np.nan), scores.itc))) < 0.03


def test_one_truth_alone_calibrates_nothing():
    scores, truth = simulated(100, 0)
    with pytest.raises(ValueError, match="expected true and false pairs to calibrate by, got 100 true of 100"):
        Calibration.fit(scores, np.ones_like(truth))


def test_true_and_false_pairs_weigh_the_same_however_many_are_planted(params):
    """Of each true pair several false ones are planted: a sound P(match) seemed far off, and the precision was that of their mixture."""
    scores, truth = simulated(9000, 3)
    rows = ~truth | (np.arange(9000) % 4 == 0)
    scores, truth = scores.where(rows), truth[rows]
    pairs = {"truth": truth, "synthetic": np.zeros(len(truth), bool), "labelled": np.zeros(len(truth), bool), "weight": np.ones(len(truth))}
    table = pa.table(pairs | {"image_id": [str(i) for i in range(len(truth))]})
    cfg = params.calibrate.model_copy(update={"bootstrap": 20, "target_precision": 0.9})
    calibration, metrics, curve = fit(scores, table, cfg, seed=0, sliced={})
    assert truth.mean() < 0.3 and metrics["ece"] < 0.04 and metrics["ece_low"] <= metrics["ece"] <= metrics["ece_high"]
    accepted = calibration.match(scores) >= 0.5
    right, wrong = accepted[truth].mean(), accepted[~truth].mean()
    assert metrics["precision"] == pytest.approx(right / (right + wrong), abs=0.01)
    at = np.searchsorted(curve["threshold"], metrics["threshold_for_precision"])
    assert curve["precision"][at] == pytest.approx(0.9, abs=0.02)


def test_the_interval_of_ece_is_about_it(params):
    """Of few pairs all draws lay above the ECE itself."""
    scores, truth = simulated(100, 3)
    pairs = {"truth": truth, "synthetic": np.zeros(100, bool), "labelled": np.zeros(100, bool), "weight": np.ones(100)}
    cfg = params.calibrate.model_copy(update={"bootstrap": 200, "confidence": 0.8})
    metrics = fit(scores, pa.table(pairs | {"image_id": [str(i) for i in range(100)]}), cfg, seed=0, sliced={})[1]
    assert 0 <= metrics["ece_low"] < metrics["ece"] < metrics["ece_high"]


def test_slices_tell_where_a_filter_is_blind(params):
    scores, truth = simulated(400, 3)
    blind = np.arange(400) % 2 == 1
    truth = np.where(blind, np.arange(400) % 4 == 1, truth)
    pairs = {"truth": truth, "synthetic": np.zeros(400, bool), "labelled": np.zeros(400, bool), "weight": np.ones(400)}
    keys = [str(i) for i in range(400)]
    sliced = keys_of({"place": {key: "few" if int(key) < 9 else "blind" if b else "seen" for key, b in zip(keys, blind, strict=True)}})
    cfg = params.calibrate.model_copy(update={"bootstrap": 50})
    metrics = fit(scores, pa.table(pairs | {"key": keys, "image_id": keys}), cfg, seed=0, sliced=sliced)[1]
    assert metrics["auc[place=blind]_low"] < 0.55 < 0.7 < metrics["auc[place=seen]_low"] < metrics["auc[place=seen]"]
    assert (metrics["pictures[place=few]"], "auc[place=few]" in metrics) == (9, False)


def test_calibrations_survive_their_file(tmp_path):
    scores, truth = simulated(100, 0)
    found = [Calibrated(name, name, Calibration.fit(scores, truth, method=m), 0.5) for name, m in (("a", "logistic"), ("b", "isotonic"))]
    write_calibrations(found, tmp_path / "c.json", facts={"a": {"curve": {}}})
    assert list(read_calibrations(tmp_path / "c.json").values()) == found
    with pytest.raises(ValueError, match="run calibrate"):
        read_calibrations(tmp_path / "other.json")
    (tmp_path / "c.json").write_text(json.dumps({"filters": [{"filter": "a"}]}))
    with pytest.raises(ValueError, match="no calibration of filters .*run calibrate again"):
        read_calibrations(tmp_path / "c.json")


def test_the_threshold_reaches_its_precision_and_no_lower_one_does():
    scores, truth = simulated(2000, 2)
    match = Calibration.fit(scores, truth).match(scores)

    def precision(threshold: float) -> float:
        kept = match >= threshold
        true, false = kept[truth].mean(), kept[~truth].mean()
        return true / (true + false)

    threshold = threshold_for_precision(match, truth, 0.95)
    assert precision(threshold) >= 0.95
    assert all(precision(t) < 0.95 for t in match[match < threshold])
    assert threshold_for_precision(np.array([0.1, 0.9]), np.array([True, False]), 1.0) is None


def test_a_threshold_does_not_cut_through_equal_scores():
    """Isotonic gives many ties: a threshold keeps all of them, whichever comes first."""
    match, truth = np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, True, False, False])
    assert threshold_for_precision(match, truth, 0.95) == 0.9
    assert threshold_for_precision(match[::-1], truth[::-1], 0.95) == 0.9


def test_the_best_precision_is_told_with_the_lowest_threshold_that_has_it():
    match, truth = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.1]), np.array([False, True, True, True, False, False])
    assert best_precision(match, truth) == (0.75, 0.7)  # all three true ones, and one of three false ones
    assert best_precision(np.array([0.5, 0.5]), np.array([True, False])) == (0.5, 0.5)


def test_calibrate_tells_that_no_threshold_reaches_the_target_and_which_comes_nearest(ingested, params, tmp_path, caplog):
    """By a filter without a head, to which all pairs are alike: whatever the threshold, half of what it keeps is true."""
    tokenizer = load_tokenizer(ingested / "tokenizer.json")
    blind = new_model(params.model, tokenizer, seed=1)
    for part in (blind.match_head, blind.image_projection, blind.text_projection):
        for weights in part.parameters():
            torch.nn.init.zeros_(weights)
    save_model(blind, tokenizer, tmp_path / "filter", prompt="", max_tokens=24)
    (tmp_path / "labels").mkdir()
    inputs = (tmp_path / "filter", ingested / "shards", ingested / "heldout", tmp_path / "labels")
    outs = (tmp_path / "calibration.json", tmp_path / "metrics.json")
    calibrate(*inputs, *outs, cfg=params.calibrate, score_cfg=params.score, seed=0, work=tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["threshold_for_precision"] is None and metrics["best_precision"] == pytest.approx(0.5, abs=0.05)
    told = f"the best is {metrics['best_precision']:.3f}, of P(match) from {metrics['best_precision_threshold']:.3f}"
    assert f"tuned reaches calibrate.target_precision 0.95 at no threshold: {told}" in caplog.text


def scored_rows() -> pa.Table:
    others = [{"filter": "g", "itm": None, "itc": c, "match": None} for c in (0.1, 0.9, 0.5)]
    rows = [
        {"key": f"k{i}", "source": s, "filter": "f", "itm": p, "itc": 0.0} for i, (s, p) in enumerate([("web", 0.2), ("synthetic", 0.7)])
    ]
    rows.append({"key": "k2", "source": "web", "filter": "f", "itm": 1.0, "itc": 0.0})
    return caption_table([r | {"opinions": [o, o | {"filter": "h"}]} for r, o in zip(rows, others, strict=True)])


def test_tables_get_the_probability_of_each_filter():
    f = Calibrated("f", "tuned", Calibration(itm_logit=1.0, itc=0.0, bias=0.0, synthetic=-1.0), None)
    g, h = (Calibrated(name, name, Calibration(itm_logit=0.0, itc=w, bias=0.0), None) for name, w in (("g", 2.0), ("h", -2.0)))
    made = with_match(scored_rows(), {"f": f, "g": g, "h": h}, where="here")
    assert made.schema.equals(SCHEMA)
    assert made["match"].to_pylist() == pytest.approx([0.2, 1 / (1 + np.exp(-np.log(0.7 / 0.3) + 1)), 1.0])
    for row, cosine in zip(made["opinions"].to_pylist(), (0.1, 0.9, 0.5), strict=True):
        assert [o["filter"] for o in row] == ["g", "h"] and row[0]["itm"] is None and row[0]["itc"] == cosine
        assert [o["match"] for o in row] == pytest.approx([1 / (1 + np.exp(-2 * cosine)), 1 / (1 + np.exp(2 * cosine))])
    with pytest.raises(ValueError, match=r"here: scored by filter 'h', but calibrated are \['f', 'g'\]"):
        with_match(scored_rows(), {"f": f, "g": g}, where="here")


def test_opinions_stay_with_their_rows():
    table = scored_rows()
    assert set_opinions(table, opinions(table)).equals(table)
    assert set_opinions(table, [])["opinions"].null_count == table.num_rows
    assert opinions(table.slice(0, 0)) == []
    short = table.set_column(
        SCHEMA.get_field_index("opinions"), SCHEMA.field("opinions"), pa.array([[], None, []], SCHEMA.field("opinions").type)
    )
    assert opinions(short) == []
    mixed = pa.concat_tables([table, caption_table([{"key": "k"}])])
    with pytest.raises(ValueError, match="expected 2 opinions of further filters on every text"):
        opinions(mixed)
