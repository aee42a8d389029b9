"""The benchmarks compare equal work: at tiny size both sides give the same numbers, and their checks notice when they do not."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "benchmarks" / name for name in ("speed", "truth", "faults")]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Scripts in folders that are no packages: importable for one test, forgotten behind it."""
    before = set(sys.modules)
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in set(sys.modules) - before:
        if any((folder / f"{name}.py").exists() for folder in FOLDERS):
            del sys.modules[name]


def test_public_step_gives_our_losses_while_weights_move():
    import step

    sides = step.make_sides("tiny", step.SIDES[:2])
    assert step.check(sides, steps=4) < 1e-5
    losses = [sides[step.SIDES[0]](n) for n in (4, 4)]
    assert losses[0] != losses[1], "the same batch gives other losses behind a step"


def test_lavis_way_gives_our_losses_while_weights_move_and_kept_features_change_none(tmp_path):
    import blip2_step

    kept = f"{blip2_step.FP32}, features kept"
    sides = blip2_step.make_sides("tiny", tmp_path, (blip2_step.PUBLIC, blip2_step.FP32), batch_size=4)
    assert blip2_step.check(sides, steps=3) < 1e-5
    first = {name: blip2_step.make_sides("tiny", tmp_path, (name,), batch_size=4)[name](0) for name in (blip2_step.FP32, kept)}
    assert first[kept] == pytest.approx(first[blip2_step.FP32], abs=1e-5)


def test_the_check_of_the_step_notices_other_negatives(monkeypatch):
    import public_step
    import step

    monkeypatch.setattr(public_step, "negative", lambda similarity, row, draw: (row + 1) % len(similarity))
    sides = step.make_sides("tiny", step.SIDES[:2])
    with pytest.raises(ValueError, match="itm is"):
        step.check(sides)


def test_the_public_step_keeps_its_negatives_off_the_diagonal():
    import public_step

    similarity = torch.tensor([9.0, 0.0, 0.5])
    drawn = {public_step.negative(similarity, 0, torch.tensor(d)) for d in (0.0, 0.2, 0.5, 0.99)}
    assert drawn == {1, 2}


def test_captions_are_equal_and_of_full_length():
    import generation

    model, tokenizer = generation.build("tiny", image_size=384)
    peer = generation.exported(generation.lively(model), tokenizer)
    pixels = torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    for search in generation.CAPTIONS:
        generation.check(model, peer, pixels, search)
    with torch.no_grad():
        peer.text_decoder.cls.predictions.bias.neg_()
    with pytest.raises(ValueError, match="expected equal captions"):
        generation.check(model, peer, pixels, "beam")


def test_itm_logits_agree_and_depend_on_texts():
    import scoring

    sides = scoring.make_sides("tiny")
    difference, logits = scoring.check(sides), sides["ours, fp32"]()
    assert difference < 1e-6
    assert logits.std(dim=0).min() > 100 * difference, "logits that are all the same would agree by chance"
    with pytest.raises(ValueError, match="differ by"):
        scoring.check({**sides, "transformers, fp32": lambda: logits + 1})


def test_a_step_without_padding_has_the_losses_of_one_with_it(ingested):
    import packing

    batches, tokenizer = packing.demo_batches(1, ingested)
    sides = {name: packing.Side(batches, tokenizer, "fp32", padded=name == packing.WITH) for name in (packing.WITH, packing.WITHOUT)}
    assert packing.check(sides, 1e-4) < 1e-4
    with pytest.raises(ValueError, match="losses differ by"):
        packing.check(sides | {packing.WITH: sides[packing.WITHOUT]}, 1e-4)  # its third step against its second


@pytest.mark.parametrize("workers", [0, 1])
def test_the_data_path_gives_the_pixels_of_the_plain_way(tmp_path, workers):
    import data_path

    scale = data_path.SCALES["tiny"]
    sides = data_path.make_sides(tmp_path / "world", scale.pictures[0], scale, workers)
    assert data_path.check(sides) <= 2
    batches = {name: list(side()) for name, side in sides.items()}
    assert {tuple(b.shape) for bs in batches.values() for b in bs} == {(8, 3, 32, 32)} and {len(bs) for bs in batches.values()} == {2}
    stored = batches["ours, stored with short_side 40"]
    assert not torch.equal(stored[0], batches["ours, the same bytes"][0]), "stored smaller, so other bytes"
    with pytest.raises(ValueError, match="differ by .* grey levels"):
        data_path.check({**sides, "plain": lambda: iter([stored[1], stored[0]])})


