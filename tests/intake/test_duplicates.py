"""Near copies: the fingerprint, the search for neighbours, and what ingest makes of copies of held-out and of crawled pictures."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from blip_core.config.intake import NearCopiesConfig
from blip_core.intake import duplicates
from blip_core.intake.duplicates import distances, fingerprint, firsts, near_pairs, nearest
from blip_core.tables.captions import read_tables
from blip_core.tables.shards import ShardImages, index_path, read_index
from tests.stages.test_ingest import CFG, digest, pairs, quarantine, write_data
from tests.stages.test_ingest import run as run_ingest
from tests.support.archives import jpeg, tar_bytes


def photo(name: str, width: int = 160, height: int = 120) -> Image.Image:
    """Soft shapes of all sizes, by name, as a photograph has them."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    layers = np.zeros((height, width, 3))
    for cells in (4, 8, 16, 32):
        noise = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) * 4 / cells
    return ImageOps.autocontrast(Image.fromarray((layers / 7.5).astype(np.uint8)))


def encoded(image: Image.Image, quality: int = 90, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def prints(*images: Image.Image) -> np.ndarray:
    return np.array([fingerprint(np.asarray(i)) for i in images], np.uint64)


def planted(rng: np.random.Generator, count: int, copies: int, flips: int) -> tuple[np.ndarray, np.ndarray]:
    """Random fingerprints, and copies of some with about `flips` bits flipped in each hash."""
    known = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
    near = known[rng.integers(0, count, copies)]
    for _ in range(flips):
        near = near ^ np.uint64(1) << rng.integers(0, 64, near.shape, dtype=np.uint64)
    return known, near


# the fingerprint


def test_a_copy_is_near_and_another_picture_is_far():
    for name in ("a", "b", "c"):
        image = photo(name)
        copies = [
            Image.open(io.BytesIO(encoded(image, 50))),
            image.resize((96, 72), Image.Resampling.BICUBIC),
            ImageEnhance.Brightness(image).enhance(1.1),
            image.convert("L").convert("RGB"),
        ]
        assert distances(prints(image), prints(*copies)).max() <= 6
        assert distances(prints(image), prints(photo(name + "'"), ImageOps.mirror(image), ImageOps.flip(image))).max(axis=1).min() > 16


def test_both_hashes_decide():
    """Equal in one, different in the other: no copy."""
    one, same, other = np.array([[1, 1]], np.uint64), np.array([[1, 3]], np.uint64), np.array([[1, 2**20 - 1]], np.uint64)
    assert near_pairs(one, same, distance=2).tolist() == [[0, 0]]
    assert near_pairs(one, other, distance=2).tolist() == near_pairs(one[:, ::-1], other[:, ::-1], distance=2).tolist() == []


@pytest.mark.parametrize("image", [Image.new("RGB", (50, 40), "red"), Image.new("L", (33, 90), 255).convert("RGB")])
def test_a_plain_picture_has_no_fingerprint(image):
    assert fingerprint(np.asarray(image)) is None


def test_the_fingerprint_stays_what_it_is():
    """Stored fingerprints are compared with fresh ones: another version of a library must not change them unseen."""
    assert [f"{n:016x}" for n in fingerprint(np.asarray(photo("a")))] == ["c72269d707b4a1ba", "cfd3b3ec68c2b2c2"]


# the search


@pytest.mark.parametrize("distance", [0, 1, 3, 8, 16])
def test_all_pairs_are_found_and_no_others(distance, monkeypatch):
    """As comparing all with all would find them, also when candidates come in many blocks."""
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 100)
    rng = np.random.default_rng(distance)
    known, near = planted(rng, 150, 60, distance)
    ours = np.concatenate([near, rng.integers(0, 2**64, (40, 2), dtype=np.uint64)])
    close = (distances(ours[:, None], known) <= distance).all(axis=-1)
    assert close.any() and np.array_equal(near_pairs(ours, known, distance=distance), np.argwhere(close))
    both = np.concatenate([known, near])
    within = np.tril((distances(both[:, None], both) <= distance).all(axis=-1), -1)
    assert np.array_equal(near_pairs(both, distance=distance), np.argwhere(within))


def test_the_number_of_groups_changes_nothing_but_the_work(monkeypatch):
    rng = np.random.default_rng(0)
    known, near = planted(rng, 300, 100, 5)
    found = []
    for chosen in (1, 2, 4):
        monkeypatch.setattr(duplicates, "_MOST_CHOSEN", chosen)
        monkeypatch.setattr(duplicates, "comb", lambda n, k: 1 / k)  # as many as allowed
        assert len(duplicates._masks(3, 1, 1)) == {1: 4, 2: 10, 4: 35}[chosen]
        found.append(near_pairs(near, known, distance=5).tolist())
    assert found[0] == found[1] == found[2] and len(found[0]) >= 100


