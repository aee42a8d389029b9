"""Zero-shot classification: its files, its protocol, its metrics."""

import json

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F

from blip_core.config.tasks import ClassifyConfig
from blip_core.sample.classes import write_classes
from blip_core.sample.scenes import SHAPES
from blip_core.stages.evaluate_task import resampled, summary
from blip_core.tasks.classify import Classified, ClassifyTask, class_features, class_prompts
from blip_core.weights.checkpoint import load_model
from tests.support.small import small_params
from tests.support.task_runs import tuned_and_measured


def settings(**changes) -> ClassifyConfig:
    values = {"kind": "classify", "measure": {"bootstrap": 30, "precision": "fp32", "batch_size": 5}, "max_tokens": 20} | changes
    return small_params(tasks={"shapes": values}).tasks["shapes"]


@pytest.fixture
def folder(tmp_path):
    for name in ("images/a.jpg", "images/b.jpg", "images/c.jpg"):
        _picture(tmp_path / "d" / name)
    return tmp_path / "d"


def _picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(np.full((20, 30, 3), 90, np.uint8)))


def test_a_folder_for_each_class_is_read(tmp_path):
    for name in ("test/red_ball/a.jpg", "test/star/sub/b.jpg", "train/box/c.jpg"):
        _picture(tmp_path / name)
    found, aside = ClassifyTask().read(tmp_path, "test", settings())
    assert not aside and sorted(e.labels for e in found) == [("red_ball",), ("star",)]
    assert class_prompts(tmp_path, found, settings(templates=["a {}", "the {}"])) == {
        "red_ball": ["a red ball", "the red ball"],
        "star": ["a star", "the star"],
    }


def test_a_csv_is_read_and_what_can_not_be_used_is_told(folder):
    (folder / "classes.csv").write_text("class,prompt\nball,a ball, the ball\nbox\n")
    (folder / "test.csv").write_text("image,label,source\na.jpg,ball,web\nb.jpg,moon,web\nc.jpg,,web\ngone.jpg,box,web\n")
    found, aside = ClassifyTask().read(folder, "test", settings(templates=["one {}"]))
    assert [(e.labels, e.facts) for e in found] == [(("ball",), {"source": "web"})]
    assert sorted(a.reason for a in aside) == ["bad_row", "bad_row", "missing_image"] and any("'moon'" in a.detail for a in aside)
    assert class_prompts(folder, [], settings(templates=["one {}"])) == {"ball": ["a ball", "the ball"], "box": ["one box"]}


def test_several_labels_or_none_are_read(folder):
    (folder / "test.csv").write_text('image,labels\na.jpg,"[""ball"", ""box""]"\nb.jpg,[]\nc.jpg,ball\n')
    found, aside = ClassifyTask().read(folder, "test", settings())
    assert not aside and [e.labels for e in found] == [("ball", "box"), (), ("ball",)] and all(e.several for e in found)


def test_labels_that_are_no_names_are_set_aside(folder):
    (folder / "test.jsonl").write_text(
        json.dumps({"image": "a.jpg", "labels": [1, 2]}) + "\n" + json.dumps({"image": "b.jpg", "labels": ["x"]})
    )
    found, aside = ClassifyTask().read(folder, "test", settings())
    assert len(found) == 1 and "[1, 2]" in aside[0].detail


def test_what_is_wrong_with_a_class_list_is_said(folder):
    (folder / "classes.csv").write_text("class\nball\nball\n")
    with pytest.raises(ValueError, match="'ball' stands there twice"):
        class_prompts(folder, [], settings())
    with pytest.raises(ValueError, match="test/dog"):
        ClassifyTask().read(folder, "test", settings())
    with pytest.raises(ValueError, match="templates"):
        settings(templates=["no place for a name"])


def test_a_class_is_the_unit_mean_of_its_unit_prompts(model, tokenizer):
    from blip_core.compute.padding import tokenize

    prompts = [["a red ball", "photo of ball", "ball"], ["a green box"]]
    with torch.no_grad():
        got = class_features(model, tokenizer, prompts, settings())
        alone = [torch.cat([model.text_features(*tokenize(tokenizer, [p], max_tokens=20)) for p in own]) for own in prompts]
    expected = torch.stack([F.normalize(own.mean(0), dim=0) for own in alone])
    torch.testing.assert_close(got, expected)


def _made(label, best, scores=None):
    hit = float(best in label)
    return Classified(f"{label}{best}", str(np.random.default_rng().random()), {"top1": hit}, "", {"side": str(best)}, label, scores)


