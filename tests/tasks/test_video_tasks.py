"""Retrieval among videos and questions about them: their files, what a model makes of frames, the stages, the sample's clips."""

import json

import numpy as np
import pytest
import simplejpeg
import torch

from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.model.vqa import vqa_of
from blip_core.sample.clips import write_clip_questions, write_clips
from blip_core.tasks.retrieval import Found
from blip_core.tasks.video_qa import VideoQaTask
from blip_core.tasks.video_retrieval import VideoRetrievalTask
from blip_core.weights.checkpoint import new_model
from tests.support.small import small_params
from tests.support.task_runs import tuned_and_measured
from tests.tasks.test_frames import write_video

MEASURE = {"bootstrap": 30, "precision": "fp32", "batch_size": 3}


def retrieval(**changes):
    return small_params(tasks={"t": {"kind": "video_retrieval", "measure": MEASURE, "max_tokens": 20, "rerank": 2} | changes}).tasks["t"]


def questions(**changes):
    optim = {"steps": 2, "batch_size": 4, "precision": "fp32"}
    return small_params(tasks={"t": {"kind": "video_qa", "optim": optim, "measure": MEASURE, "frames": 3} | changes}).tasks["t"]


def folders(at, *names):
    """Videos as folders of a frame."""
    for name in names:
        (at / name).mkdir(parents=True)
        (at / name / "0.jpg").write_bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), 90, np.uint8)))


def read(folder, split="test"):
    found, aside = VideoRetrievalTask().read(folder, split, retrieval())
    return {e.id: e.texts for e in found}, aside


def test_short_damaged_and_missing_videos_are_told(tmp_path, caplog):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", range(3), "libx264")
    (tmp_path / "videos/bad.mp4").write_bytes((tmp_path / "videos/a.mp4").read_bytes()[:900])
    (tmp_path / "test.csv").write_text("video,caption,source\na.mp4,one,web\na,two,web\nbad.mp4,no,web\ngone.mp4,no,web\nbad.mp4,,web\n")
    found, aside = VideoRetrievalTask().read(tmp_path, "test", retrieval())
    assert [(e.texts, e.facts) for e in found] == [(("one", "two"), {"source": "web", "video_frames": 3})]
    assert sorted(a.reason for a in aside) == ["empty_text", "missing_image", "truncated"]
    assert "no video 'gone.mp4'" in next(a.detail for a in aside if a.reason == "missing_image")
    assert "1 of 2 videos have fewer than 8 frames (1 of 3): some stand there again" in caplog.text


def test_msrvtt_is_read_by_its_own_splits_and_by_the_thousand_pairs(tmp_path):
    folders(tmp_path / "videos", "video0", "video7", "video9")
    videos = [{"video_id": f"video{n}", "split": s, "category": 3} for n, s in ((0, "train"), (7, "validate"), (9, "test"))]
    sentences = [{"video_id": f"video{n}", "caption": f"{word} {n}", "sen_id": n} for n in (0, 7, 9) for word in ("a", "b")]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    assert read(tmp_path) == ({"videos/video9": ("a 9", "b 9")}, [])
    assert read(tmp_path, "val") == ({"videos/video7": ("a 7", "b 7")}, [])
    (tmp_path / "MSRVTT_JSFusion_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr7,video7,a cat\n")
    assert read(tmp_path) == ({"videos/video7": ("a cat",)}, [])
    (tmp_path / "MSRVTT_JSFusion_test.csv").unlink()
    (tmp_path / "msrvtt_test.jsonl").write_text(json.dumps({"caption": "a dog", "clip_name": "video0", "retrieval_key": "ret0"}) + "\n")
    assert read(tmp_path) == ({"videos/video0": ("a dog",)}, [])