def test_nothing_is_near_to_nothing():
    none, some = np.empty((0, 2), np.uint64), np.ones((3, 2), np.uint64)
    assert (
        near_pairs(none, some, distance=3).shape == near_pairs(some, none, distance=3).shape == near_pairs(none, distance=3).shape == (0, 2)
    )
    assert nearest(some, none, distance=3).tolist() == [-1] * 3 and nearest(none, some, distance=3).tolist() == []
    assert firsts(none, distance=3).tolist() == []


def test_the_nearest_is_told_and_of_equals_the_first():
    known = np.array([[0b111, 0], [0b1, 0], [0b1, 0], [2**63, 2**63]], np.uint64)
    ours = np.array([[0, 0], [0b111, 0], [2**40 - 1, 0]], np.uint64)
    assert nearest(ours, known, distance=4).tolist() == [1, 0, -1]


def test_a_copy_belongs_to_the_first_picture_and_has_no_copies_itself():
    """0 - 2 - 3 are a chain: 2 is near to 0, so 3, which is near to 2 alone, stays; 4 equals 2 and goes with it."""
    chain = np.array([[0, 0], [2**64 - 1, 7], [0b11, 0], [0b1111, 0], [0b11, 0], [2**64 - 1, 5]], np.uint64)
    assert firsts(chain, distance=2).tolist() == [0, 1, 0, 3, 0, 1]


def test_a_million_equal_pictures_are_no_million_squared_pairs():
    many = np.tile(np.array([[5, 6]], np.uint64), (1_000_000, 1))
    assert not firsts(many, distance=8).any()


# what ingest makes of it


def near(**changes) -> NearCopiesConfig:
    return NearCopiesConfig(**{"heldout_distance": None, "web": "off", "web_distance": 6} | changes)


def run(data: Path, out: Path, **changes) -> dict:
    return run_ingest(data, out, near_copies=near(**changes))


@pytest.fixture
def data(tmp_path) -> Path:
    """Small pictures of one colour, but for n0 (train), n9, n10 (val) and n15 (test), which are photographs."""
    data = write_data(tmp_path / "data")
    for name in ("n0", "n9", "n10", "n15"):
        (data / f"clean/images/{name}.jpg").write_bytes(encoded(photo(name)))
    return data


def add_web(data: Path, images: dict[str, bytes]) -> None:
    files = [m for key, image in images.items() for m in ((f"{key}.jpg", image), (f"{key}.txt", f"text of {key}".encode()))]
    (data / "web/00002.tar").write_bytes(tar_bytes(files))


def test_near_copies_of_heldout_pictures_leave_the_training_side(data, tmp_path):
    """Those of train and web go, with the key they copy; a copy of val in test, and copies of training pictures, stay."""
    add_web(
        data,
        {
            "small": encoded(photo("n15").resize((80, 60), Image.Resampling.LANCZOS), 60),
            "mirror": encoded(ImageOps.mirror(photo("n9"))),
            "bytes": encoded(photo("n9")),
            "train": encoded(photo("n0"), 60),
            "other": encoded(photo("other")),
        },
    )
    (data / "clean/images/n1.jpg").write_bytes(encoded(ImageEnhance.Brightness(photo("n15")).enhance(1.1)))
    (data / "clean/images/n14.jpg").write_bytes(encoded(photo("n10"), 60))
    before = run_ingest(data, tmp_path / "before")
    assert before["images_web"] == 24 and before["images_train"] == 8
    metrics = run(data, tmp_path, heldout_distance=8)
    found = {r["key"]: (r["reason"], r["detail"].partition(":")[0]) for r in quarantine(tmp_path) if "held" in r["reason"]}
    assert found == {
        "web-small": ("heldout_near_copy", "a near copy of test-n15"),
        "web-mirror": ("heldout_near_copy", "a near copy of the mirror image of val-n9"),
        "web-bytes": ("leaks_heldout", "the same bytes as val-n9"),
        "train-n1": ("heldout_near_copy", "a near copy of test-n15"),
    }
    assert metrics["rejected_heldout_near_copy"] == 3
    assert {name: metrics[f"images_{name}"] for name in ("web", "train", "val", "test")} == {"web": 22, "train": 7, "val": 5, "test": 3}
    assert metrics["rejected_share_clean"] == round(2 / 32, 6)
    assert not {"web-small", "web-mirror", "train-n1"} & {key for key, _ in pairs(tmp_path / "g0")}
    row = next(r for r in quarantine(tmp_path) if r["key"] == "web-small")
    assert row["where"] == "web/00002" and row["detail"].endswith("of 64 bits differ")


def test_the_check_says_that_it_found_nothing(data, tmp_path):
    assert run(data, tmp_path, heldout_distance=8)["rejected_heldout_near_copy"] == 0


def test_fingerprints_are_stored_when_somebody_looks(data, tmp_path):
    add_web(data, {"a": encoded(photo("a")), "plain": jpeg("plain"), "copy": encoded(photo("n15"), 60)})
    for folder, changes, there in ((tmp_path / "off", {}, False), (tmp_path / "on", {"heldout_distance": 8}, True)):
        run(data, folder, **changes)
        shard = read_index(index_path(folder / "shards", "web-00006"))
        rows = {r["key"]: (r["phash"], r["dhash"]) for r in shard.to_pylist()}
        assert rows["web-a"] == (fingerprint(np.asarray(Image.open(io.BytesIO(encoded(photo("a")))))) if there else (None, None))
        assert rows["web-plain"] == (None, None)
        assert ("web-copy" in rows) == (not there)


