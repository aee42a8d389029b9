"""The stages caption and score: every image and text once, the same bytes whoever computes them, resumed after an interruption."""

import shutil

import pytest

from blip_core.stages import caption as caption_stage
from blip_core.stages.caption import caption
from blip_core.stages.score import score
from blip_core.tables.captions import read_table, read_tables
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages, index_path, read_index
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.weights.checkpoint import new_model, save_model


@pytest.fixture(scope="module")
def models(ingested, params, tmp_path_factory):
    """An untrained captioner and filter."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer(ingested / "tokenizer.json")
    for name, seed in (("captioner", 1), ("filter", 2)):
        save_model(new_model(params.model, tokenizer, seed=seed), tokenizer, folder / name, prompt="", max_tokens=24)
    return folder


def run_caption(ingested, models, out, work, params, *, shards=None, fetch=None, **changes):
    cfg = params.caption.model_copy(update=changes)
    g0 = ingested / "generations/g0"
    inputs = [models / "captioner", g0, shards or ingested / "shards", ingested / "gates/g0.json"]
    caption(*inputs, out, round="r1", cfg=cfg, seed=3, work=work, fetch=fetch)


def run_score(ingested, models, captions, out, work, params, *, shards=None):
    g0 = ingested / "generations/g0"
    score(models / "filter", g0, captions, shards or ingested / "shards", ingested / "heldout", out, cfg=params.score, seed=3, work=work)


def test_each_image_gets_its_captions_once(ingested, models, params, tmp_path):
    writers = tuple(w.model_copy(update={"num_candidates": 2}) for w in params.caption.writers)
    run_caption(ingested, models, tmp_path / "captions", tmp_path / "work", params, writers=writers)
    made, base = read_tables(tmp_path / "captions"), read_tables(ingested / "generations/g0")
    web = [k for k, s in zip(base["key"].to_pylist(), base["source"].to_pylist(), strict=True) if s == "web"]
    assert sorted(zip(made["key"].to_pylist(), made["candidate"].to_pylist(), strict=True)) == sorted((k, c) for k in web for c in (0, 1))
    assert not list((tmp_path / "work").glob("caption-*"))


def test_batches_and_interruptions_leave_the_bytes_as_they_are(ingested, models, params, tmp_path, monkeypatch):
    run_caption(ingested, models, tmp_path / "whole", tmp_path / "work", params)
    run_caption(ingested, models, tmp_path / "small", tmp_path / "work", params, batch_size=7)
    assert content_hash(tmp_path / "whole") == content_hash(tmp_path / "small")

    calls, batch = [], caption_stage.caption_batch

    def dies(*args, **kwargs):
        calls.append({image.key for image in args[1]})
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch(*args, **kwargs)

    monkeypatch.setattr(caption_stage, "caption_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        run_caption(ingested, models, tmp_path / "broken", tmp_path / "work", params)
    assert not (tmp_path / "broken").exists()
    run_caption(ingested, models, tmp_path / "broken", tmp_path / "work", params)
    assert content_hash(tmp_path / "whole") == content_hash(tmp_path / "broken")
    assert not set.union(*calls[3:]) & set.union(*calls[:2])  # finished shards were not captioned again


def test_a_captioner_of_the_registry_is_fetched_once_and_its_place_passed_on(ingested, models, params, tmp_path):
    """Workers on other machines need no registry. The same model is the same captions, whatever it was called."""
    run_caption(ingested, models, tmp_path / "tuned", tmp_path / "work", params)
    (writer,) = params.caption.writers
    named, asked = writer.model_copy(update={"captioner": "models:/blip/3"}), []

    def fetch(name):
        asked.append(name)
        return models / "captioner"

    run_caption(ingested, models, tmp_path / "named", tmp_path / "work", params, writers=(named,), fetch=fetch)
    assert content_hash(tmp_path / "named") == content_hash(tmp_path / "tuned") and asked == ["models:/blip/3"]


def test_all_texts_and_controls_are_scored(ingested, models, params, tmp_path):
    run_caption(ingested, models, tmp_path / "captions", tmp_path / "work", params)
    run_score(ingested, models, tmp_path / "captions", tmp_path / "scores", tmp_path / "work", params)
    names = sorted(p.name for p in (tmp_path / "scores").glob("web-*.parquet"))
    tables = [read_table(tmp_path / "scores" / n) for n in names]
    assert all(t["itm"].null_count == t["itc"].null_count == 0 and set(t["source"].to_pylist()) == {"web", "synthetic"} for t in tables)
    for table in tables:
        for row in table.slice(0, 5).to_pylist():
            assert 0 <= row["itm"] <= 1 and -1.001 <= row["itc"] <= 1.001 and row["match"] is None and row["opinions"] is None
    controls = read_table(tmp_path / "scores/controls.parquet")
    assert set(controls["kind"].to_pylist()) == {"true", "mismatched", "crawled", "perturbed"} and controls["itm"].null_count == 0
    first = content_hash(tmp_path / "scores")
    run_score(ingested, models, tmp_path / "captions", tmp_path / "scores", tmp_path / "work", params)
    assert content_hash(tmp_path / "scores") == first


def test_a_damaged_picture_is_named_and_finished_shards_stay(ingested, models, params, tmp_path):
    """Ingest decoded every picture, so damage came later: the run says where it is, and goes on behind it once it is mended."""
    shards = tmp_path / "shards"
    shutil.copytree(ingested / "shards", shards)
    stem = sorted(ShardImages(shards).shards)[-1]
    row = read_index(index_path(shards, stem)).to_pylist()[1]
    tar, whole = shards / f"{stem}.tar", (shards / f"{stem}.tar").read_bytes()
    tar.write_bytes(whole[: row["offset"] + 200] + bytes(100) + whole[row["offset"] + 300 :])
    message = rf"{stem}.tar: image '{row['key']}' can't be decoded .*restore it or run ingest again"
    world = {"ingested": ingested, "models": models, "params": params, "work": tmp_path / "work", "shards": shards}

    with pytest.raises(ValueError, match=message):
        run_caption(**world, out=tmp_path / "captions")
    finished = {p.name for p in tmp_path.glob("work/caption-*/*.parquet")}
    assert finished == {f"{s}.parquet" for s in ShardImages(shards).shards if s.startswith("web")} - {f"{stem}.parquet"}

    run_caption(ingested, models, tmp_path / "captions", tmp_path / "work", params)
    with pytest.raises(ValueError, match=message):
        run_score(**world, captions=tmp_path / "captions", out=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    tar.write_bytes(whole)
    run_score(**world, captions=tmp_path / "captions", out=tmp_path / "scores")
    run_score(ingested, models, tmp_path / "captions", tmp_path / "never broken", tmp_path / "work", params)
    assert content_hash(tmp_path / "scores") == content_hash(tmp_path / "never broken")


def test_captioning_refuses_what_did_not_pass_its_gate(ingested, models, params, tmp_path):
    g0 = ingested / "generations/g0"
    with pytest.raises(ValueError, match="did not pass its gate"):
        caption(
            models / "captioner",
            g0,
            ingested / "shards",
            tmp_path / "none.json",
            tmp_path / "c",
            round="r1",
            cfg=params.caption,
            seed=0,
            work=tmp_path,
        )