def test_msvd_is_read_by_its_lists_and_its_questions_by_number(tmp_path):
    folders(tmp_path / "YouTubeClips", "mv89psg6zh4_33_46", "-4wsuPCjDBc_5_15")
    (tmp_path / "AllVideoDescriptions.txt").write_text("# MSVD\nmv89psg6zh4_33_46 A bird bathes.\n\n-4wsuPCjDBc_5_15 A squirrel eats.\n")
    (tmp_path / "test_list.txt").write_text("mv89psg6zh4_33_46\n")
    (tmp_path / "youtube_mapping.txt").write_text("mv89psg6zh4_33_46 vid15\n-4wsuPCjDBc_5_15 vid2\n")
    (tmp_path / "test_qa.json").write_text(json.dumps([{"answer": "bird", "id": 1, "question": "what bathes?", "video_id": 15}]))
    assert read(tmp_path) == ({"YouTubeClips/mv89psg6zh4_33_46": ("A bird bathes.",)}, [])
    found, aside = VideoQaTask().read(tmp_path, "test", questions())
    assert not aside and [e.pictures[0].name for e in found] == ["mv89psg6zh4_33_46"] and found[0].people == ("bird",)
    (tmp_path / "sents_val_lc_nopunc.txt").write_bytes("vid2\ta squirrel\nvid2\nvid2\ta caf\xe9\n".encode("latin-1"))
    said, aside = read(tmp_path, "val")
    assert said == {"YouTubeClips/-4wsuPCjDBc_5_15": ("a squirrel",)} and aside[0].where.endswith("nopunc.txt:2")
    assert aside[1].reason == "bad_encoding" and aside[1].where.endswith("nopunc.txt:3")
    with pytest.raises(ValueError, match="nor train_list.txt with a video a line"):
        read(tmp_path, "train")


@torch.inference_mode()
def test_a_video_is_the_mean_of_its_frames_to_itc_and_all_their_tokens_to_itm(model_cfg, tokenizer):
    """A picture that stands still is that picture; frames in another order are the same video."""
    size = model_cfg.vision.image_size
    pixels = load_pixels(list(np.random.default_rng(0).integers(0, 255, (3, size, size, 3), np.uint8)), size)
    ids, mask = tokenize(tokenizer, ["a red ball"], max_tokens=20)
    model = new_model(model_cfg, tokenizer, seed=0).eval()
    vqa = vqa_of(model).eval()

    def seen(frames):
        model.frames = vqa.frames = len(frames)
        tokens = model.image_tokens(frames)
        assert tokens.shape[:2] == (1, len(frames) * (1 + (size // model_cfg.vision.patch_size) ** 2))
        return model.image_features(tokens), model.match_logits(ids, mask, model.keys_values(tokens)), vqa.memory(frames, ids, mask)[0][0]

    for one, other in zip(seen(pixels[:1]), seen(pixels[[0, 0, 0, 0]]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(seen(pixels), seen(pixels[[2, 0, 1]]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    projections = model.image_projection(model.vit(pixels)[:, 0]).mean(0)
    torch.testing.assert_close(seen(pixels)[0][0], projections / projections.norm())


def test_the_median_rank_is_over_all_texts():
    def found(name, rank, ranks):
        return Found(name, name, {}, "", {}, {"": rank}, {"": np.array(ranks)})

    statistics = VideoRetrievalTask().overall([found("a", 0, [0, 4, 6]), found("b", 3, [2])])
    assert statistics["t2v_mdr"](np.array([1, 1])) == 4 and statistics["v2t_mdr"](np.array([1, 1])) == 2.5
    assert statistics["t2v_mdr"](np.array([0, 2])) == 3 and statistics["t2v_r5"](np.array([2, 0])) == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks")
    write_clips(out / "clips", seed=0, clips=5)
    write_clip_questions(out / "clip-qa", seed=0, sizes={"train": 4, "val": 1}, clips=5)
    return out


def test_one_seed_gives_the_same_clips_and_true_answers(sample, tmp_path):
    write_clips(tmp_path / "again", seed=0, clips=5)
    files = sorted(p.relative_to(sample / "clips") for p in (sample / "clips").rglob("*.*"))
    assert len(files) == 6 and all((sample / "clips" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    rows = [json.loads(line) for line in (sample / "clips/test.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (sample / "clip-qa/test.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        answers = {q["question_type"]: q["answers"][0] for q in asked[4 * i : 4 * i + 4]}
        assert row["captions"][0].startswith(f"a {answers['colour']} {answers['shape']} ")
        assert f" moves {answers['direction']} " in row["captions"][1] and row["direction"] == answers["direction"]
    with pytest.raises(ValueError, match="421 clips"):
        write_clips(tmp_path / "more", seed=0, clips=421)


@pytest.mark.parametrize("name", ["clips", "clip-qa"])
def test_the_stages_measure_videos(name, sample, base, tmp_path):
    cfg = retrieval() if name == "clips" else questions()
    metrics = tuned_and_measured(name, base, sample / name, tmp_path, cfg)
    assert metrics["draws"].keys() == set(cfg.METRICS)
    if name == "clips":
        assert metrics["examples"] == 5 and metrics["itm_v2t_mdr"] >= 1
        assert metrics["itm_t2v_r5"] == metrics["t2v_r5"] == 1 and metrics["itm_t2v_r1_low"] <= metrics["itm_t2v_r1"]
    else:
        assert metrics["examples"] == 20 and 0 <= metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
