"""The sample world's truth applied to tables, against the truth that stands in the sample's own files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from blip_core.sample.scene_texts import human_captions, is_true
from blip_core.sample.truth import caption_truth, load_truth, synthetic_noise, truth_of, web_noise
from blip_core.sample.write import write_sample
from blip_core.tables.captions import caption_table, read_table
from tests.support.small import sample_config


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    write_sample(out, sample_config(seed=1, num_web=40, num_train=10, num_val=6, num_test=6))
    return out


@pytest.fixture(scope="module")
def truth(data):
    return load_truth(data)


def web_rows(data: Path, reason="kept") -> list[dict]:
    """The crawl as ingest names it, from the files that a user sees."""
    rows = [row for path in sorted((data / "web").glob("*.parquet")) for row in read_table(path).to_pylist() if row["status"] == "success"]
    return [{"key": f"web-{row['key']}", "text": row["caption"], "source": "web", "reason": reason} for row in rows]


def test_a_real_crawl_has_no_truth(tmp_path):
    assert load_truth(tmp_path) is None


def test_web_noise_is_what_the_scenes_say(data, truth):
    rows = web_rows(data)
    false = sum(not is_true(truth[r["key"]].scene, r["text"]) for r in rows)
    noise = web_noise(caption_table(rows), truth)
    assert 0 < false < len(rows)
    assert noise.before == noise.after == false / len(rows)
    assert noise.texts == noise.kept == len(rows)


def test_a_perfect_filter_leaves_no_noise_and_a_perverse_one_nothing_else(data, truth):
    rows = web_rows(data)
    for good, expected in (("kept", 0.0), ("below_threshold", 1.0)):
        bad = {"kept": "below_threshold", "below_threshold": "kept"}[good]
        decided = [{**r, "reason": good if truth[r["key"]].text_true else bad} for r in rows]
        assert web_noise(caption_table(decided), truth).after == expected


def test_nothing_kept_has_no_share(data, truth):
    noise = web_noise(caption_table(web_rows(data, reason="below_threshold")), truth)
    assert noise.after is None and noise.before > 0


def test_kinds_add_up_and_are_true_or_false_as_the_sample_says(data, truth):
    kinds = web_noise(caption_table(web_rows(data)), truth).kinds()
    assert sum(kind.texts for kind in kinds.values()) == 40
    for name, kind in kinds.items():
        assert kind.before == (0.0 if name in ("clean", "terse") else 1.0), name
    assert next(iter(kinds.values())).texts == max(kind.texts for kind in kinds.values())


def test_shards_add_up(data, truth):
    rows = web_rows(data)
    whole = web_noise(caption_table(rows), truth)
    assert web_noise(caption_table(rows[:13]), truth) + web_noise(caption_table(rows[13:]), truth) == whole


def test_synthetic_texts_are_judged_by_the_scene(truth):
    draw = np.random.default_rng(0)
    keys = [key for key in truth if key.startswith("web-")]
    right = [{"key": k, "text": human_captions(draw, truth[k].scene)[0], "source": "synthetic", "reason": "kept"} for k in keys]
    wrong = [{**row, "text": "a purple moon and a purple boat and a purple box"} for row in right[:10]]
    assert synthetic_noise(caption_table(right), truth).before == 0.0
    noise = synthetic_noise(caption_table(right[10:] + wrong), truth)
    assert noise.before == 10 / len(keys)
    assert list(noise.kinds()) == ["synthetic"]


def test_each_source_counts_only_its_own_texts_and_only_known_images(data, truth):
    rows = web_rows(data)
    stranger = {"key": "web-stranger", "text": "a red ball", "source": "web", "reason": "kept"}
    synthetic = {**rows[0], "source": "synthetic"}
    human = {**rows[0], "source": "human"}
    table = caption_table([*rows, stranger, synthetic, human])
    assert web_noise(table, truth).texts == len(rows)
    assert synthetic_noise(table, truth).texts == 1
    assert truth_of(caption_table([stranger]), truth) == [None]


def test_the_clean_sets_own_captions_are_true_and_anothers_mostly_not(data, truth):
    images = json.loads((data / "clean" / "dataset_karpathy.json").read_text())["images"]
    test = [(f"test-{Path(i['filename']).stem}", i["sentences"][0]["raw"]) for i in images if i["split"] == "test"]
    keys, captions = zip(*test, strict=True)
    assert caption_truth(pa.table({"key": keys, "caption": captions}), truth) == 1.0
    assert caption_truth(pa.table({"key": keys, "caption": captions[1:] + captions[:1]}), truth) < 1.0
    assert caption_truth(pa.table({"key": ["test-stranger"], "caption": ["a red ball"]}), truth) is None
