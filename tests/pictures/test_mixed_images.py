"""JPEG, PNG and WebP side by side through the project: ingest, shards, training batches, near copies, exports."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from blip_core.compute.pixels import load_pixels
from blip_core.config.params import load_params
from blip_core.config.training import AugmentConfig
from blip_core.export.data import export
from blip_core.pictures.containers import kind_of
from blip_core.pictures.images import decode_rgb
from blip_core.tables.captions import KEPT, read_tables
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from tests.export.test_export import INGESTED
from tests.intake.test_duplicates import near, photo
from tests.pictures.test_images import encoded
from tests.stages.test_ingest import digest, quarantine, run
from tests.support.archives import karpathy_image, read_all, tar_bytes, write_karpathy

KINDS = {"jpg": ("JPEG", {}), "png": ("PNG", {}), "webp": ("WEBP", {}), "palette": ("PNG", {})}


def drawn(name: str) -> bytes:
    """A picture of its own for each name, of the kind that the name begins with."""
    kind, options = KINDS[name.split("-")[0]]
    noise = np.random.default_rng([*name.encode()]).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((52, 40), Image.Resampling.BICUBIC)
    return encoded(image.quantize(32) if name.startswith("palette") else image, kind, **options)


def named(key: str) -> str:
    """The picture's name without split and shard."""
    return "-".join(key.split("-")[-2:])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A crawl of every kind in one tar, and a clean set whose files are called .jpg whatever they are."""
    root, members = tmp_path_factory.mktemp("kinds"), []
    for name in (f"{kind}-{i}" for kind in KINDS for i in range(3)):
        members += [(f"{name}.{name.split('-')[0].replace('palette', 'png')}", drawn(name)), (f"{name}.txt", f"picture {name}".encode())]
    (root / "web").mkdir()
    (root / "web/00000.tar").write_bytes(tar_bytes(members))
    names = [f"{kind}-{9 + i}" for i, kind in enumerate([*KINDS] * 2)]
    splits = ["train"] * 4 + ["val", "test"] * 2
    write_karpathy(root / "clean", [karpathy_image(name, i, split) for i, (name, split) in enumerate(zip(names, splits, strict=True))])
    for name in names:
        (root / f"clean/images/{name}.jpg").write_bytes(drawn(name))
    return root


@pytest.fixture(scope="module")
def world(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    run(data, out)
    return out


def test_ingest_names_each_by_what_it_is(world):
    rows = read_tables(world / "g0").to_pylist()
    images, found = ShardImages(world / "shards"), {}
    for row in rows:
        data = images.bytes(row["shard"], row["key"])
        assert data == drawn(named(row["key"]))
        found[row["key"]] = kind_of(data)
    assert set(found.values()) == {"jpg", "png", "webp"}
    names = [name for tar in (world / "shards").glob("*.tar") for name in tarfile.open(tar).getnames()]
    assert {f"{key}.{kind}" for key, kind in found.items()} <= set(names)


def test_the_same_input_makes_the_same_shards(data, world, tmp_path):
    run(data, tmp_path)
    assert digest(tmp_path / "shards") == digest(world / "shards")


def test_jpeg_makes_jpegs_of_all(data, tmp_path):
    run(data, tmp_path, format="jpeg")
    names = [name for tar in (tmp_path / "shards").glob("*.tar") for name in tarfile.open(tar).getnames()]
    assert len(names) == 20 and all(name.endswith(".jpg") for name in names)


def test_copies_are_known_across_kinds(tmp_path):
    """Of held-out pictures, mirrored ones too; a shard is then written anew without them."""
    write_karpathy(tmp_path / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(("train", "val", "test"))])
    for name, kind in (("n0", "JPEG"), ("n1", "PNG"), ("n2", "WEBP")):
        (tmp_path / f"data/clean/images/{name}.jpg").write_bytes(encoded(photo(name), kind))
    crawl = {"copy.webp": (photo("n1"), "WEBP"), "other.png": (photo("x"), "PNG"), "mirror.png": (ImageOps.mirror(photo("n2")), "PNG")}
    crawl |= {"more.webp": (photo("y"), "WEBP")}
    files = [m for n, (im, kind) in crawl.items() for m in ((n, encoded(im, kind)), (f"{n.split('.')[0]}.txt", b"a text"))]
    (tmp_path / "data/web").mkdir()
    (tmp_path / "data/web/0.tar").write_bytes(tar_bytes(files))
    run(tmp_path / "data", tmp_path, near_copies=near(heldout_distance=6), max_rejected=0.9)
    dropped = {r["key"].rpartition("-")[2]: r["reason"] for r in quarantine(tmp_path)}
    assert dropped == {"copy": "heldout_near_copy", "mirror": "heldout_near_copy"}
    (tar,) = (tmp_path / "shards").glob("web-*.tar")
    assert [name.rpartition("-")[2] for name in tarfile.open(tar).getnames()] == ["other.png", "more.webp"]


def test_a_training_batch_holds_the_pixels_of_every_kind(world):
    optim = load_params(Path(__file__).parents[2] / "params.yaml").pretrain.optim
    plain = AugmentConfig(crop=(1, 1), shift=0, brightness=0, flip=False, randaugment=None)
    rows = Rows.of(world / "g0", ["web"])
    cfg = optim.model_copy(update={"batch_size": 12, "steps": 1, "augment": plain})
    options = dict(shares=batch_shares(rows, human=0, synthetic=0), cfg=cfg, image_size=32, prompt="", seed=0)
    batch = Batches(rows, ShardImages(world / "shards"), load_tokenizer(world / "tokenizer.json"), **options)[0]
    assert len(set(batch.keys)) == 12
    assert torch.equal(batch.pixels, load_pixels([decode_rgb(drawn(named(key))) for key in batch.keys], 32))


@pytest.mark.parametrize("form", INGESTED)
def test_an_export_reads_back_with_every_kind(world, tmp_path, form):
    export(world / "g0", tmp_path / "out", form=form, pictures="keep", shards=world / "shards")
    records, rejected = read_all(tmp_path / "out")
    expected = {named(row["key"]) for row in read_tables(world / "g0").to_pylist() if row["reason"] == KEPT}
    assert not rejected and {r.image for r in records} == {drawn(name) for name in expected}
    listed = json.loads((tmp_path / "out/manifest.json").read_text())["files"]
    assert not any(name.endswith((".png", ".webp", ".jpg")) for name in listed)
    if form == "parquet":
        rows = [r for p in (tmp_path / "out/data").glob("*.parquet") for r in pq.read_table(p).to_pylist()]
        assert all(r["image"]["path"].endswith(f".{kind_of(r['image']['bytes'])}") for r in rows)