def test_capfilt_of_a_shard_gives_equal_scores_and_as_many_rows(tmp_path, monkeypatch):
    import capfilt

    capfilt.make_world(tmp_path, "tiny", 2)
    assert capfilt.check(tmp_path) < 1e-3
    sides = capfilt.make_sides(tmp_path, 2, 1)
    tables = [capfilt.read_table(sides[name]()).to_pylist() for name in ("ours, bf16", "transformers, fp32")]
    ours, theirs = ({(r["key"], r["source"], r["candidate"]): r for r in table} for table in tables)
    assert len(ours) == len(tables[0]) == 2 * (1 + 2) and ours.keys() == theirs.keys()
    for key in ours:
        if key[1] == "web":  # captions are random
            assert ours[key]["itm"] == pytest.approx(theirs[key]["itm"], abs=0.05)
            assert ours[key]["itc"] == pytest.approx(theirs[key]["itc"], abs=0.02)
    monkeypatch.setattr(capfilt, "MOST", 1e-9)
    with pytest.raises(ValueError, match="scores of ours and of transformers differ"):
        capfilt.check(tmp_path)


def test_a_comparison_takes_the_ratio_of_each_round():
    import side_by_side

    times = {"theirs": [(2.0, 1.0), (4.0, 1.0), (6.0, 3.0)], "ours": [(1.0, 0.5), (1.0, 0.5), (1.0, 0.5)]}
    ours = side_by_side.compared(times, theirs="theirs")[1]
    assert ours["wall_times_faster"] == [4.0, 2.0, 6.0]
    assert ours["cpu_times_faster"] == [2.0, 2.0, 6.0]
    assert ours["cpu_seconds"] == [0.5, 0.5, 0.5]


def test_ranks_by_blocks_give_the_recalls_of_sorted_rows(monkeypatch):
    import retrieval

    given = retrieval.features(300)
    rows = [{"images": 300, "side": f.__name__, "recalls": f(*given)} for f in (retrieval.by_blocks, retrieval.by_argsort)]
    assert 0.2 < rows[0]["recalls"]["ir_r1"] < rows[0]["recalls"]["ir_r10"] < 1
    retrieval.check(rows)
    rows[1]["recalls"] = rows[1]["recalls"] | {"tr_r5": 0.0}
    with pytest.raises(ValueError, match="300 images: by_blocks finds"):
        retrieval.check(rows)


@pytest.mark.slow
def test_growth_measures_the_stages_on_data_they_accept(tmp_path, capsys):
    """Smallest sizes, two stages: each in a process of its own, with the slope between the sizes."""
    import growth

    found = {n: growth.measure_size(n, tmp_path / str(n), ["validate", "assemble"], models_at_most=0) for n in (60, 120)}
    rows = growth.table(found)
    assert [(r["stage"], r["images"]) for r in rows] == [(s, n) for s in ("validate", "assemble") for n in (60, 120)]
    assert all(r["peak_mib"] > r["start_mib"] > 10 and r["cpu_seconds"] > 0 for r in rows)
    first, second = rows[:2]
    assert first["us_per_further"] is None
    assert second["us_per_further"] == pytest.approx((second["cpu_seconds"] - first["cpu_seconds"]) / 60 * 1e6)
    growth.show(rows)
    assert "| validate | 120 |" in capsys.readouterr().out


def test_copies_are_found_and_other_pictures_are_not(tmp_path):
    """Also counted: pairs of tiles of different pictures only, and a copy among the pictures is told and is no false pair."""
    import near_duplicates

    from tests.intake.test_duplicates import encoded, photo

    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(photo(name)))
    (tmp_path / "d.jpg").write_bytes(encoded(photo("a"), 60))
    keys, data, images = near_duplicates.pictures(tmp_path, 10)
    assert keys == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"] and near_duplicates.pictures(tmp_path, 2)[1] == data[:2]
    found = near_duplicates.hits(images, seed=0)
    assert found["grey"][6] == found["mirrored, compared as held-out"][6] == 1 and found["mirrored"][12] == 0
    wrong, copies = near_duplicates.false_pairs(images)
    assert copies == [(3, 0)]
    assert wrong["tiles"] == 4 * 5 and wrong["pairs"] == 5 * 5 * 5 and wrong["counts"]["both"][12] == 0


def test_both_fingerprints_are_measured_on_the_same_copies(tmp_path, monkeypatch):
    """An encoder of random weights that finds all pictures alike: full recall, and of three pictures every third pair is true."""
    import copies_by_meaning
    import numpy as np

    from tests.intake.test_by_meaning import meaning, photo, save, small

    kinds = ("grey", "turned by 90 degrees")
    monkeypatch.setattr(copies_by_meaning, "KINDS", {name: copies_by_meaning.KINDS[name] for name in kinds})
    embedder = copies_by_meaning.load_embedder(meaning(save(tmp_path, small("vit"))))
    found = copies_by_meaning.compare([np.asarray(photo(name)) for name in "abc"], embedder, seed=0)
    assert found["≤ 10 bits"] == {"grey": (1.0, 3, 0), "turned by 90 degrees": (0.0, 0, 0)}
    assert copies_by_meaning.precision(found["≤ 10 bits"]) == (1.0, 0)
    assert found["cos ≥ 0.85"] == dict.fromkeys(kinds, (1.0, 3, 6))
    assert copies_by_meaning.precision(found["cos ≥ 0.85"]) == (pytest.approx(1 / 3), 12)


