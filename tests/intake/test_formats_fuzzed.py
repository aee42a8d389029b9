"""Damaged files of every format, by seed: what comes out are records, rows set aside for a known reason, or one ValueError that names a
file. Never another exception, and never a record that is no record."""

import gzip
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.config.intake import TextLimits
from blip_core.files.rejected import REASONS, Rejected
from blip_core.intake.formats import SPLITS, Record, RejectedRow, recognise
from blip_core.texts.clean import clean_text
from tests.intake.test_salesforce import write_images, write_list
from tests.support.archives import jpeg, karpathy_image, sample, tar_bytes, write_img2dataset, write_karpathy

ROUNDS = 60
LIMITS = TextLimits(max_chars=200, rule="paper", max_words=20)
NASTY = [b"", b"null", b"-1", b"1e999", b"NaN", b"true", b"{}", b"[]", b'[["', b'"', b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b"\r"]
NASTY += [b"\n", b",", b"\t", b"9" * 400, b"[" * 3000, b'"../../x.jpg"', b'"/etc/passwd"', b"A" * 300, b"PAR1", b"\x1f\x8b", b"ustar"]


def karpathy(root: Path) -> None:
    write_karpathy(root, [karpathy_image(f"n{i}", i, ["train", "val", "test"][i % 3]) for i in range(4)])


def coco(root: Path) -> None:
    write_images(root, "train2014/a.jpg", "train2014/b.jpg")
    images = [{"id": i, "file_name": f"{n}.jpg"} for i, n in enumerate("ab")]
    notes = [{"image_id": i % 2, "id": i, "caption": f"caption {i}"} for i in range(4)]
    (root / "annotations").mkdir()
    (root / "annotations/captions_train2014.json").write_text(json.dumps({"images": images, "annotations": notes}))


def salesforce(root: Path) -> None:
    write_images(root, "a.jpg", "b.jpg")
    write_list(root / "annotation/train.json", [{"image": f"{n}.jpg", "caption": ["one", "two"], "image_id": n} for n in "ab"])


def table_csv(root: Path) -> None:
    write_images(root, "a.jpg", "b.jpg")
    (root / "c.csv").write_text('image,caption,split\na.jpg,"one, or\n so",train\nb.jpg,"[""two"", ""three""]",val\n')


def table_tsv(root: Path) -> None:
    write_images(root, "a.jpg", "b.jpg")
    (root / "Flickr8k.token.txt").write_text('a.jpg#0\tone\na.jpg#1\ttwo\nb.jpg#0\t"three"\n')
    (root / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")


def table_jsonl(root: Path) -> None:
    write_images(root, "a.jpg", "b.jpg")
    rows = [{"image": f"{n}.jpg", "captions": [{"raw": "one"}, {"raw": "two"}], "split": "test"} for n in "ab"]
    (root / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def imagefolder(root: Path) -> None:
    for split in ("train", "test"):
        write_images(root / split, "a.jpg", "b.jpg")
        pq.write_table(pa.table({"file_name": ["a.jpg", "b.jpg"], "text": ["one", "two"]}), root / split / "metadata.parquet")


def parquet(root: Path) -> None:
    rows = [{"image": {"bytes": jpeg(n, width=8, height=8), "path": f"{n}.jpg"}, "text": ["one", "two"], "split": "val"} for n in "abcd"]
    root.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet", row_group_size=2, write_page_checksum=True)


def sidecar(root: Path) -> None:
    write_images(root, "a.jpg", "sub/b.png")
    (root / "a.txt").write_text("one\ntwo\n")
    (root / "sub/b.caption").write_text("three")


def img2dataset(root: Path) -> None:
    write_img2dataset(root, "00000", ["000000000", "000000001", "000000002"], failed={"000000001": "failed_to_resize"})


def plain_tar(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "train-0.tar.gz").write_bytes(gzip.compress(tar_bytes([*sample("a"), *sample("b"), ("c.jpg", b"x"), ("c.json", b'["x"]')])))


WRITERS = (karpathy, coco, salesforce, table_csv, table_tsv, table_jsonl, imagefolder, parquet, sidecar, img2dataset, plain_tar)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """One to three wounds: bytes changed, cut out, doubled, put in, the end lost; in text also a word of it for another."""
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randint(0, len(data)) for _ in range(2))
        end = min(end, at + rng.choice((1, 8, 600)))
        put = rng.choice((rng.randbytes(rng.randint(1, 8)), rng.choice(NASTY), data[at:end] * 2, data[end:at:-1]))
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:at] + put + data[end:]
        elif kind == 1:
            data = data[:at] + put + data[at:]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:at]
        elif kind == 4 and data:
            data = bytearray(data)
            data[at % len(data)] ^= 1 << rng.randrange(8)
        else:
            words = data.split(b'"')
            words[rng.randrange(len(words))] = rng.choice(NASTY)
            data = b'"'.join(words)
    return bytes(data)


def outcome(root: Path, where: str) -> Counter:
    """What became of the folder; any other exception than a ValueError that names the folder is a failure."""
    found: Counter = Counter()
    try:
        module = recognise(root)
        items = [item for unit in module.units(root) for item in module.read(unit)]
    except ValueError as e:
        assert str(root) in str(e) and not isinstance(e, UnicodeError | json.JSONDecodeError), f"{where}: {e!r}"
        return Counter(error=1)
    for item in items:
        assert isinstance(item.key, str) and item.where and item.split in (*SPLITS, None), f"{where}: {item}"
        if isinstance(item, RejectedRow):
            assert item.reason in REASONS and isinstance(item.detail, str), f"{where}: {item}"
            found["aside"] += 1
            continue
        assert isinstance(item, Record) and isinstance(item.image, bytes), f"{where}: {item}"
        assert all(isinstance(t, str) for t in item.texts), f"{where}: {item}"
        found["bad text"] += not item.texts
        assert item.image_id is None or isinstance(item.image_id, str), f"{where}: {item}"
        for text in item.texts:
            try:
                clean_text(text, LIMITS)
            except Rejected:
                found["bad text"] += 1
        found["records"] += 1
    return found


@pytest.mark.parametrize("write", WRITERS)
def test_damage_is_told_and_costs_no_more(tmp_path, write, rounds=ROUNDS, first=0):
    whole = tmp_path / "whole"
    write(whole)
    untouched = outcome(whole, "whole")
    assert untouched["records"] >= 2 and not untouched["error"]
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and (p.suffix not in (".jpg", ".png")))
    found: Counter = Counter()
    for seed in range(first, first + rounds):
        rng = random.Random(f"{write.__name__} {seed}")
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        path = root / rng.choice(files)
        path.write_bytes(damaged(rng, path.read_bytes()))
        found += outcome(root, f"{write.__name__} {seed} {path.relative_to(root)}")
    assert found["records"] and found["aside"] + found["error"] + found["bad text"], "the damage did nothing, or all"
