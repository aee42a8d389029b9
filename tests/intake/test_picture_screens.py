"""Screens of pictures through ingest: what they drop stands in the quarantine, what they mark in the fields, and what they saw is kept."""

import json

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from blip_core.config.screens import PicturesConfig
from blip_core.intake.classified import classify
from blip_core.intake.units import fields_path
from blip_core.metadata.folder import ASIDE, metadata_of
from blip_core.pictures.images import decode_rgb
from blip_core.preview.inspect import inspect
from blip_core.screens import classifier
from blip_core.screens.classifier import load_classifier
from blip_core.tables.captions import read_table, write_table
from blip_core.tables.shards import ShardWriter
from tests.screens.test_classifier import LABELS, save_classifier
from tests.stages.test_ingest import CFG, SPLITS, quarantine, run
from tests.support.archives import jpeg, karpathy_image, tar_bytes, write_karpathy

SCREENS = [
    {"name": "licence", "field": "license", "outside": ["CC0 1.0"], "missing": "drop", "then": "drop"},
    {"name": "dark", "field": "measured_brightest", "below": 0.3, "then": "drop"},
    {"name": "unsafe", "field": "punsafe", "above": 0.5, "then": "mark"},
]


@pytest.fixture
def data(tmp_path):
    """A crawl of eight pictures of noise; 1 has another licence, 2 none, 3 is dark, 4 is unsafe, 5 has a punsafe that is no number."""
    rng, files = np.random.default_rng(0), []
    for i in range(8):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8) // (8 if i == 3 else 1)
        facts = {"license": "mine" if i == 1 else "cc0-1.0", "punsafe": {4: 0.9, 5: "high"}.get(i, 0.1), "screens": "theirs"}
        if i == 2:
            del facts["license"]
        files += [
            (f"{i}.jpg", simplejpeg.encode_jpeg(pixels, quality=95)),
            (f"{i}.txt", b"a text"),
            (f"{i}.json", json.dumps(facts).encode()),
        ]
    folder = tmp_path / "data"
    (folder / "web").mkdir(parents=True)
    (folder / "web/00000.tar").write_bytes(tar_bytes(files))
    write_karpathy(folder / "clean", [karpathy_image(f"n{i}", i, split, cocoid=500 + i) for i, split in enumerate(SPLITS)])
    return folder


def cfg(screens=SCREENS, **more) -> PicturesConfig:
    return PicturesConfig(measure=True, screens=screens, **more)


def nsfw(folder) -> dict:
    save_classifier(folder / "nsfw")
    return {"nsfw": {"model": folder / "nsfw", "batch_size": 3, "precision": "fp32"}}


def key(i: int) -> str:
    return f"web-00000-{i}"


def test_what_is_dropped_has_its_reason_and_what_is_marked_stays(data, tmp_path, caplog):
    """Each picture in a shard of its own, so that some shards are dropped whole."""
    seen = {"name": "seen", "field": "nsfw_unsafe", "above": -1.0, "then": "mark"}
    metrics = run(data, tmp_path, pictures=cfg([*SCREENS, seen], classifiers=nsfw(tmp_path)), shard_images=1)
    aside = {row["key"]: (row["reason"], row["detail"]) for row in quarantine(tmp_path)}
    assert aside[key(1)] == ("picture_licence", "license is mine: none of those that the screen lets in")
    assert aside[key(2)] == ("picture_licence", "no license, and the screen's `missing` is drop")
    assert aside[key(3)][0] == "picture_dark" and aside[key(3)][1].startswith("measured_brightest is 0.1") and len(aside) == 3
    tables = (metadata_of(tmp_path / "metadata", f"web-0000{n}", [key(i)]) for n, i in enumerate((0, 4, 5, 6, 7)))
    kept = pa.concat_tables(tables)
    assert kept["screens"].to_pylist() == [["seen"], ["unsafe", "seen"], ["seen"], ["seen"], ["seen"]]
    assert kept["measured_sharpness"].null_count == 0
    assert kept["source_screens"].to_pylist() == ["theirs"] * 5
    dropped = {row["key"]: row["screens"] for row in read_table(tmp_path / "metadata" / ASIDE).to_pylist()}
    assert dropped == {key(1): ["licence", "seen"], key(2): ["seen"], key(3): ["dark", "seen"]}
    counts = {name: metrics[f"{what}_picture_{name}"] for what, name in (("dropped", "licence"), ("dropped", "dark"), ("marked", "unsafe"))}
    assert counts == {"licence": 2, "dark": 1, "unsafe": 1} and metrics["images_web"] == 5
    assert (metrics["missing_picture_licence"], metrics["mistyped_picture_unsafe"], metrics["rejected_share_web"]) == (1, 1, 0.0)
    assert "unsafe: 0 pictures of the crawl have no punsafe, 1 one of a type that it can't compare; missing: keep" in caplog.text