COPIES = {
    "a": encoded(photo("a")),
    "b": encoded(photo("b")),
    "a_small": encoded(photo("a").resize((96, 72), Image.Resampling.LANCZOS)),
    "a_again": encoded(photo("a")),
    "a_small_again": encoded(photo("a").resize((96, 72), Image.Resampling.LANCZOS)),
    "b_q50": encoded(photo("b"), 50),
}


def image_ids(folder: Path) -> dict[str, str]:
    return {r["key"]: r["image_id"] for r in read_tables(folder / "g0").to_pylist() if r["source"] == "web"}


def test_near_copies_in_the_crawl_stay_when_nobody_asks(data, tmp_path):
    add_web(data, COPIES)
    metrics = run(data, tmp_path, heldout_distance=4)
    ids = image_ids(tmp_path)
    assert metrics["images_web"] == 26 and len({ids[f"web-{key}"] for key in COPIES}) == 4


def test_marked_near_copies_are_one_picture_with_all_its_texts(data, tmp_path):
    """One identity in the table and in the shard; no text and no byte is lost."""
    add_web(data, COPIES)
    before, ids_before = run(data, tmp_path / "off"), image_ids(tmp_path / "off")
    metrics, ids = run(data, tmp_path / "mark", web="mark"), image_ids(tmp_path / "mark")
    assert metrics == before | {"marked_near_copy": 3}
    expected = {f"web-{key}": ids_before[f"web-{key[0]}"] for key in COPIES}
    assert ids == ids_before | expected
    assert pairs(tmp_path / "mark/g0") == pairs(tmp_path / "off/g0")
    images = ShardImages(tmp_path / "mark/shards")
    for stem in (s for s in images.shards if s.startswith("web")):
        index = read_index(index_path(tmp_path / "mark/shards", stem)).to_pylist()
        assert {r["key"]: r["image_id"] for r in index}.items() <= ids.items()
        for row in index:
            assert hashlib.sha256(images.bytes(stem, row["key"])).hexdigest() == row["sha256"]


def test_dropped_near_copies_leave_and_equal_bytes_stay(data, tmp_path):
    """Of each picture the first stays, with whatever has the same bytes; dropping is a choice, and no fault of the data."""
    add_web(data, COPIES)
    metrics = run(data, tmp_path, web="drop")
    assert {k for k, _ in pairs(tmp_path / "g0")} >= {"web-a", "web-a_again", "web-b"}
    gone = {r["key"]: r["detail"].partition(":")[0] for r in quarantine(tmp_path) if r["reason"] == "near_copy"}
    assert gone == {
        "web-a_small": "a near copy of web-a",
        "web-a_small_again": "a near copy of web-a",
        "web-b_q50": "a near copy of web-b",
    }
    assert metrics["rejected_near_copy"] == 3 and metrics["images_web"] == 23
    assert metrics["rejected_share_web"] == round(2 / 25, 6)  # the two failed downloads


def test_a_copy_whose_original_is_held_out_does_not_stand_for_others(data, tmp_path):
    """Both copies of a test picture go as such; neither is told as a copy of the other."""
    add_web(data, {"x": encoded(photo("n15"), 60), "y": encoded(photo("n15"), 50)})
    run(data, tmp_path, heldout_distance=6, web="drop")
    assert {r["key"]: r["reason"] for r in quarantine(tmp_path) if "copy" in r["reason"]} == dict.fromkeys(
        ["web-x", "web-y"], "heldout_near_copy"
    )


@pytest.mark.parametrize("web", ["mark", "drop"])
def test_the_choice_does_not_depend_on_processes(data, tmp_path, monkeypatch, web):
    """Copies in different units, read by one process or by two."""
    for shard in range(3, 9):
        copies = [(f"c{shard}.jpg", encoded(photo("a"), 40 + 5 * shard)), (f"c{shard}.txt", b"a copy")]
        (data / f"web/{shard:05d}.tar").write_bytes(tar_bytes(copies))
    found = []
    for cores in ("1", "2"):
        monkeypatch.setenv("BLIP_CORES", cores)
        metrics = run(data, tmp_path / cores, web=web, heldout_distance=4)
        found.append(digest(tmp_path / cores))
    assert found[0] == found[1] and metrics["marked_near_copy" if web == "mark" else "rejected_near_copy"] == 5
    assert json.loads((tmp_path / "1/metrics.json").read_text()) == metrics


def test_off_is_a_word(data):
    """YAML reads an unquoted off as false."""
    assert NearCopiesConfig(heldout_distance=None, web=False, web_distance=6).web == "off"
    assert not CFG.near_copies.look and near(web="mark").look and near(heldout_distance=0).look
