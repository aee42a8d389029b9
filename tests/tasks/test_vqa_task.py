"""Questions: every file that people have them in, what is set aside, the stages, and that something is learned."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

from blip_core.config.tasks import VqaConfig
from blip_core.evaluation.task_metrics import paired_task_tests
from blip_core.sample.questions import write_questions
from blip_core.tasks.batches import TaskBatches
from blip_core.tasks.task import require_slices
from blip_core.tasks.vqa import Question, VqaTask, answer_list
from blip_core.texts.clean import clean_question
from tests.support.small import small_params

OPTIM = {"steps": 6, "batch_size": 8, "checkpoint_every": 3, "log_every": 3, "precision": "fp32"}


def settings(**changes) -> VqaConfig:
    values = {"kind": "vqa", "optim": OPTIM, "measure": {"bootstrap": 50, "precision": "fp32", "slices": ["question_type"]}} | changes
    return small_params(tasks={"vqa": values}).tasks["vqa"]


@pytest.fixture
def folder(tmp_path):
    for name in ("COCO_train2014_000000000009.jpg", "sub/other.jpg"):
        (tmp_path / "d/images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d/images" / name).write_bytes(simplejpeg.encode_jpeg(np.full((20, 30, 3), 90, np.uint8)))
    return tmp_path / "d"


SAID = ["red"] * 7 + ["dark red"] * 3
TEN = [{"answer": a, "answer_id": i} for i, a in enumerate(SAID)]
ASKED = {"question": "What is it?"}
NINE = "COCO_train2014_000000000009.jpg"
SHAPES = {
    "vqa2": {
        "q_train2014_questions.json": {"questions": [{**ASKED, "image_id": 9, "question_id": 1}]},
        "a_train2014_annotations.json": {"annotations": [{"question_id": 1, "image_id": 9, "answers": TEN, "question_type": "what"}]},
    },
    "authors": {"vqa_train.json": [{**ASKED, "dataset": "vqa", "image": f"train2014/{NINE}", "question_id": 1, "answer": SAID}]},
    "vizwiz": {"train.json": [{**ASKED, "image": "other.jpg", "answers": TEN, "answerable": 1}]},
    "textvqa": {"TextVQA_0.5.1_train.json": {"data": [{**ASKED, "image_id": "other", "answers": SAID}]}},
    "gqa": {"train_balanced_questions.json": {"0705": {**ASKED, "imageId": "other", "answer": "red"}}},
    "aokvqa": {"aokvqa_v1p0_train.json": [{**ASKED, "image_id": 9, "question_id": "x", "direct_answers": ["red"] * 10}]},
    "genome": {"train_question_answers.json": [{"id": 9, "qas": [{**ASKED, "qa_id": 3, "image_id": 9, "answer": "red"}]}]},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_usual_file_is_read(kind, folder):
    for name, value in SHAPES[kind].items():
        (folder / name).write_text(json.dumps(value))
    found, aside = VqaTask().read(folder, "train", settings())
    assert not aside and len(found) == 1
    assert (
        found[0].question == "What is it?" and found[0].answers[0][0] == "red" and sum(s for _, s in found[0].answers) == pytest.approx(1)
    )
    assert found[0].pictures[0].exists() and found[0].direct == (kind == "aokvqa")


def test_a_csv_is_read_and_what_can_not_be_used_is_told(folder):
    (folder / "images/bad.jpg").write_bytes(b"\xff\xd8\xff damaged")
    rows = [
        "image,question,answer,source",
        "other.jpg,What is it?,red,web",
        "gone.jpg,What?,red,web",
        "bad.jpg,What?,red,web",
        "other.jpg,What?,,web",
    ]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    found, aside = VqaTask().read(folder, "train", settings())
    assert [e.facts["source"] for e in found] == ["web"]
    assert sorted(a.reason for a in aside) == ["bad_row", "missing_image", "truncated"]
    assert "gone.jpg" in next(a.detail for a in aside if a.reason == "missing_image") and any("train.csv:3" in a.where for a in aside)


def test_a_name_that_two_pictures_have_is_no_answer(folder):
    (folder / "images/other.jpg").write_bytes((folder / "images/sub/other.jpg").read_bytes())
    (folder / "train.jsonl").write_text(json.dumps({"image": "other.jpg", "question": "What?", "answer": "red"}) + "\n")
    found, aside = VqaTask().read(folder, "train", settings())
    assert not found and "write the path" in aside[0].detail


def test_a_split_without_a_file_is_said(folder):
    with pytest.raises(ValueError, match="no file of rows whose name says test"):
        VqaTask().read(folder, "test", settings())


def test_a_question_is_cleaned_as_the_authors_do():
    assert clean_question('What\'s "that"; a dog(s)? ') == "What's that a dogs?"
    assert len(clean_question("w " * 80).split()) == 50


def test_the_answers_to_rank_are_those_of_train_or_of_a_list(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps({"image": 9, "question": "q", "answer": a}) + "\n" for a in ("b", "a", "b")))
    assert answer_list(folder, VqaTask().read(folder, "train", settings())[0]) == ["b", "a"]
    (folder / "answers.txt").write_text("yes\nno\nyes\n")
    assert answer_list(folder, []) == ["yes", "no"]


@pytest.fixture(scope="session")
def sample_questions(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "vqa"
    write_questions(out, seed=0, sizes={"train": 12, "val": 4, "test": 6})
    return out


def test_one_seed_gives_the_same_questions(sample_questions, tmp_path):
    write_questions(tmp_path / "again", seed=0, sizes={"train": 12, "val": 4, "test": 6})
    files = sorted(p.relative_to(sample_questions) for p in sample_questions.rglob("*") if p.is_file())
    assert all((sample_questions / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, model_cfg, tokenizer):
    from blip_core.weights.checkpoint import new_model, save_model

    folder = tmp_path_factory.mktemp("base") / "g0"
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, folder, prompt="", max_tokens=20, precision="fp32")
    return folder


def test_a_slice_that_no_column_has_is_told_before_the_training(sample_questions, model_folder, tmp_path):
    """It was told when the network was tuned and had answered; and to mend it is another training, for DVC sees other values."""
    from blip_core.stages.tune_task import tune_task

    cfg = settings(optim=OPTIM | {"steps": 10**9}, measure={"slices": ["question_typ"]})
    outs = {"out": tmp_path / "model", "out_history": tmp_path / "history.csv", "out_metrics": tmp_path / "metrics.json"}
    with pytest.raises(ValueError, match="no column 'question_typ' in the task's files; expected of .*question_type"):
        tune_task("vqa", model_folder, sample_questions, **outs, cfg=cfg, seed=0, work=tmp_path)
    require_slices([Question("1", (), {"place": "a"}, "what?")], ["place", "question"])
    with pytest.raises(ValueError, match="slices by question: it has 101 values"):
        require_slices([Question("1", (), {}, f"what {i}?") for i in range(101)], ["question"])


def test_two_processes_share_each_batch(sample_questions, tokenizer):
    """Together they read what one reads alone, whatever the micro-batches."""
    task, cfg = VqaTask(), settings()
    examples = task.read(sample_questions, "train", cfg)[0]
    alone, *two = (TaskBatches(task, examples, tokenizer, cfg, image_size=48, seed=0) for _ in range(3))
    for rank, batches in enumerate(two):
        batches.rank, batches.world_size = rank, 2
    for place in range(2):
        halves = [batches.read(place) for batches in two]
        assert halves[0].keys + halves[1].keys == alone.read(place).keys
        assert torch.equal(torch.cat([half.pixels for half in halves]), alone.read(place).pixels)


@pytest.mark.parametrize("answers", ["rank", "generate"])
def test_the_stages_tune_resume_and_measure(answers, sample_questions, model_folder, tmp_path, monkeypatch):
    """A killed tuning goes on where it was, to the same weights."""
    from blip_core.stages.evaluate_task import evaluate_task
    from blip_core.stages.tune_task import tune_task

    cfg = settings(answers=answers)

    def tune(name):
        out = tmp_path / name
        paths = dict(out=out / "model", out_history=out / "history.csv", out_metrics=out / "metrics.json", work=tmp_path / name / "work")
        tune_task("vqa", model_folder, sample_questions, **paths, cfg=cfg, seed=0)
        return out

    whole = tune("whole")

    class Killed(Exception):
        pass

    import blip_core.training.loop as loop

    real, calls = loop._train_step, []

    def dies_at_the_fifth(*args):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return real(*args)

    monkeypatch.setattr(loop, "_train_step", dies_at_the_fifth)
    with pytest.raises(Killed):
        tune("killed")
    monkeypatch.setattr(loop, "_train_step", real)
    again = tune("killed")
    assert (again / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()

    decided = small_params()
    decided = decided.model_copy(update={"decide": decided.decide.model_copy(update={"metrics": ("vqa.accuracy",)})})
    paths = [model_folder, whole / "model", sample_questions, tmp_path / "found", tmp_path / "m.json"]
    evaluate_task("vqa", *paths, cfg=cfg, params=decided, seed=0)
    metrics = json.loads((tmp_path / "m.json").read_text())
    table = pq.read_table(tmp_path / "found/answers.parquet")
    assert metrics["examples"] == table.num_rows == 30
    assert metrics["accuracy"] == pytest.approx(np.mean(table["accuracy"].to_pylist()))
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["accuracy[question_type=count]_examples"] == 6
    assert metrics["val"]["examples"] == 20  # for decide names it
    folder = tmp_path / "g0"
    folder.mkdir()
    (tmp_path / "m.json").rename(folder / "task-vqa.json")
    test = paired_task_tests(folder, folder, ["vqa.accuracy"], split="val", confidence=0.95)["vqa.accuracy"]
    assert test.difference == test.low == test.high == 0 and test.challenger == metrics["val"]["accuracy"]
