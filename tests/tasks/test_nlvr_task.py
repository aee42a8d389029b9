"""Sentences about two pictures: their files, what a training changes, the metrics, the stages."""

import json

import numpy as np
import pytest
import simplejpeg
import torch

from blip_core.config.tasks import NlvrConfig
from blip_core.sample.pairs import STATEMENTS, write_pairs
from blip_core.stages.evaluate_task import evaluate_task
from blip_core.stages.tune_task import tune_task
from blip_core.tasks.nlvr import NlvrTask, sides_swapped
from blip_core.tasks.task import Result
from blip_core.training.step import TaskBatch
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.small import small_params

OPTIM = {"steps": 150, "batch_size": 8, "lr": 3e-3, "checkpoint_every": 150, "log_every": 5, "precision": "fp32"}


def settings(**changes) -> NlvrConfig:
    values = {"kind": "nlvr", "optim": OPTIM, "measure": {"bootstrap": 50, "precision": "fp32"}} | changes
    return small_params(tasks={"nlvr": values}).tasks["nlvr"]


@pytest.fixture
def folder(tmp_path):
    for name in ("train-10-1-img0.png", "train-10-1-img1.png"):
        (tmp_path / "d/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "d/train" / name).write_bytes(simplejpeg.encode_jpeg(np.full((20, 30, 3), 90, np.uint8)))
    return tmp_path / "d"


OFFICIAL = {"sentence": "A dog; left.", "left_url": "x", "right_url": "y", "label": "True", "identifier": "train-10-1-3", "synset": "dog"}
AUTHORS = {"images": ["train/train-10-1-img0.png", "train/train-10-1-img1.png"], "sentence": "A dog; left.", "label": "True"}
LXMERT = {"identifier": "train-10-1-3", "img0": "train-10-1-img0", "img1": "train-10-1-img1", "label": 1, "sent": "A dog; left."}
SHAPES = {
    "train.json": json.dumps([OFFICIAL]),
    "nlvr_train.json": json.dumps([AUTHORS]),
    "train.jsonl": json.dumps(OFFICIAL) + "\n",
    "lxmert/train.json": json.dumps([LXMERT]),
    "train.csv": "left,right,sentence,label\ntrain-10-1-img0.png,train-10-1-img1.png,A dog; left.,True\n",
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_usual_file_is_read(name, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(SHAPES[name])
    found, aside = NlvrTask().read(folder, "train", settings())
    assert not aside and [(e.sentence, e.label) for e in found] == [("A dog left", True)]
    assert [p.name for p in found[0].pictures] == ["train-10-1-img0.png", "train-10-1-img1.png"]


def test_one_picture_stands_for_both(folder):
    (folder / "train.csv").write_text("image,sentence,label\ntrain-10-1-img0.png,A dog in the left box.,True\n")
    [example], aside = NlvrTask().read(folder, "train", settings())
    assert not aside and [p.name for p in example.pictures] == ["train-10-1-img0.png"] * 2
    assert example.swapped == "A dog in the left box"


def test_what_can_not_be_used_is_told(folder):
    rows = [
        AUTHORS | {"label": "maybe"},
        AUTHORS | {"images": ["one"]},
        AUTHORS | {"images": ["one", "two", "three"], "identifier": "train-10-1-3"},  # whose two pictures are there
        AUTHORS | {"sentence": ""},
        OFFICIAL | {"identifier": "train-1-1-1"},
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    found, aside = NlvrTask().read(folder, "train", settings())
    assert not found and sorted(a.reason for a in aside) == ["bad_row"] * 4 + ["missing_image"]
    assert any("'maybe'" in a.detail for a in aside) and any("images names 3 pictures; expected two" in a.detail for a in aside)


def test_sides_are_swapped_as_words():
    assert sides_swapped("the left one, not the right; left-hand leftover") == "the right one, not the left; right-hand leftover"


@pytest.fixture(scope="module")
def sample_pairs(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "nlvr"
    write_pairs(out, seed=0, sizes={"train": 6, "val": 1, "test": 5})
    return out


def test_half_of_the_pairs_of_each_sentence_are_true(sample_pairs):
    examples, aside = NlvrTask().read(sample_pairs, "train", settings())
    assert not aside and len(examples) == 24 and len({e.group for e in examples}) == 6
    assert {sum(e.label for e in examples if e.group == g) for g in {e.group for e in examples}} == {2}


def test_sentences_are_the_truer_the_more_is_shown():
    """Where kinds of sentence pull against each other, a small model stays at chance."""
    assert all(np.mean(true) > np.mean(false) for true, false in STATEMENTS.values())


class Seen(torch.nn.Module):
    """Keeps what the objective shows to a network."""

    def logits(self, pixels, ids, mask):
        self.pixels, self.ids = pixels, ids
        return torch.zeros(len(ids), 2, requires_grad=True)


@pytest.mark.parametrize("swap", [0.0, 0.5, 1.0])
def test_pictures_and_words_change_places_together(swap, tokenizer, sample_pairs):
    task, cfg = NlvrTask(), settings(swap=swap)
    examples = task.read(sample_pairs, "train", cfg)[0]
    pixels = torch.arange(2.0 * len(examples))[:, None, None, None].expand(-1, 3, 4, 4)
    tensors = task.tensors(examples, tokenizer, cfg)
    batch = TaskBatch(pixels=pixels, tensors=tensors, step=3, progress=0.0, seed=1, keys=tuple(e.id for e in examples))
    seen, objective = Seen(), task.objective(None, cfg)
    loss = objective(seen, batch)["ce"]
    assert float(loss.detach()) == pytest.approx(np.log(2))
    first = seen.pixels[:, 0, 0, 0, 0]
    moved = first == torch.arange(len(examples)) * 2 + 1
    assert torch.equal(moved, objective.swapped(batch))
    assert torch.equal(seen.ids, torch.where(moved[:, None], tensors["ids"][:, 1], tensors["ids"][:, 0]))
    assert {0.0: not moved.any(), 0.5: moved.any() and not moved.all(), 1.0: moved.all()}[swap]


def test_consistency_is_the_share_of_sentences_that_are_wholly_right():
    results = [Result(str(i), g, {"accuracy": a}, "", {}) for i, (g, a) in enumerate([("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.0)])]
    statistic = NlvrTask().overall(results)["consistency"]
    assert statistic(np.ones(4)) == 0.5
    assert statistic(np.array([3, 3, 1, 1])) == 0.75  # a sentence that is drawn three times counts three times


def test_the_stages_tune_and_measure(sample_pairs, model_cfg, tokenizer, tmp_path):
    """The loss of a few pairs falls far below chance; the evaluation is the same each time."""
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, tmp_path / "g0", prompt="", max_tokens=20, precision="fp32")
    paths = dict(out=tmp_path / "model", out_history=tmp_path / "history.csv", out_metrics=tmp_path / "t.json", work=tmp_path / "work")
    tune_task("nlvr", tmp_path / "g0", sample_pairs, **paths, cfg=settings(), seed=0)
    assert json.loads((tmp_path / "t.json").read_text())["ce"] < 0.6 < np.log(2)
    for name in ("m", "again"):
        paths = [tmp_path / "g0", tmp_path / "model", sample_pairs, tmp_path / name, tmp_path / f"{name}.json"]
        evaluate_task("nlvr", *paths, cfg=settings(), params=small_params(), seed=0)
    found = json.loads((tmp_path / "m.json").read_text())
    assert found == json.loads((tmp_path / "again.json").read_text())
    assert found["draws"].keys() == set(settings().METRICS) and found["examples"] == 20 and found["consistency"] <= found["accuracy"]
    assert found["consistency_low"] <= found["consistency"] <= found["consistency_high"]
