"""Exported data sets in the libraries that they are for, by the very lines of their cards, and in our own ingest: every row is equal."""

import io
import json
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from blip_core.export.data import export
from blip_core.pictures.containers import KINDS, kind_of
from blip_core.pictures.images import decode_rgb
from blip_core.tables.captions import KEPT, caption_table, read_table, read_tables, table_paths, write_table
from blip_core.tables.manifest import read_manifest, write_manifest
from blip_core.tables.shards import ShardImages
from tests.export.test_export import INGESTED
from tests.stages.test_ingest import SPLITS, run
from tests.support.archives import colour, jpeg, karpathy_image, tar_bytes, write_karpathy

NUM_WEB = 14
TEXTS = [
    '["a dog", "a cat"]',
    "['a dog', 'a cat']",
    'a "red" sign, 100%',
    "null",
    "nan",
    "水の上の犬 🐕",
    "=1+1",
    "a\\b",
    "{} [0]",
    "true",
    "7",
]
GENERATIONS = ("generations/g1", "heldout")
Rows = dict[str, list[tuple[str, str]]]  # key of the image -> text and source of each of its texts


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """A crawl of every kind of image and hard texts. Each column of scores is null in the train split; among those of the crawl the seed
    is null in the first shards, a screen in all, and no image has all its texts kept."""
    root = tmp_path_factory.mktemp("loaders")
    members = [m for i in range(NUM_WEB) for m in web_sample(i)]
    (root / "data/web").mkdir(parents=True)
    (root / "data/web/0.tar").write_bytes(tar_bytes(members))
    write_karpathy(root / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(SPLITS)])
    a = root / "artifacts"
    run(root / "data", a, shard_images=6)
    for path in table_paths(a / "g0"):
        rows = [grown for row in read_table(path).to_pylist() for grown in judged(row)]
        write_table(caption_table(rows), a / "generations/g1" / path.name)
    write_manifest(a / "generations/g1")
    tables = [*table_paths(a / "generations/g1"), *table_paths(a / "heldout")]
    for path in tables:  # the same by origin, for ingest
        write_table(read_table(path), a / ("crawl" if path.name.startswith("web") else "clean") / path.name)
    for folder in ("crawl", "clean"):
        write_manifest(a / folder)
    return a


def web_sample(i: int) -> list[tuple[str, bytes]]:
    """What loaders learn of the fields by the first pictures is not all: those of the others have more."""
    told = {"url": f"http://{i}", "punsafe": i / 10 if i % 2 else None, "tags": [i]}
    fields = [(f"w{i:02d}.json", json.dumps(told).encode())] if i > 5 else []
    return [(f"w{i:02d}.{KINDS[i % 3]}", drawn(f"w{i:02d}")), (f"w{i:02d}.txt", b"a text"), *fields]


def drawn(name: str) -> bytes:
    """A picture of one colour, of the kind that its number says."""
    kind = KINDS[int(name[1:]) % 3]
    if kind == "jpg":
        return jpeg(name)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 36), tuple(map(int, colour(name)))).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def judged(row: dict) -> list[dict]:
    if row["source"] == "human":
        return [row]
    number = int(row["key"][-2:])
    web = {**row, "text": TEXTS[number % len(TEXTS)], "itm": 0.5, "match": 0.25, "filter": "f" * 16, "reason": KEPT}
    made = {**web, "text": f"made for {number}", "source": "synthetic", "round": "r1", "seed": 7 if number > 5 else None, "markup": False}
    return [web, made, {**made, "candidate": 1, "text": f"dropped {number}", "reason": "outranked"}]


def named(pixels: np.ndarray) -> str:
    """The picture that these pixels show, [height, width, 3] of 0..255; JPEG may have changed the colour by a little."""
    names = [f"w{i:02d}" for i in range(NUM_WEB)] + [f"n{i}" for i in range(len(SPLITS))]
    far = [np.abs(pixels.reshape(-1, 3).mean(0) - colour(name)).max() for name in names]
    assert pixels.shape == (36, 40, 3) and min(far) < 4
    return names[int(np.argmin(far))]


