"""Retrieval and captioning as tasks: their files, their objectives, their metrics before and after."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

from blip_core.config.tasks import CaptioningConfig, RetrievalConfig
from blip_core.evaluation.metrics import caption_scores
from blip_core.sample.captioned import write_captioned
from blip_core.tasks.captioned import read_captioned
from blip_core.tasks.kinds import KINDS
from blip_core.training.batches import normalize
from blip_core.training.objectives import CaptionObjective, PretrainObjective
from blip_core.training.step import Batch, TaskBatch
from blip_core.weights.checkpoint import load_model
from tests.support.small import small_params
from tests.support.task_runs import tuned_and_measured

OPTIM = {"steps": 60, "batch_size": 8, "lr": 3e-3, "max_tokens": 20, "checkpoint_every": 60, "log_every": 5, "precision": "fp32"}
EVERY = {"optim": OPTIM, "measure": {"bootstrap": 50, "precision": "fp32", "batch_size": 5}}


def retrieval(**changes) -> RetrievalConfig:
    return small_params(tasks={"t": {"kind": "retrieval", "rerank": 4, **EVERY} | changes}).tasks["t"]


def caption(**changes) -> CaptioningConfig:
    return small_params(tasks={"t": {"kind": "caption", "max_tokens": 10, **EVERY} | changes}).tasks["t"]


NINE = "COCO_val2014_000000000009.jpg"
SAID = ["A red ball.", "There's a ball"]
LISTED = [{"image_id": 9, "id": i, "caption": text} for i, text in enumerate(SAID)]
IN_COCO = {"images": [{"id": 9, "file_name": NINE, "domain": "near"}], "annotations": LISTED}
KARPATHY = {"filepath": "val2014", "filename": NINE, "sentences": [{"raw": t} for t in SAID], "split": "test", "cocoid": 9}
FILES = {
    "dataset_coco.json": json.dumps({"images": [KARPATHY, {**KARPATHY, "split": "restval", "filename": "other.jpg"}]}),
    "captions_test2014.json": json.dumps(IN_COCO),
    "coco_karpathy_test.json": json.dumps([{"image": f"val2014/{NINE}", "caption": SAID}]),
    "test.csv": f"image,caption,domain\n{NINE},A red ball.,near\n{NINE},There's a ball,near\n",
    "test.tsv": f"file_name\tcaption_0\tcaption_1\n{NINE}\tA red ball.\tThere's a ball\n",
    "all.jsonl": json.dumps({"image": NINE, "captions": SAID, "split": "test"}) + "\n",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d/val2014").mkdir(parents=True)
    for name in (NINE, "other.jpg"):
        (tmp_path / "d/val2014" / name).write_bytes(simplejpeg.encode_jpeg(np.full((20, 30, 3), 90, np.uint8)))
    return tmp_path / "d"


@pytest.mark.parametrize("name", FILES)
def test_every_usual_file_is_read(name, folder):
    (folder / name).write_text(FILES[name])
    found, aside = read_captioned(folder, "test")
    assert not aside and [(e.pictures[0].name, e.texts) for e in found] == [(NINE, tuple(SAID))]
    assert found[0].cleaned == ["a red ball", "there's a ball"]
    if "domain" in FILES[name]:
        assert found[0].facts["domain"] == "near"


def test_each_caption_of_train_is_an_example_of_one_picture(folder):
    pq.write_table(pa.Table.from_pylist([{"image": "other.jpg", "captions": SAID}]), folder / "train.parquet")
    found, _ = read_captioned(folder, "train")
    assert [e.texts for e in found] == [(SAID[0],), (SAID[1],)] and len({e.id for e in found}) == 2
    assert found[0].pictures == found[1].pictures


def test_what_can_not_be_used_is_told(folder):
    rows = [
        {"image": NINE, "captions": ["a ball", " ! ", "\udcff ball"]},
        {"image": "gone.jpg", "caption": "a ball"},
        {"image": NINE},
        {"image": {"bytes": "x"}, "caption": "a ball"},
        {"image": "other.jpg", "caption": "a box", "split": "minival"},
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    found, aside = read_captioned(folder, "test")
    assert [e.texts for e in found] == [("a ball",)]
    assert sorted(a.reason for a in aside) == ["bad_encoding", "bad_row", "empty_text", "missing_image", "missing_image", "unknown_split"]
    with pytest.raises(ValueError, match="no file of rows whose name says val"):
        read_captioned(folder, "val")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "retrieval"
    write_captioned(out, kind="retrieval", seed=0, sizes={"train": 6, "val": 1, "test": 11})
    return out


def test_one_seed_gives_the_same_pictures_and_a_kind_its_own(data, tmp_path):
    for kind in ("retrieval", "caption"):
        write_captioned(tmp_path / kind, kind=kind, seed=0, sizes={"train": 6, "val": 1, "test": 11})
    files = sorted(p.relative_to(data) for p in data.rglob("*") if p.is_file())
    assert len(files) == 21 and all((data / f).read_bytes() == (tmp_path / "retrieval" / f).read_bytes() for f in files)
    assert not {(data / f).read_bytes() for f in files} & {(tmp_path / "caption" / f).read_bytes() for f in files}


def test_a_batch_gives_the_losses_of_pretraining_on_the_same_pairs(data, model, tokenizer):
    """With two captions of one picture among them, which are no negatives of each other."""
    examples = read_captioned(data, "train")[0][:7]
    pixels = normalize(torch.arange(7.0)[:, None, None, None].expand(7, 3, 16, 16) * 30)
    for kind, cfg, inner in (
        ("retrieval", retrieval(), lambda c: PretrainObjective(model, c.contrast, language=None)),
        ("caption", caption(prompt="a photo of "), lambda c: CaptionObjective(small_params().tune_captioner.language)),
    ):
        tensors = KINDS[kind].tensors(examples, tokenizer, cfg)
        task = TaskBatch(pixels=pixels, tensors=tensors, step=3, progress=0.5, seed=1)
        common = {n: tensors[n] for n in ("ids", "mask", "image_ids", "text_ids")}
        plain = Batch(pixels=pixels, step=3, progress=0.5, seed=1, prompt_tokens=3 if kind == "caption" else 0, **common)
        assert len(set(tensors["image_ids"].tolist())) == 2
        got, expected = KINDS[kind].objective(model, cfg)(model, task), inner(cfg)(model, plain)
        assert got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)


def run(base, data, out, cfg):
    found = tuned_and_measured("t", base, data, out, cfg)
    assert found["draws"].keys() == set(cfg.METRICS)  # what the chain may judge by
    return found


def test_retrieval_is_tuned_at_another_size_and_measured_before_and_after(base, data, tmp_path):
    found = run(
        base,
        data,
        tmp_path,
        retrieval(image_size=32, optim=OPTIM | {"steps": 12}, measure={"bootstrap": 50, "precision": "fp32", "slices": ["things"]}),
    )
    tuned, _ = load_model(tmp_path / "model")  # a model folder as any other
    assert tuned.cfg.vision.image_size == 32 and load_model(base)[0].cfg.vision.image_size == 16
    assert json.loads((tmp_path / "tuned.json").read_text())["itc"] > 0
    rows = pq.read_table(tmp_path / "found/answers.parquet").to_pylist()
    for prefix in ("", "itm_"):
        ranks = [int(r) for row in rows for f in row["facts"] if f.startswith(f"{prefix}ir_ranks=") for r in f.split("=")[1].split()]
        assert len(ranks) == 55 and found[f"{prefix}ir_r5"] == pytest.approx(np.mean([r < 5 for r in ranks]))
        assert found[f"{prefix}tr_r1"] == pytest.approx(np.mean([row[f"{prefix}tr_r1"] for row in rows]))
    assert all(f"{zero}{prefix}{way}_r10_low" in found for zero in ("", "zero_shot_") for prefix in ("", "itm_") for way in ("tr", "ir"))
    assert "zero_shot_itm_ir_r1[things=1]" in found and found["examples"] == 11


def test_captions_are_learned_behind_the_prompt_and_measured_before_and_after(base, data, tmp_path):
    """The loss falls below what knowing word frequencies alone costs. Untuned, the model has its own prompt."""
    found = run(base, data, tmp_path, caption(prompt="a photo of ", min_tokens=2))
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    last = (tmp_path / "history.csv").read_text().splitlines()
    chance = float(last[-1].split(",")[last[0].split(",").index("lm_chance")])
    assert tuned["lm"] < chance - 0.3
    for prefix, table in (("", "answers"), ("zero_shot_", "zero_shot")):
        rows = pq.read_table(tmp_path / f"found/{table}.parquet").to_pylist()
        captions = {row["id"]: row["answer"] for row in rows}
        scores = caption_scores({e.id: e.texts for e in read_captioned(data, "test")[0]}, captions)
        assert {m: found[f"{prefix}{m}"] for m in ("cider", "rouge_l", "bleu4")} == pytest.approx(
            {m: scores.corpus[m] for m in ("cider", "rouge_l", "bleu4")}
        )
    assert json.loads((tmp_path / "model/config.json").read_text())["prompt"] == "a photo of "
    assert KINDS["caption"].untuned(caption(), json.loads((base / "config.json").read_text())).prompt == "there is "


def test_contrast_is_laid_over_what_the_trainings_share():
    assert retrieval(contrast={"queue_size": 8}).contrast.model_dump() == small_params().tune_filter.contrast.model_dump() | {
        "queue_size": 8
    }
    with pytest.raises(ValueError, match="tasks.t.optim.max_tokens is 60, but model.text.max_positions is 40"):
        retrieval(optim=OPTIM | {"max_tokens": 60})
