"""Shards: equal bytes for equal images, whole or absent, and read by index."""

import hashlib
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from blip_core.tables import shards
from blip_core.tables.captions import write_table
from blip_core.tables.manifest import write_manifest
from blip_core.tables.shards import INDEX_SCHEMA, ShardImages, ShardWriter, index_path, read_index
from tests.support.archives import jpeg

NAMES = [f"web-{i:09d}" for i in range(7)]


def write(folder: Path, names: list[str] = NAMES, num_images: int = 3) -> None:
    with ShardWriter(folder, "web", num_images=num_images) as writer:
        for name in names:
            writer.add(name, jpeg(name), image_id=f"id-{name}", width=40, height=36)
    write_manifest(folder)


def test_shards_hold_at_most_so_many_images_and_other_tools_read_them(tmp_path):
    write(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == ["web-00000.tar", "web-00001.tar", "web-00002.tar"]
    found = {}
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert 1 <= len(members) <= 3
            assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in members)
            found |= {m.name: tar.extractfile(m).read() for m in members}
    assert found == {f"{n}.jpg": jpeg(n) for n in NAMES}


def test_equal_images_are_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 7
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_keys_of_200_characters(tmp_path):
    """Longer than a plain tar header takes."""
    key = "k" * 200
    write(tmp_path, [key, "web-1"])
    images = ShardImages(tmp_path)
    assert images.bytes("web-00000", key) == jpeg(key)
    assert images.bytes("web-00000", "web-1") == jpeg("web-1")
    with tarfile.open(tmp_path / "web-00000.tar") as tar:
        assert tar.getnames() == [f"{key}.jpg", "web-1.jpg"]


def test_the_index_tells_the_truth(tmp_path):
    write(tmp_path)
    rows = read_index(index_path(tmp_path, "web-00001")).to_pylist()
    assert [r["key"] for r in rows] == NAMES[3:6]
    tar = (tmp_path / "web-00001.tar").read_bytes()
    for row in rows:
        data = tar[row["offset"] : row["offset"] + row["size"]]
        assert data == jpeg(row["key"])
        assert (row["sha256"], row["image_id"]) == (hashlib.sha256(data).hexdigest(), f"id-{row['key']}")


def test_random_access_in_any_order(tmp_path):
    write(tmp_path)
    images = ShardImages(tmp_path)
    assert images.shards == ["web-00000", "web-00001", "web-00002"]
    for i in (6, 0, 4, 1, 6, 3):
        assert images.bytes(f"web-{i // 3:05d}", NAMES[i]) == jpeg(NAMES[i])
        assert images.size(f"web-{i // 3:05d}", NAMES[i]) == (40, 36)


def _open_shards(folder: Path) -> list[str]:
    """Those of this folder alone: a test of before may have left some of its own to the collector."""
    links = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.endswith(".tar") and Path(link).is_relative_to(folder.resolve())]


def test_few_files_are_open_however_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    write(tmp_path, num_images=1)
    images = ShardImages(tmp_path)
    for i in [*range(7), *range(7)]:
        assert images.bytes(f"web-{i:05d}", NAMES[i]) == jpeg(NAMES[i])
    assert len(_open_shards(tmp_path)) == 2


def test_few_indexes_are_held_where_few_are_wanted(tmp_path):
    write(tmp_path, num_images=1)
    images = ShardImages(tmp_path, at_once=2)
    for i in [*range(7), *range(7)]:
        assert images.bytes(f"web-{i:05d}", NAMES[i]) == jpeg(NAMES[i])
        assert len(images._indexes) <= 2


def _read(images: ShardImages) -> list[bytes]:
    return [images.bytes(f"web-{i // 3:05d}", name) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_for_themselves(tmp_path, method):
    write(tmp_path)
    images = ShardImages(tmp_path)
    expected = _read(images)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_read, [images, images]) == [expected, expected]
    assert _read(pickle.loads(pickle.dumps(images))) == expected == _read(images)


def test_errors_name_shard_and_key(tmp_path):
    write(tmp_path)
    images = ShardImages(tmp_path)
    with pytest.raises(ValueError, match="web-00000.*no image 'web-9'"):
        images.bytes("web-00000", "web-9")
    with pytest.raises(ValueError, match="no shard 'train-00000'"):
        images.bytes("train-00000", "web-9")
    with (tmp_path / "web-00000.tar").open("r+b") as f:
        f.truncate(2000)
    with pytest.raises(ValueError, match=f"web-00000.tar: image '{NAMES[2]}' should have"):
        images.bytes("web-00000", NAMES[2])
    with pytest.raises(ValueError, match="web-00000.tar: expected .* bytes"):
        ShardImages(tmp_path)


def test_an_unsealed_folder_is_refused(tmp_path):
    with ShardWriter(tmp_path, "web", num_images=3) as writer:
        writer.add("web-1", jpeg("1"), image_id="1", width=40, height=36)
    with pytest.raises(ValueError, match="no manifest"):
        ShardImages(tmp_path)


def test_another_table_is_no_index(tmp_path):
    path = index_path(tmp_path, "web-00000")
    write_table(INDEX_SCHEMA.empty_table().drop_columns(["sha256"]), path)
    with pytest.raises(ValueError, match="no index of a shard.*sha256"):
        read_index(path)


def test_an_interrupted_shard_has_no_final_name(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "web", num_images=2) as writer:
        for name in NAMES[:3]:
            writer.add(name, jpeg(name), image_id=name, width=40, height=36)
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["web-00000.index.parquet", "web-00000.tar"]
