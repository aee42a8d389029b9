"""Lists of the public BLIP code, and texts beside their images."""

import json
from collections import Counter
from pathlib import Path

import pytest

from blip_core.intake.formats import recognise, salesforce, sidecar
from tests.support.archives import jpeg, karpathy_image, read_all, write_karpathy


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(Path(name).stem))


def write_list(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def test_coco_as_the_public_code_has_it(tmp_path):
    """A caption a row in train, a list of five in val and test; image_id is text in one mirror and a number in another."""
    names = [f"val2014/COCO_val2014_{i:012d}.jpg" for i in range(6)]
    write_images(tmp_path / "images", *names)
    train = [
        {"caption": f"caption {c} of {i}", "image": names[i], "image_id": f"coco_{i}" if c else i, "instance_id": str(c)}
        for c in range(5)
        for i in range(3)
    ]
    write_list(tmp_path / "annotation/coco_karpathy_train.json", train)
    for split, i in (("val", 3), ("test", 4)):
        write_list(tmp_path / f"annotation/coco_karpathy_{split}.json", [{"image": names[i], "caption": [f"{c} of {i}" for c in range(5)]}])
    # pycocotools' references lie there too, and are no data set
    truth = {"images": [{"id": 3}], "annotations": [{"image_id": 3, "id": 1, "caption": "x"}]}
    (tmp_path / "annotation/coco_karpathy_val_gt.json").write_text(json.dumps(truth))
    assert recognise(tmp_path) is salesforce
    records, rejected = read_all(tmp_path)
    assert not rejected
    assert Counter(r.split for r in records) == {"train": 3, "val": 1, "test": 1}
    found = {r.key: r for r in records}
    assert sorted(found) == [Path(n).stem for n in names[:5]]
    assert all(r.image == jpeg(r.key) and len(r.texts) == 5 for r in records)
    assert found["COCO_val2014_000000000001"].texts == tuple(f"caption {c} of 1" for c in range(5))
    assert found["COCO_val2014_000000000001"].where == "coco_karpathy_train.json:[1]"


def test_pretraining_list_with_the_paths_of_another_machine(tmp_path):
    write_images(tmp_path, "vg/VG_100K/2.jpg", "images/coco/2.jpg", "3.jpg")
    rows = [
        {"image": "/export/home/vision/vg/VG_100K/2.jpg", "caption": "a cat"},
        {"image": "C:\\data\\coco\\2.jpg", "caption": "a dog"},
        {"image": "/export/home/other/3.jpg", "caption": "a bare name could be another picture's"},
    ]
    write_list(tmp_path / "ccs_synthetic_filtered.json", rows)
    records, rejected = read_all(tmp_path)
    assert [(r.texts, r.split, r.image) for r in records] == [(("a cat",), None, jpeg("2")), (("a dog",), None, jpeg("2"))]
    assert len({r.key for r in records}) == len({r.image_id for r in records}) == 2
    assert [r.reason for r in rejected] == ["missing_image"]


def test_names_that_are_not_of_coco(tmp_path):
    """The public evaluation makes a number of each name and falls on these."""
    names = ["IMG 2231 (1).JPG", "水/煮.png", "flickr30k-images/1000092795.jpg", "x" * 150 + ".jpg"]
    write_images(tmp_path, *names)
    write_list(tmp_path / "test.json", [{"image": n, "caption": ["Ein Café", "水煮牛肉 🥘"]} for n in names])
    records, rejected = read_all(tmp_path)
    assert not rejected and len({r.key for r in records}) == 4
    assert {r.texts for r in records} == {("Ein Café", "水煮牛肉 🥘")} and {r.split for r in records} == {"test"}


def test_bad_rows(tmp_path):
    write_images(tmp_path, "a.jpg")
    rows = [
        {"image": "a.jpg", "caption": "good"},
        {"url": "http://a.example/1.jpg", "caption": "only a URL"},
        {"image": "http://a.example/1.jpg", "caption": "x"},
        {"image": "gone.jpg", "caption": "x"},
        {"image": "../../etc/passwd", "caption": "x"},
        {"image": "a.jpg", "caption": 7},
        {"image": "a.jpg", "caption": True},
        {"image": "a.jpg", "caption": ["x", 3]},
        {"image": "a.jpg"},
        {"image": 5, "caption": "x"},
        {"image": "b.jpg", "caption": None},
        {"image": "a.jpg", "caption": "x", "split": "holiday"},
        {"image": "\ud800\0.jpg", "caption": "x"},
        "text",
        None,
    ]
    write_list(tmp_path / "train.json", rows)
    (record,), rejected = read_all(tmp_path)
    assert record.texts == ("good",)
    assert {int(r.where.partition("[")[2][:-1]): r.reason for r in rejected} == {
        **{1: "missing_image", 2: "missing_image", 3: "missing_image", 4: "unsafe_key", 5: "bad_row", 6: "bad_row", 7: "bad_row"},
        **{8: "bad_row", 9: "bad_row", 10: "missing_image", 11: "unknown_split", 12: "missing_image", 13: "bad_row", 14: "bad_row"},
    }
    assert "blip fetch" in next(r.detail for r in rejected if r.where.endswith("[1]"))


def test_a_path_of_many_folders_costs_nothing(tmp_path):
    write_images(tmp_path, "a.jpg")
    write_list(tmp_path / "train.json", [{"image": "a.jpg", "caption": "x"}, {"image": "/a" * 100_000 + ".jpg", "caption": "x"}])
    records, rejected = read_all(tmp_path)
    assert len(records) == 1 and [r.reason for r in rejected] == ["missing_image"] and len(rejected[0].detail) < 1000


def test_bytes_that_are_no_utf8_cost_their_text_alone(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.json").write_bytes(b'[{"image": "a.jpg", "caption": "caf\xe9"}, {"image": "b.jpg", "caption": "caf\xc3\xa9"}]')
    records, rejected = read_all(tmp_path)
    assert [r.texts for r in records] == [("caf\udce9",), ("café",)] and not rejected  # ingest sets the first aside as bad_encoding


def test_byte_order_mark_and_broken_json(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "train.json").write_bytes(b'\xef\xbb\xbf[{"image": "a.jpg",\r\n "caption": "x"}]')
    (record,), _ = read_all(tmp_path)
    assert record.texts == ("x",)
    (tmp_path / "train.json").write_text('[{"image": "a.jpg",\n "caption": "x"},')
    with pytest.raises(ValueError, match="train.json: not valid JSON.*line 2"):
        salesforce.units(tmp_path)


def test_flickr_splits_of_karpathy_are_still_karpathys(tmp_path):
    for name, numbers in (("dataset_flickr30k.json", range(2)), ("dataset_flickr8k.json", range(2, 4))):
        images = [karpathy_image(f"n{i}", i, ["train", "test"][i % 2], texts=5) for i in numbers]
        write_karpathy(tmp_path, images, name=name, place="flickr30k-images" if "30k" in name else "images")
    (tmp_path / "flickr30k-images").rename(tmp_path / "moved")
    for image in (tmp_path / "moved").iterdir():
        image.rename(tmp_path / image.name)
    records, rejected = read_all(tmp_path)
    assert len(records) == 4 and not rejected and all(len(r.texts) == 5 for r in records)


# a text beside each image


def test_texts_beside_images(tmp_path):
    write_images(tmp_path, "10_dog/a.jpg", "10_dog/b.PNG", "val/c.webp", "d.jpeg", "e.jpg", "f.jpg", "f.png", "g.jpg", "h.jpg")
    texts = {"10_dog/a.txt": b"\xef\xbb\xbfa dog\r\n\r\na brown dog\r\n", "10_dog/b.TXT": "Hündchen".encode(), "val/c.caption": b"a cat"}
    texts |= {"d.txt": b"", "f.txt": b"two", "g.txt": b"caf\xe9", "h.txt": b"x" * (1 << 17), "lonely.txt": b"no image"}
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    assert recognise(tmp_path) is sidecar
    records, rejected = read_all(tmp_path)
    assert {r.where: (r.texts, r.split) for r in records} == {
        "10_dog/a.jpg": (("a dog", "a brown dog"), None),
        "10_dog/b.PNG": (("Hündchen",), None),
        "val/c.webp": (("a cat",), "val"),
        "d.jpeg": (("",), None),
        "e.jpg": ((), None),
        "g.jpg": (("caf\udce9",), None),
    }
    assert all(r.image == jpeg(Path(r.where).stem) for r in records)
    assert {r.where: r.reason for r in rejected} == {
        **{"f.jpg": "duplicate_member", "h.jpg": "too_many_bytes"},
        "lonely.txt": "missing_image",
    }


def test_images_without_any_text_are_no_data_set(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(ValueError, match="no known format; found 2 entries"):
        recognise(tmp_path)