def test_the_paper_calculation_is_what_its_inputs_give(benchmarks, capsys):
    """A round case by hand, and the tables of docs/scale.md as the script prints them."""
    import sizing

    settings = ["caption-vit-b16=100", "capfilt-efficiency=0.5", "gpu-hour=2", "shard-images=1000", "image-bytes=33554432", "1000-gets=1"]
    given = sizing.replaced(sizing.inputs(), settings)
    rows = {what: (amount, cost) for what, amount, cost in sizing.size(1_800_000, 10, given).rows}
    assert rows["caption, ViT-B/16"] == ("10 GPU-hours, 1.0 h on 10 GPUs", 20.0)
    assert rows["shards"][0] == "1,800 of 33,554 MB"
    assert rows["shards fetched by ranges, each time"] == ("3,600,000 GET", 3600.0)
    with pytest.raises(ValueError, match="no such number; there are caption-vit-b16"):
        sizing.replaced(given, ["captions=1"])
    sizing.main([])
    assert capsys.readouterr().out.strip() in (ROOT / "docs/scale.md").read_text()


def test_mixtures_of_noise_are_compared_with_their_own_truth():
    """Made-up scores: noise scores -2, true texts 1 on average; threshold 0."""
    import argparse
    from types import SimpleNamespace

    import noise_mixtures
    import numpy as np
    import pyarrow as pa

    rng, kinds = np.random.default_rng(0), noise_mixtures.KINDS
    means = np.where(np.isin(kinds, noise_mixtures.TRUE_KINDS), 1.0, -2.0)
    world = SimpleNamespace(scores=rng.normal(size=(900, len(kinds), 2)) + means[:, None], confidence=0.95)
    names = np.repeat(["true", "mismatched", "perturbed"], 300)
    planted = pa.table({"kind": names, "image_id": np.tile(np.arange(300), 3)})
    scored = rng.normal(size=(900, 2)) + np.where(names == "true", 1.0, -2.0)[:, None]
    borrowed = {kind: (rng.normal(size=(300, 2)) - 2, np.arange(300)) for kind in kinds}
    args = argparse.Namespace(texts=800, thresholds=[0.0, 1.0])
    rows = noise_mixtures.compare(world, {"clean": 0.6, "mismatch": 0.4}, (planted, scored), borrowed, args, np.random.default_rng(1))
    assert [r["threshold"] for r in rows] == [0.0, 1.0]
    assert rows[0]["truth"] == pytest.approx(0.4 * 0.023 / (0.4 * 0.023 + 0.6 * 0.841), abs=0.015) and rows[1]["truth"] < rows[0]["truth"]
    assert all(r["truth"] <= r["upper"] < 0.1 for r in rows)
    shown = noise_mixtures.table([{"true": "t", "noise": "n", "share": 0.4, **r} for r in rows], [0.0, 1.0])
    assert "| t | n | 40% | " in shown and "2 comparisons; the bound covers 100.0%" in shown
    wrong = [{"true": "t", "noise": "n", "share": 0.4, **r, "truth": 0.9} for r in rows]
    assert "1 missed" in noise_mixtures.table(wrong, [0.0, 1.0]) and "covers 0.0%" in noise_mixtures.table(wrong, [0.0, 1.0])


def test_every_kind_of_stage_is_killed():
    import faults
    import yaml

    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    known = faults.faults([f"{s}@g1" if s == "pretrain" else s for s in stages])
    assert {f"kill-{s}" for s in stages if s != "pretrain"} <= known.keys() and "kill-pretrain@g1" in known


def test_a_vision_language_model_writes_and_judges_as_the_plain_loop(tmp_path):
    import answering
    import numpy as np

    folder, options = answering.make_model("tiny", tmp_path), {"precision": "fp32", "fetch": None}
    captioner = answering.open_captioner(str(folder), folder, prompt=None, **options)
    judge = answering.open_filter(str(folder), folder, question=answering.QUESTION, **options)
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8))
    assert answering.check(captioner, judge, pictures) < 1e-4


def test_fetching_is_measured_on_pictures_that_all_came(tmp_path):
    import argparse

    import fetch

    (row,) = fetch.measure(48, 36, 0.0, argparse.Namespace(peer=None, rows=12, runs=1))
    assert row["side"] == "ours" and row["pictures_per_second"] > 0
    with pytest.raises(ValueError, match="0 pictures of .*; expected 12, of 36 at the shorter side"):
        fetch.check([tmp_path], 12, 36)


@pytest.mark.slow  # a chain and a training of its own
def test_an_optional_objective_is_measured_on_a_world_of_its_own(tmp_path, monkeypatch):
    import objectives

    from blip_core.config.params import load_params

    monkeypatch.setattr(objectives, "ROOT", tmp_path)
    monkeypatch.setattr(objectives, "SIZES", {"num_web": 80, "num_train": 60, "num_val": 60, "num_test": 60})
    found = objectives.run("masked", 0, 2, load_params(ROOT / "params.yaml"))
    assert set(found) == set(objectives.METRICS) and 0 <= found["tr_r1"] < 0.5, "two steps learn next to nothing"