def test_a_classifier_s_scores_are_kept_so_that_another_run_asks_no_model(tmp_path, monkeypatch):
    """By the pictures and the model: also where the shard was staged anew, under other fields."""
    own = nsfw(tmp_path)
    with ShardWriter(tmp_path / "unit", "web", num_images=10) as writer:
        for i in range(7):
            writer.add(key(i), jpeg(str(i)), image_id=str(i), width=40, height=36)
    shard, kept = (tmp_path / "unit", "web-00000"), tmp_path / "kept"

    def fields_after(before: dict) -> pa.Table:
        write_table(pa.table({"key": [key(i) for i in range(7)], **before}), fields_path(*shard))
        classify([shard], cfg([], classifiers=own), kept)
        return read_table(fields_path(*shard))

    found = fields_after({"nsfw_fine": [0.0] * 7})  # as a run that was killed may leave it
    expected = load_classifier(own["nsfw"]["model"], precision="fp32").scores([decode_rgb(jpeg(str(i))) for i in range(7)])
    np.testing.assert_allclose(np.stack([found[f"nsfw_{label}"] for label in LABELS.values()], axis=1), expected, atol=1e-5)
    monkeypatch.setattr(classifier.Classifier, "scores", None)
    again = fields_after({"url": ["a"] * 7})
    assert again.drop_columns("url").equals(found.select(again.drop_columns("url").column_names))
    (kept / "of-pictures-that-are-gone.parquet").write_bytes(b"")
    classify([shard], cfg([], classifiers=own), kept)
    assert len(list(kept.iterdir())) == 1


def test_a_screen_of_a_label_that_the_classifier_has_not_is_refused(tmp_path):
    own = nsfw(tmp_path)
    with pytest.raises(ValueError, match="the screen nsfw wants nsfw_porn; the labels of nsfw are fine, unsafe, watermark"):
        classify([], cfg([{"name": "nsfw", "field": "nsfw_porn", "above": 0.5, "then": "drop"}], classifiers=own), tmp_path / "kept")


def test_inspect_counts_what_each_would_take(data, tmp_path):
    own = nsfw(tmp_path)
    screens = [*SCREENS, {"name": "nsfw", "field": "nsfw_unsafe", "above": -1.0, "then": "off"}]
    told = inspect(data / "web", cfg=CFG.model_copy(update={"pictures": cfg(screens, classifiers=own)})).splitlines()
    assert "pictures     would be hit, of 8 of a crawl, where ingest.pictures.screens turns these on:" in told
    assert "       1  licence: license none of those that the screen lets in (1 without it)" in told
    assert "       1  unsafe: punsafe above 0.5 (1 of another type)" in told
    assert "       1  dark: measured_brightest below 0.3" in told and "       0  odd_aspect: measured_aspect above 3" in told
    assert "       8  nsfw: nsfw_unsafe above -1" in told


def test_a_field_that_metadata_leaves_out_can_screen_nothing():
    with pytest.raises(ValueError, match="licence wants the field license, which metadata.keep leaves out"):
        type(CFG)(**CFG.model_dump() | {"pictures": cfg().model_dump(), "metadata": {"keep": ["url", "pun*"]}})
