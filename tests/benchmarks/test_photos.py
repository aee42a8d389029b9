"""The photo benchmark on drawn pictures: its noise is what it says, its floor finds colours, and each arm comes out beside its floor."""

import argparse
import csv
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip_core.config.params import load_params

ROOT = Path(__file__).resolve().parents[2]
TRUTH = ROOT / "benchmarks/truth"
COLOURS = {"red": (210, 30, 30), "blue": (30, 30, 210), "green": (30, 160, 30), "yellow": (230, 220, 40)}
NAMES = ("dog", "man", "ball", "bike")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TRUTH))
    yield
    for name in set(sys.modules) - before:
        if (TRUTH / f"{name}.py").exists():
            del sys.modules[name]


def draw(folder: Path, *, train: int, heldout: int) -> Path:
    """Pictures of noise in one of four colours, captions that name it; the splits val and test have as many."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), [("file_name", "split", "caption")]
    for i in range(train + 2 * heldout):
        colour, name, file = list(COLOURS)[i % 4], NAMES[i // 4 % 4], f"{i:04d}.png"
        pixels = np.array(COLOURS[colour]) + rng.normal(0, 20, (48, 48, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
        split = "train" if i < train else "val" if i < train + heldout else "test"
        rows += [(file, split, text) for text in (f"a {colour} {name} , number {i}", f"there is a {colour} {name} running")]
    with (folder / "captions.csv").open("w", newline="") as f:
        csv.writer(f).writerows(rows)
    return folder


def test_the_crawl_is_false_in_the_way_that_the_truth_tells(tmp_path):
    from photo_world import KINDS, lay_out, read_photos

    photos = draw(tmp_path / "photos", train=400, heldout=4)
    lay_out(photos, tmp_path / "a", num_clean=40, num_val=0, seed=0)
    captions = {p.file_name: p.captions for p in read_photos(photos)}
    rows = list(csv.DictReader((tmp_path / "a/truth.csv").open()))
    assert len(rows) == 360 and {r["kind"] for r in rows} == set(KINDS)
    assert sum(r["kind"] == "true" for r in rows) == pytest.approx(0.3 * 360, abs=30)
    for row in rows:
        own, text = captions[row["file_name"]], row["caption"]
        assert (text in own) == (row["kind"] == "true")
        if row["kind"] == "mismatched":
            assert any(text in c for c in captions.values())
        if row["kind"] == "terse":
            assert " " not in text and text in " ".join(own)
        if row["kind"] == "one_word":
            differing = [
                [w for w, v in zip(text.split(), c.split(), strict=True) if w != v] for c in own if len(c.split()) == len(text.split())
            ]
            assert any(len(words) == 1 and words[0] not in " ".join(own) for words in differing)
    homes = [{p.name for p in (tmp_path / f"a/data/{part}").glob("*.png")} for part in ("clean", "web")]
    assert not homes[0] & homes[1] and homes[0] | homes[1] == set(captions)
    with tarfile.open(photos / "images.tar", "w") as tar:
        for path in sorted(photos.glob("*.png")):
            tar.add(path, path.name)
            path.unlink()
    lay_out(photos, tmp_path / "b", num_clean=40, num_val=0, seed=0)
    assert (tmp_path / "b/truth.csv").read_bytes() == (tmp_path / "a/truth.csv").read_bytes()
    with pytest.raises(ValueError, match="400 train and 4 held-out pictures"):
        lay_out(photos, tmp_path / "c", num_clean=400, num_val=0, seed=0)


def test_the_linear_floor_finds_colours_and_finds_nothing_where_pairs_are_shuffled():
    from linear_floor import SIDE, LinearFloor, picture_features

    rng = np.random.default_rng(0)
    pictures = [
        np.clip(np.array(list(COLOURS.values())[i % 4]) + rng.normal(0, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8) for i in range(80)
    ]
    texts = [f"a {list(COLOURS)[i % 4]} {NAMES[i // 4 % 4]} number {i}" for i in range(80)]
    features = picture_features(pictures)
    for order, found in ((np.arange(40), 1.0), (rng.permutation(40), 0.25)):
        floor = LinearFloor.fit(features[:40], [texts[i] for i in order])
        best = floor.scores(features[40:], [f"a {colour} thing" for colour in COLOURS]).argmax(1)
        assert (best == np.arange(40) % 4).mean() == pytest.approx(found, abs=0.05 if found == 1 else 0.25)


def run(*args: str) -> str:
    return subprocess.run([sys.executable, TRUTH / "photos.py", *args], check=True, capture_output=True, text=True).stdout


def test_without_the_photographs_nothing_is_done(tmp_path, capsys):
    import photos

    photos.main(argparse.Namespace(photos=tmp_path / "none", out=tmp_path / "out"))
    assert "no captions.csv there" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["photos-small", "photos-gpu"])
def test_the_values_fit_and_an_arm_differs_from_them_in_what_it_says(tmp_path, name):
    import photos

    photos.write_values(tmp_path, ROOT / f"configs/{name}.yaml", {"pretrain": {"optim": {"steps": 7}}})
    base, long, filtered = (load_params(tmp_path / f"params{arm}.yaml") for arm in ("", "-long", "-F"))
    assert (base.pretrain.optim.steps, long.pretrain.optim.steps, base.pretrain.contrast.queue_size) == (7, 14, 0)
    assert long.model == base.model == filtered.model and filtered.assemble.sources != base.assemble.sources
    with pytest.raises(ValueError, match="a run with other values lies here"):
        photos.write_values(tmp_path, ROOT / f"configs/{name}.yaml", {"seed": 5})


@pytest.mark.slow  # a minute: nine trainings and evaluations, each a process of its own
def test_every_arm_is_measured_beside_its_floor_and_a_second_call_runs_nothing(tmp_path):
    photos, out = draw(tmp_path / "photos", train=160, heldout=40), tmp_path / "out"
    small = ["pretrain.optim.steps=6", "tune_captioner.optim.steps=4", "tune_filter.optim.steps=4", "training.optim.batch_size=16"]
    small += ["model.vision.image_size=32", "evaluate.bootstrap=20", "assemble.threshold.web=0.3", "assemble.threshold.synthetic=0.3"]
    small += ["validate.min_images=1", "validate.min_heldout_images=1", "gate.min_controls=1", "gate.min_texts=1"]
    small += ["model.vision.width=32", "model.text.width=32", "training.optim.threads=1"]
    call = (str(photos), "--out", str(out), "--clean", "60", "--arms", "none", "human", "F", "long", "--set", *small)
    said = run(*call)
    costs = (out / "costs.json").read_bytes()
    for arm in ("none", "human", "F", "long"):
        assert re.search(rf"(?m)^\| {arm} \| model \|", said) and re.search(rf"(?m)^\| {arm} \| linear floor \|", said)
    assert "| all false texts |" in said and "Noise of the web texts: " in said and "it would say at most " in said
    run(*call)
    assert (out / "costs.json").read_bytes() == costs