def test_recall_is_a_mean_over_classes_and_not_over_pictures():
    results = [_made((0,), 0)] * 8 + [_made((1,), 0)] * 2
    statistic = ClassifyTask().overall(results)["mean_class_recall"]
    assert statistic(np.ones(10)) == 0.5
    assert statistic(np.array([1] * 8 + [0] * 2)) == 1.0  # a class that was not drawn does not count


def test_average_precision_is_that_of_a_slow_reference():
    rng = np.random.default_rng(3)
    truth, scores, counts = rng.random((20, 3)) < 0.4, rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    results = [_made(tuple(np.flatnonzero(t).tolist()), 0, s) for t, s in zip(truth, scores, strict=True)]
    expected = []
    for c in range(3):
        reached = []
        for i in np.flatnonzero(truth[:, c]):
            above = scores[:, c] >= scores[i, c]
            reached += [(counts * truth[:, c])[above].sum() / counts[above].sum()] * counts[i] if counts[i] else []
        expected.append(np.mean(reached))
    assert ClassifyTask().overall(results)["map"](counts) == pytest.approx(np.mean(expected))


def test_a_slice_has_metrics_of_its_own():
    results = [_made((0,), 0), _made((1,), 1), _made((1,), 0)]
    task, cfg = ClassifyTask(), settings(measure={"bootstrap": 20, "slices": ["side"]}).measure
    found = summary(task, results, resampled(task, results, cfg, 0), cfg, 0)
    assert found["mean_class_recall"] == 0.75 and found["mean_class_recall[side=0]"] == 0.5 and found["top1[side=0]_examples"] == 2


@pytest.mark.parametrize("rerank", [0, 3])
def test_the_stages_keep_the_model_and_measure_it(rerank, base, tmp_path):
    write_classes(tmp_path / "data", seed=0, pictures=12)
    found = tuned_and_measured("shapes", base, tmp_path / "data", tmp_path, settings(rerank=rerank))
    kept, was = load_model(tmp_path / "model")[0].state_dict(), load_model(base)[0].state_dict()
    assert all(torch.equal(kept[k], was[k]) for k in was)
    assert found["examples"] == 12 and 0 <= found["top1"] <= found["top5"] <= 1
    assert found["mean_class_recall_low"] <= found["mean_class_recall"] <= found["mean_class_recall_high"]


def test_pictures_of_several_things_have_a_mean_average_precision(base, tmp_path):
    write_classes(tmp_path / "data", seed=0, pictures=12, several=True)
    found = tuned_and_measured("shapes", base, tmp_path / "data", tmp_path, settings())
    assert "mean_class_recall" not in found and found["map_low"] <= found["map"] <= found["map_high"]
    rows = [json.loads(line) for line in (tmp_path / "data/test.jsonl").read_text().splitlines()]
    assert {len(r["labels"]) for r in rows} == {1, 2} and {s for r in rows for s in r["labels"]} <= set(SHAPES)


def test_reranked_scores_are_log_odds_plus_cosine_of_one_pair(model, tokenizer):
    """By a slow reference, a picture and a class at a time; the candidates stand before the others."""
    from blip_core.compute.padding import tokenize
    from blip_core.tasks.classify import _scores

    prompts = ["a red ball", "a green box", "star", "a photo of grass"]
    image = model.image_tokens(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        classes = class_features(model, tokenizer, [[p] for p in prompts], settings())
        got = _scores(model, image, classes, list(tokenize(tokenizer, prompts, max_tokens=20)), 2)
        cosines = model.image_features(image) @ classes.T
        for i in range(2):
            best = cosines[i].topk(2).indices.tolist()
            for c in best:
                logits = model.match_logits(*tokenize(tokenizer, [prompts[c]], max_tokens=20), model.keys_values(image[i : i + 1]))[0]
                assert float(got[i, c]) == pytest.approx(float(logits[1] - logits[0] + cosines[i, c]), abs=1e-5)
            assert set(got[i].topk(2).indices.tolist()) == set(best)


def test_a_list_of_a_thousand_classes_is_measured(base, tmp_path):
    write_classes(tmp_path / "data", seed=0, pictures=6)
    more = "".join(f"thing {i},a thing of kind {i}\n" for i in range(1000 - len(SHAPES)))
    with (tmp_path / "data/classes.csv").open("a") as f:
        f.write(more)
    found = tuned_and_measured("shapes", base, tmp_path / "data", tmp_path, settings(rerank=1000))
    assert found["examples"] == 6 and 0 <= found["top1"] <= 1