def expected(generation: Path, *, everything: bool = False) -> dict[str, Rows]:
    """For each split."""
    parts: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
    for row in read_tables(generation).to_pylist():
        if everything or row["reason"] == KEPT:
            parts[row["shard"].rpartition("-")[0]][row["key"]].append((row["text"], row["source"]))
    return parts


def opened(folder: Path, library: str, monkeypatch) -> dict:
    """What the card's block for this library gives, run as it stands."""
    monkeypatch.chdir(folder.parent)
    block = re.search(rf"^With {library}:\n\n```python\n(.*?)```$", (folder / "README.md").read_text(), re.M | re.S)
    space: dict = {}
    exec(block[1], space)
    return space["parts"]


@pytest.fixture
def datasets(tmp_path, monkeypatch) -> ModuleType:
    library = pytest.importorskip("datasets", reason="Hugging Face's datasets comes with pip install -e '.[test]'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache/downloads")
    return library


def hugging_face_rows(part) -> Rows:
    rows = {}
    for row in part:
        if "json" in part.features:
            facts, image = row["json"], row["jpg"]
            texts = [(c["text"], c["source"]) for c in json.loads(facts["candidates"])]
            assert facts["caption"] == [text for text, _ in texts] and row["txt"] in facts["caption"]
        else:
            facts, image = row, row["image"]
            texts = list(zip(facts["captions"], facts["caption_source"], strict=True))
        assert facts["key"].endswith(named(np.array(image.convert("RGB"))))
        number = int(facts["key"][-2:]) if facts["key"].startswith("web") else 0
        told = (f"http://{number}", number / 10 if number % 2 else None, f"[{number}]") if number > 5 else (None, None, None)
        assert told == tuple(facts.get(name) for name in ("url", "punsafe", "tags"))
        rows[facts["key"]] = texts
    return rows


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("form", ["webdataset", "imagefolder", "parquet"])
def test_hugging_face(datasets, artifacts, tmp_path, monkeypatch, form, generation, everything):
    export(artifacts / generation, tmp_path / "my set", form=form, everything=everything)
    parts = opened(tmp_path / "my set", "datasets", monkeypatch)
    assert {split: hugging_face_rows(part) for split, part in parts.items()} == expected(artifacts / generation, everything=everything)
    first, *others = [part.features for part in parts.values()]
    assert all(features == first for features in others)
    by_name = datasets.load_dataset(form, data_dir=str(tmp_path / "my set"))
    assert sum(part.num_rows for part in by_name.values()) == sum(part.num_rows for part in parts.values())
    if form == "webdataset":  # without the card its loader passes over what the first samples lack
        assert all(part.features["json"].items() <= first["json"].items() for part in by_name.values())
    else:
        assert all(part.features == first for part in by_name.values())


def test_exports_of_two_generations_go_together(datasets, artifacts, tmp_path, monkeypatch):
    found = []
    for generation in GENERATIONS:
        export(artifacts / generation, tmp_path / generation, form="parquet", everything=True)
        found += opened(tmp_path / generation, "datasets", monkeypatch).values()
    assert datasets.concatenate_datasets(found).num_rows == NUM_WEB + len(SPLITS)


