"""The built-in sample world's files are what users bring, hold what truth.parquet says, and are the same bytes for one seed."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from blip_core.sample.scene_texts import is_true, web_text
from blip_core.sample.scenes import RARE_SHAPES, draw_scene, render, scene_from_json
from blip_core.sample.write import write_sample
from tests.support.small import sample_config

SMALL = sample_config(seed=4, num_web=1200, num_train=40, num_val=12, num_test=15)  # this seed draws one defect of each kind
TINY = sample_config(seed=5, num_web=60, num_train=12, num_val=3, num_test=4)

GOLDEN_TEXT = ("mismatch", "a blue star")
GOLDEN_PIXELS = "1b19d0fd390ede0d"

WRITE_TINY = """
import sys
from pathlib import Path
from blip_core.config.sample import SampleConfig
from blip_core.sample.write import write_sample
write_sample(Path(sys.argv[1]), SampleConfig.model_validate_json(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample(out, SMALL)
    return out


@pytest.fixture(scope="module")
def truth(data) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(data / "truth.parquet").to_pylist()}


def members(data: Path) -> dict[str, dict[str, bytes]]:
    """key -> extension -> content of every pair in the crawl."""
    pairs: dict[str, dict[str, bytes]] = {}
    for path in sorted((data / "web").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                pairs.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return pairs


def file_hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_pixels_and_texts_of_a_seed_never_change():
    """Golden values: a change here changes every artifact made from the sample, on some machine or on all."""
    rng = np.random.Generator(np.random.PCG64([0, 0, 0]))
    scene = draw_scene(rng)
    assert web_text(rng, scene, SMALL.web_kinds) == GOLDEN_TEXT
    assert hashlib.sha256(render(scene, rng).tobytes()).hexdigest()[:16] == GOLDEN_PIXELS


def test_same_seed_same_bytes_in_another_process(tmp_path):
    write_sample(tmp_path / "here", TINY)
    code = [sys.executable, "-c", WRITE_TINY, str(tmp_path / "there"), TINY.model_dump_json()]
    subprocess.run(code, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"})
    assert file_hashes(tmp_path / "here") == file_hashes(tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "there"], "temporary files are left"


def test_another_seed_is_another_world_and_another_size_the_same_test_set(tmp_path):
    write_sample(tmp_path / "a", TINY)
    write_sample(tmp_path / "b", TINY.model_copy(update={"seed": 6}))
    write_sample(tmp_path / "c", TINY.model_copy(update={"num_web": 30}))
    a, b, c = (file_hashes(tmp_path / name) for name in "abc")
    images = [name for name in a if name.startswith("clean/")]
    assert all(a[name] == c[name] for name in images)
    assert not any(a[name] == b[name] for name in images)


def test_an_existing_folder_is_never_overwritten(tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(ValueError, match="data exists already.*--out"):
        write_sample(out, TINY)
    assert (out / "precious").read_text() == "mine"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    encode, calls = simplejpeg.encode_jpeg, []

    def fail_late(*args, **kwargs):
        calls.append(1)
        if len(calls) == 70:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(simplejpeg, "encode_jpeg", fail_late)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "data", TINY)
    assert list(tmp_path.iterdir()) == []


def test_rare_shapes_are_rare_in_the_clean_training_set_only(tmp_path):
    write_sample(tmp_path / "data", sample_config(seed=1, num_web=400, num_train=400, num_val=400, num_test=400))
    shapes: dict[str, list[str]] = {}
    for row in pq.read_table(tmp_path / "data" / "truth.parquet").to_pylist():
        shapes.setdefault(row["key"].split("-")[0], []).extend(thing.shape for thing in scene_from_json(row["scene"]).things)
    rare = {part: np.mean([shape in RARE_SHAPES for shape in names]) for part, names in shapes.items()}
    assert rare.pop("train") == pytest.approx(1.2 / 11.2, abs=0.05)  # 4 x .3 against 10 x 1
    assert all(share == pytest.approx(4 / 14, abs=0.06) for share in rare.values()) and set(rare) == {"web", "val", "test"}


def test_crawl_is_laid_out_as_img2dataset_does(data):
    """All rows in the parquet, successes only in the tar, key = shard and index, the counts in the stats."""
    pairs = members(data)
    assert len(pairs) == SMALL.num_web
    shards = sorted((data / "web").glob("*.tar"))
    assert [path.stem for path in shards] == ["00000", "00001", "00002", "00003"]
    for path in shards:
        rows = pq.read_table(path.with_suffix(".parquet")).to_pylist()
        stats = json.loads(path.with_name(f"{path.stem}_stats.json").read_text())
        counts = Counter(row["status"] for row in rows)
        assert set(counts) <= {"success", "failed_to_download", "failed_to_resize"} and counts["failed_to_download"] > 0
        assert stats["count"] == len(rows) and stats["successes"] == counts["success"]
        assert [row["key"] for row in rows] == [f"{path.stem}{index:04d}" for index in range(len(rows))]
        for row in rows:
            assert (row["key"] in pairs) == (row["status"] == "success")
            assert (row["error_message"] is None) == (row["status"] == "success")
            if row["status"] == "success":
                assert json.loads(pairs[row["key"]]["json"]) == row
                assert pairs[row["key"]]["txt"].decode() == row["caption"]
                assert (row["width"], row["height"]) == (48, 48)


def test_crawl_has_a_few_defects_and_else_good_jpegs(data):
    defects = []
    for pair in members(data).values():
        row = json.loads(pair["json"])
        if row["caption"] == "":
            defects.append("empty")
        if hashlib.sha256(pair["jpg"]).hexdigest() == row["sha256"]:
            assert simplejpeg.decode_jpeg(pair["jpg"]).shape == (48, 48, 3)
        else:
            defects.append("cut short" if pair["jpg"].startswith(b"\xff\xd8") else "error page")
            with pytest.raises(OSError):
                Image.open(io.BytesIO(pair["jpg"])).load()
    assert sorted(defects) == ["cut short", "empty", "error page"]


def test_clean_set_has_karpathys_schema(data):
    root = json.loads((data / "clean" / "dataset_karpathy.json").read_text())
    assert set(root) == {"images", "dataset"}
    assert Counter(image["split"] for image in root["images"]) == {"train": 36, "restval": 4, "val": 12, "test": 15}
    for image in root["images"]:
        assert set(image) == {"filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid"}
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]] and len(image["sentids"]) == 5
        for sentence in image["sentences"]:
            assert sentence["tokens"] == sentence["raw"].split() and sentence["imgid"] == image["imgid"]
        jpeg = (data / "clean" / image["filepath"] / image["filename"]).read_bytes()
        assert simplejpeg.decode_jpeg(jpeg).shape == (48, 48, 3)
    sentids = [sentid for image in root["images"] for sentid in image["sentids"]]
    assert len(set(sentids)) == len(sentids)


def test_truth_fits_every_image_and_text(data, truth):
    pairs = members(data)
    root = json.loads((data / "clean" / "dataset_karpathy.json").read_text())
    human = {f"{image['split'].replace('restval', 'train')}-{Path(image['filename']).stem}": image for image in root["images"]}
    assert set(truth) == {f"web-{key}" for key in pairs} | set(human)
    for key, row in truth.items():
        scene = scene_from_json(row["scene"])
        texts = [s["raw"] for s in human[key]["sentences"]] if key in human else [pairs[key.removeprefix("web-")]["txt"].decode()]
        assert (row["kind"] == "human") == (key in human)
        assert row["text_true"] == all(is_true(scene, text) for text in texts) == (row["kind"] in ("human", "clean", "terse"))


def test_truth_describes_the_picture_beside_it(data, truth):
    """The stored pixels are of the scene that truth names, within noise and JPEG."""
    for key, pair in list(members(data).items())[:40]:
        row = truth[f"web-{key}"]
        if hashlib.sha256(pair["jpg"]).hexdigest() == json.loads(pair["json"])["sha256"]:
            drawn = render(scene_from_json(row["scene"]), np.random.default_rng(0)).astype(int)
            assert np.abs(simplejpeg.decode_jpeg(pair["jpg"]) - drawn).mean() < 9


def test_nothing_that_ingest_reads_tells_the_kind_of_a_text(data):
    fields = {"caption", "url", "key", "status", "error_message", "width", "height", "original_width", "original_height", "exif", "sha256"}
    for path in (data / "web").glob("*.parquet"):
        assert set(pq.read_schema(path).names) == fields
        assert all(re.fullmatch(r"https://pictures-\d+\.example/[0-9a-f]{12}\.jpg", url) for url in pq.read_table(path)["url"].to_pylist())
    assert all(set(json.loads(pair["json"])) == fields for pair in members(data).values())
