"""Write the built-in sample world as files in the formats that users bring: a crawl by img2dataset and a clean set in Karpathy's JSON.

Each image has its own random generator, by (seed, part, number): changing the size of one part leaves the others as they are.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.config.sample import SampleConfig
from blip_core.files.content import write_json
from blip_core.files.tars import add_sample
from blip_core.sample.files import jpeg, whole_folder
from blip_core.sample.languages import LANGUAGES, Language
from blip_core.sample.scene_texts import human_captions, is_true, web_text
from blip_core.sample.scenes import IMAGE_SIDE, Scene, draw_scene, render, scene_to_json
from blip_core.tables.captions import write_table

PARTS = ("web", "train", "val", "test")  # the order numbers the random generators
SHARD_IMAGES = 4000
MIN_SHARDS = 4
RARE_WEIGHT = 0.3  # of box, boat, flower and moon in the clean training set; val, test and web show all shapes alike
RESTVAL_EVERY = 10  # one of so many training images is declared restval, which a reader of Karpathy's files must join to train
FAILED_SHARE = 0.05  # rows of the crawl without an image
DEFECT_SHARE = 0.002  # pairs of the crawl that no ingest can use
FAILURES = (
    ("failed_to_download", "HTTP Error 404: Not Found"),
    ("failed_to_download", "HTTP Error 403: Forbidden"),
    ("failed_to_download", "<urlopen error timed out>"),
    ("failed_to_resize", "Image decoding error"),
)

ROW_SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)
TRUTH_SCHEMA = pa.schema([("key", pa.string()), ("kind", pa.string()), ("text_true", pa.bool_()), ("scene", pa.string())])


@dataclass(frozen=True)
class _WebPair:
    scene: Scene
    kind: str
    text: str
    jpeg: bytes
    sha256: str  # of the picture as it was downloaded: a defect came later
    url: str


def write_sample(out: Path, cfg: SampleConfig) -> None:
    """Write `out`/web, `out`/clean and `out`/truth.parquet; `out` appears whole, by rename. One seed, the same bytes everywhere.

    truth.parquet says for each image, by the key that ingest gives it, what kind of text it has, whether that is true, and its
    scene. It is for reports and tests; nothing else may read it."""
    with whole_folder(out) as temporary:
        truth = _write_web(temporary / "web", cfg) + _write_clean(temporary / "clean", cfg)
        write_table(pa.Table.from_pylist(truth, TRUTH_SCHEMA), temporary / "truth.parquet")


def _generator(cfg: SampleConfig, part: str, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([cfg.seed, PARTS.index(part), number]))


def _write_web(folder: Path, cfg: SampleConfig) -> list[dict[str, Any]]:
    """Shards as img2dataset writes them; its statistics without the times. Returns rows of TRUTH_SCHEMA."""
    folder.mkdir(parents=True)
    num_shards = min(cfg.num_web, max(MIN_SHARDS, -(-cfg.num_web // SHARD_IMAGES)))
    bounds = [cfg.num_web * shard // num_shards for shard in range(num_shards + 1)]
    truth = []
    for shard in range(num_shards):
        rows = []
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, pair in _web_rows(cfg, shard, range(bounds[shard], bounds[shard + 1])):
                rows.append(row)
                if pair:
                    _add_pair(tar, row, pair)
                    truth.append(_truth(f"web-{row['key']}", pair.kind, is_true(pair.scene, pair.text), pair.scene))
        write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / f"{shard:05d}.parquet")
        write_json(_stats(rows), folder / f"{shard:05d}_stats.json")
    return truth


def _web_rows(cfg: SampleConfig, shard: int, numbers: range) -> Iterator[tuple[dict[str, Any], _WebPair | None]]:
    """The shard's rows in order, with the pair where the download went well."""
    index = 0
    for number in numbers:
        rng = _generator(cfg, "web", number)
        while rng.random() < FAILED_SHARE:
            yield _failed_row(rng, f"{shard:05d}{index:04d}", cfg), None
            index += 1
        pair = _web_pair(rng, cfg)
        yield _row(f"{shard:05d}{index:04d}", pair), pair
        index += 1