@pytest.mark.parametrize("images", ["jpg", "keep"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_webdataset(artifacts, tmp_path, monkeypatch, generation, images):
    library = pytest.importorskip("webdataset", reason="webdataset comes with pip install -e '.[test]'")
    export(artifacts / generation, tmp_path / "out", form="webdataset", pictures=images)
    found: dict[str, Rows] = {}
    for split, part in opened(tmp_path / "out", "webdataset", monkeypatch).items():
        assert isinstance(part, library.WebDataset)
        found[split] = {s["json"]["key"]: [(c["text"], c["source"]) for c in json.loads(s["json"]["candidates"])] for s in part}
        # as open_clip asks for images and texts
        pairs = part.rename(image="jpg;png;jpeg;webp", text="txt").to_tuple("image", "text", "json")
        for image, text, facts in pairs:
            assert facts["key"].endswith(named(np.array(image))) and text == facts["caption"][0]
    assert found == expected(artifacts / generation)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pycocotools(artifacts, tmp_path, monkeypatch, generation):
    pytest.importorskip("pycocotools", reason="pycocotools comes with pip install -e '.[test]'")
    export(artifacts / generation, tmp_path / "out", form="coco")
    parts = opened(tmp_path / "out", "pycocotools", monkeypatch)
    found: dict[str, Rows] = {split: {} for split in parts}
    for split, part in parts.items():
        assert sorted(part.imgToAnns) == sorted(part.imgs) == part.getImgIds()
        for number, image in part.imgs.items():
            assert named(decode_rgb((tmp_path / "out/images" / image["file_name"]).read_bytes())) == image["key"].rpartition("-")[2]
            found[split][image["key"]] = [(note["caption"], note["source"]) for note in part.loadAnns(part.getAnnIds([number]))]
    assert found == expected(artifacts / generation)
    for table in ("imgs", "anns"):
        numbers = [number for part in parts.values() for number in getattr(part, table)]
        assert len(set(numbers)) == len(numbers) and all(type(number) is int for number in numbers)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_lists_of_the_public_code(artifacts, tmp_path, monkeypatch, generation):
    """Training lists have a text in each entry, held-out ones a list of texts; the public code strips a text before it trains on it."""
    export(artifacts / generation, tmp_path / "out", form="salesforce")
    parts = opened(tmp_path / "out", "Python alone", monkeypatch)
    found: dict[str, Rows] = {split: defaultdict(list) for split in parts}
    for split, part in parts.items():
        for entry in part:
            key = Path(entry["image"]).stem
            assert named(decode_rgb((tmp_path / "out/images" / entry["image"]).read_bytes())) == key.rpartition("-")[2]
            captions = entry["caption"] if split in ("val", "test") else [entry["caption"]]
            found[split][key] += [(caption, entry.get("source", "human")) for caption in captions]
    assert found == expected(artifacts / generation)


@pytest.mark.parametrize("form", INGESTED)
def test_ingest(artifacts, tmp_path, form):
    """What was a crawl and a clean set, picture by picture and text by text."""
    for folder, part in (("crawl", "web"), ("clean", "clean")):
        export(artifacts / folder, tmp_path / "data" / part, form=form)
    run(tmp_path / "data", tmp_path / "again", max_rejected=0.0)
    images, found = ShardImages(tmp_path / "again/shards"), defaultdict(lambda: defaultdict(set))
    for row in (row for folder in ("g0", "heldout") for row in read_tables(tmp_path / "again" / folder).to_pylist()):
        picture = named(decode_rgb(images.bytes(row["shard"], row["key"])))
        found[row["shard"].rpartition("-")[0]][picture].add(row["text"])
    before = expected(artifacts / "crawl") | expected(artifacts / "clean")
    assert found == {
        split: {key.rpartition("-")[2]: {text for text, _ in texts} for key, texts in part.items()} for split, part in before.items()
    }


def test_images_of_one_kind(artifacts, tmp_path):
    """Only where they were asked for, or loaders need them; manifest and card count what was encoded anew."""
    encoded = {}
    for form, images in (("webdataset", None), ("webdataset", "keep"), ("parquet", None), ("parquet", "jpg")):
        out = tmp_path / f"{form}-{images}"
        encoded[form, images] = export(artifacts / "generations/g1", out, form=form, pictures=images)["encoded_anew"]
        assert read_manifest(out)["encoded_anew"] == encoded[form, images]
        assert ("were PNG or WebP" in (out / "README.md").read_text()) == bool(encoded[form, images])
    stored = ShardImages(artifacts / "shards")
    rows = read_tables(artifacts / "generations/g1", ["key"]).to_pylist()
    others = {row["key"] for row in rows if kind_of(stored.bytes(row["shard"], row["key"])) != "jpg"}
    assert len(others) == 9
    assert encoded == {("webdataset", None): 9, ("webdataset", "keep"): 0, ("parquet", None): 0, ("parquet", "jpg"): 9}
    mixed = (tmp_path / "webdataset-keep/README.md").read_text()
    assert "--images jpg" in mixed and "load_dataset" not in mixed
