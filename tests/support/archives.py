"""Small pictures, tars and crawls for the tests of formats and ingest. A picture's colour is a hash of its name, so mix-ups show."""

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from blip_core.files.rejected import REASONS
from blip_core.intake.formats import Record, RejectedRow, recognise


def jpeg(name: str, *, width: int = 40, height: int = 36) -> bytes:
    """A picture of one colour, by name."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour(name)
    return simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444")


def colour(name: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:3], np.uint8)


def tar_bytes(files: Iterable[tuple[str, bytes | tarfile.TarInfo]], *, fmt: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of these members; a TarInfo in place of data is a link or device."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for name, data in files:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name, info.size = name, 0 if data is info else len(data)
            tar.addfile(info, None if data is info else io.BytesIO(data))
    return buffer.getvalue()


def sample(key: str, text: str | None = None) -> list[tuple[str, bytes]]:
    """The members of one sample: its text names its picture."""
    return [(f"{key}.jpg", jpeg(key)), (f"{key}.txt", (f"picture {key}" if text is None else text).encode())]


def write_img2dataset(folder: Path, stem: str, keys: list[str], *, failed: dict[str, str] | None = None, lost: Iterable[str] = ()) -> None:
    """One shard as img2dataset leaves it. `failed`: key -> status; `lost`: successes that the tar lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = failed or {}
    files = []
    for key in keys:
        if key not in failed and key not in lost:
            meta = {"caption": f"picture {key}", "key": key, "status": "success", "url": "http://a.example/1.jpg"}
            files += [*sample(key), (f"{key}.json", json.dumps(meta).encode())]
    (folder / f"{stem}.tar").write_bytes(tar_bytes(files))
    rows = [
        {"caption": f"picture {k}", "key": k, "status": failed.get(k, "success"), "error_message": f"{k} is gone" if k in failed else None}
        for k in keys
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{stem}.parquet")
    (folder / f"{stem}_stats.json").write_text(json.dumps({"count": len(keys), "successes": len(keys) - len(failed)}))


def karpathy_image(name: str, number: int, split: str, *, texts: int = 2, **more) -> dict:
    sentences = [{"raw": f"caption {i} of {name}", "tokens": ["caption", str(i)], "sentid": number * 5 + i} for i in range(texts)]
    return {"filename": f"{name}.jpg", "imgid": number, "split": split, "sentences": sentences, **more}


def write_karpathy(folder: Path, images: list[dict], *, name: str = "dataset_karpathy.json", place: str = "images") -> None:
    """A list in Karpathy's format, and the pictures below `place`."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"images": images, "dataset": "test"}))
    for image in images:
        path = folder / place / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(Path(image["filename"]).stem))


def read_all(path: Path) -> tuple[list[Record], list[RejectedRow]]:
    """Every unit, after a trip through pickle as on the way to another process."""
    module = recognise(path)
    items = [item for unit in module.units(path) for item in module.read(pickle.loads(pickle.dumps(unit)))]
    rejected = [i for i in items if isinstance(i, RejectedRow)]
    assert {r.reason for r in rejected} <= REASONS.keys()
    return [i for i in items if isinstance(i, Record)], rejected