def _web_pair(rng: np.random.Generator, cfg: SampleConfig) -> _WebPair:
    scene = draw_scene(rng)
    kind, text = web_text(rng, scene, cfg.web_kinds, LANGUAGES[cfg.language])
    encoded = jpeg(render(scene, rng))
    pair = _WebPair(scene, kind, text, encoded, hashlib.sha256(encoded).hexdigest(), _url(rng))
    return _spoilt(rng, pair) if rng.random() < DEFECT_SHARE else pair


def _spoilt(rng: np.random.Generator, pair: _WebPair) -> _WebPair:
    """What real crawls hold: a file cut short, an error page in place of a picture, no alt text."""
    defect = rng.integers(3)
    if defect == 2:
        return replace(pair, kind="empty", text="")
    broken = pair.jpeg[: len(pair.jpeg) // 2] if defect == 0 else b"<html><body>403 Forbidden</body></html>\n"
    return replace(pair, jpeg=broken)


def _url(rng: np.random.Generator) -> str:
    return f"https://pictures-{rng.integers(40)}.example/{rng.integers(1 << 48):012x}.jpg"


def _row(key: str, pair: _WebPair) -> dict[str, Any]:
    sides = dict.fromkeys(("width", "height", "original_width", "original_height"), IMAGE_SIDE)
    return {
        "caption": pair.text,
        "url": pair.url,
        "key": key,
        "status": "success",
        "error_message": None,
        **sides,
        "exif": "{}",
        "sha256": pair.sha256,
    }


def _failed_row(rng: np.random.Generator, key: str, cfg: SampleConfig) -> dict[str, Any]:
    _, text = web_text(rng, draw_scene(rng), cfg.web_kinds, LANGUAGES[cfg.language])
    status, message = FAILURES[rng.integers(len(FAILURES))]
    return {"caption": text, "url": _url(rng), "key": key, "status": status, "error_message": message}


def _stats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by_status = Counter(row["status"] for row in rows)
    return {
        "count": len(rows),
        "successes": by_status["success"],
        "failed_to_download": by_status["failed_to_download"],
        "failed_to_resize": by_status["failed_to_resize"],
        "status_dict": dict(Counter(row["error_message"] or row["status"] for row in rows)),
    }


def _add_pair(tar: tarfile.TarFile, row: dict[str, Any], pair: _WebPair) -> None:
    """The members in img2dataset's order."""
    add_sample(tar, row["key"], {"jpg": pair.jpeg, "txt": pair.text.encode(), "json": json.dumps(row, indent=4).encode()})


def _truth(key: str, kind: str, text_true: bool, scene: Scene) -> dict[str, Any]:
    return {"key": key, "kind": kind, "text_true": text_true, "scene": scene_to_json(scene)}


def _write_clean(folder: Path, cfg: SampleConfig) -> list[dict[str, Any]]:
    """The clean set in the schema of Karpathy's dataset_coco.json. Returns rows of TRUTH_SCHEMA."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    truth, language = [], LANGUAGES[cfg.language]
    for part, num in (("train", cfg.num_train), ("val", cfg.num_val), ("test", cfg.num_test)):
        for number in range(num):
            rng = _generator(cfg, part, number)
            scene = draw_scene(rng, rare_weight=RARE_WEIGHT if part == "train" else 1.0)
            captions = human_captions(rng, scene, language)
            split = "restval" if part == "train" and number % RESTVAL_EVERY == RESTVAL_EVERY - 1 else part
            image = _karpathy_image(len(images), split, captions, language)
            images.append(image)
            (folder / "images" / image["filename"]).write_bytes(jpeg(render(scene, rng)))
            truth.append(_truth(f"{part}-{Path(image['filename']).stem}", "human", all(is_true(scene, c) for c in captions), scene))
    write_json({"images": images, "dataset": "sample"}, folder / "dataset_karpathy.json")
    return truth


def _karpathy_image(imgid: int, split: str, captions: list[str], language: Language) -> dict[str, Any]:
    sentids = range(imgid * len(captions), (imgid + 1) * len(captions))
    sentences = [
        {"tokens": language.tokens(caption), "raw": caption, "imgid": imgid, "sentid": sentid}
        for sentid, caption in zip(sentids, captions, strict=True)
    ]
    return {
        "filepath": "images",
        "sentids": list(sentids),
        "filename": f"{imgid:06d}.jpg",
        "imgid": imgid,
        "split": split,
        "sentences": sentences,
        "cocoid": 100000 + imgid,
    }
