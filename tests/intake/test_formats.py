"""Input formats: recognised by their files, read as their users write them, and nothing lost without a row that says so."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from blip_core.intake import formats
from blip_core.intake.formats import FORMATS, deal_split, format_module, recognise, split_of_name
from tests.support.archives import jpeg, karpathy_image, read_all, write_karpathy

# recognising


def test_every_format_offers_what_ingest_asks_for():
    for name in FORMATS:
        module = format_module(name)
        assert isinstance(module.EXPECTS, str) and all(callable(getattr(module, f)) for f in ("recognises", "units", "read"))


def test_params_know_every_format():
    from typing import get_args

    from blip_core.config.intake import Format

    assert get_args(Format) == FORMATS


def test_an_unknown_folder_is_told_what_is_expected(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"")
    (tmp_path / "notes.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="2 entries: notes.json, photos.zip") as e:
        recognise(tmp_path)
    assert all(format_module(name).EXPECTS in str(e.value) for name in FORMATS)
    assert "blip sample" in str(e.value)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="crawl: no such file or folder.*blip sample"):
        recognise(tmp_path / "crawl")
    with pytest.raises(ValueError, match="found nothing"):
        recognise(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [("captions_train2014", "train"), ("val-00000", "val"), ("clean/test/0001", "test"), ("restval", "train"), ("dev_set", "val")]
    + [("00000", None), ("contest", None), ("train_vs_test", None)],
)
def test_split_of_name(name, split):
    assert split_of_name(name) == split


def test_dealt_splits_keep_their_shares_and_stay():
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    dealt = {str(i): deal_split(str(i), shares) for i in range(2000)}
    counts = Counter(dealt.values())
    assert abs(counts["train"] - 1600) < 80 and abs(counts["val"] - 200) < 60 and abs(counts["test"] - 200) < 60
    assert deal_split("7", shares) == dealt["7"]


# Karpathy


def test_karpathy_restval_joins_train(tmp_path):
    splits = ["test", "train", "restval", "val"]
    images = [karpathy_image(f"COCO_val2014_{i}", i, s, cocoid=900 + i, filepath="val2014") for i, s in enumerate(splits)]
    write_karpathy(tmp_path, images, name="dataset_coco.json", place="val2014")
    records, rejected = read_all(tmp_path)
    assert {r.key: (r.split, r.image_id) for r in records} == {
        "COCO_val2014_0": ("test", "900"),
        "COCO_val2014_1": ("train", "901"),
        "COCO_val2014_2": ("train", "902"),
        "COCO_val2014_3": ("val", "903"),
    }
    assert all(r.image == jpeg(r.key) and r.texts == (f"caption 0 of {r.key}", f"caption 1 of {r.key}") for r in records)
    assert not rejected


@pytest.mark.parametrize("place", ["images", "."])
def test_flickr_has_neither_filepath_nor_cocoid(tmp_path, place):
    write_karpathy(tmp_path, [karpathy_image("1000092795", 7, "train")], name="dataset_flickr30k.json", place=place)
    (record,), _ = read_all(tmp_path)
    assert (record.key, record.image_id, record.image) == ("1000092795", "7", jpeg("1000092795"))
    assert record.where == "dataset_flickr30k.json:images[0]"


def test_names_that_make_no_key_give_way_to_the_number(tmp_path):
    write_karpathy(tmp_path, [karpathy_image("a b.c", 7, "train"), karpathy_image("sub/x", 8, "val")])
    records, _ = read_all(tmp_path)
    assert sorted(r.key for r in records) == ["7", "8"]


def test_ids_of_two_lists_do_not_meet(tmp_path):
    for i, name in enumerate(("dataset_coco.json", "dataset_flickr8k.json")):
        write_karpathy(tmp_path, [karpathy_image(f"n{i}", 0, "train")], name=name)
    records, _ = read_all(tmp_path)
    assert [r.image_id for r in records] == ["dataset_coco-0", "dataset_flickr8k-0"]


def test_bad_rows_of_a_list(tmp_path):
    good = [karpathy_image("a", 0, "train"), karpathy_image("b", 1, "val")]
    write_karpathy(tmp_path, good)
    only_tokens = {**karpathy_image("a", 0, "train"), "sentences": [{"tokens": ["a", "dog"]}]}
    bad = [
        karpathy_image("gone", 2, "train"),
        karpathy_image("../../etc/passwd", 3, "train"),
        karpathy_image("a", 4, "holiday"),
        karpathy_image("a", 5, "train", texts=0),
        {"filename": "a.jpg", "split": "train"},
        "not an object",
        karpathy_image("x" * 300, 6, "train"),
    ]
    (tmp_path / "dataset_karpathy.json").write_text(json.dumps({"images": [*good, *bad, only_tokens]}))
    records, rejected = read_all(tmp_path)
    assert sorted(r.texts for r in records) == [(), ("a dog",), ("caption 0 of a", "caption 1 of a"), ("caption 0 of b", "caption 1 of b")]
    assert {r.where.partition(":")[2]: r.reason for r in rejected} == {
        "images[2]": "missing_image",
        "images[3]": "unsafe_key",
        "images[4]": "unknown_split",
        "images[6]": "bad_row",
        "images[7]": "bad_row",
        "images[8]": "unsafe_key",
    }


def test_a_large_list_is_cut_by_split_and_in_order(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"images": [karpathy_image(f"n{i}", i, ["train", "val"][i % 2]) for i in range(2402)]}))
    units = recognise(tmp_path).units(tmp_path)
    assert [(u.entries[0].split, len(u.entries)) for u in units] == [("train", 1000), ("train", 201), ("val", 1000), ("val", 201)]
    assert [int(e.image_id) for u in units[:2] for e in u.entries] == list(range(0, 2402, 2))
    assert len({u.name for u in units}) == 4


def test_a_list_that_is_no_json_names_file_and_line(tmp_path):
    (tmp_path / "dataset_x.json").write_text('{"images": [\n{"sentences": [}')
    with pytest.raises(ValueError, match="dataset_x.json: not valid JSON.*line 2"):
        recognise(tmp_path).units(tmp_path)


# COCO


def write_coco(root: Path, name: str, numbers: range, folder: str) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": f"COCO_{i:012d}.jpg", "height": 36, "width": 40} for i in numbers]
    notes = [{"image_id": i, "id": 10 * i + k, "caption": f"caption {k} of {i}"} for k in range(2) for i in numbers]
    (root / "annotations" / name).write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": notes}))
    for i in numbers:
        (root / folder / f"COCO_{i:012d}.jpg").write_bytes(jpeg(f"COCO_{i:012d}"))


def test_coco_as_downloaded(tmp_path):
    write_coco(tmp_path, "captions_train2014.json", range(5), "train2014")
    write_coco(tmp_path, "captions_val2014.json", range(100, 140), "val2014")
    (tmp_path / "annotations/instances_val2014.json").write_text('{"images": [], "annotations": [{"image_id": 1, "category_id": 3}]}')
    records, rejected = read_all(tmp_path)
    assert not rejected and len(records) == 45
    assert all(r.image == jpeg(r.key) and r.texts == tuple(f"caption {k} of {r.image_id}" for k in range(2)) for r in records)
    counts = Counter(r.split for r in records)
    assert counts["train"] == 5 and counts["val"] + counts["test"] == 40 and min(counts["val"], counts["test"]) > 8


def test_coco_images_in_one_folder_of_any_name(tmp_path):
    """But never val's captions at train's pictures of the same names, where val's own were not fetched."""
    write_coco(tmp_path / "a", "captions_val2014.json", range(2), "my pictures/all")
    write_coco(tmp_path / "b", "captions_val2014.json", range(2), "train2014")
    assert len(read_all(tmp_path / "a")[0]) == 2
    records, rejected = read_all(tmp_path / "b")
    assert not records and {r.reason for r in rejected} == {"missing_image"}


def test_coco_with_test_captions_keeps_val_whole(tmp_path):
    for split in ("train", "val", "test"):
        write_coco(tmp_path, f"captions_{split}.json", range(3), "images")
    assert Counter(r.split for r in read_all(tmp_path)[0]) == {"train": 3, "val": 3, "test": 3}


def test_coco_faults(tmp_path):
    write_coco(tmp_path, "captions_train.json", range(3), "images")
    path = tmp_path / "annotations/captions_train.json"
    value = json.loads(path.read_text())
    value["images"] += [{"id": 77, "file_name": "x.jpg"}, {"id": 78}, {"id": 0, "file_name": "gone.jpg"}]
    path.write_text(json.dumps(value))
    records, rejected = read_all(tmp_path)
    # two images have the id 0: whose captions it is can't be told
    assert len(records) == 2 and Counter(r.reason for r in rejected) == {"missing_image": 1, "bad_row": 1, "duplicate_key": 2}
    value["annotations"] = [{"image_id": 1, "category_id": 3}]
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"captions_train.json: annotations\[0\]: expected image_id and caption"):
        recognise(tmp_path).units(tmp_path)


def write_coco_lists(root: Path, **lists: tuple[list, list]) -> None:
    """Images and annotations of each list, by its name."""
    for name, (images, notes) in lists.items():
        (root / f"{name}.json").write_text(json.dumps({"images": images, "annotations": notes}))


def test_coco_ids_and_paths_as_tools_write_them(tmp_path):
    """1, 1.0, "1.0" and "000001" are one id; a path may be another machine's, with either slash or both."""
    for name in ("x/a.jpg", "x/b.jpg", "x/y/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(Path(name).stem))
    names = ["C:\\data\\x\\a.jpg", "/home/me/x/b.jpg", "x/y\\c.jpg"]
    images = [{"id": i, "file_name": n} for i, n in zip([1.0, "000002", 3], names, strict=True)]
    write_coco_lists(tmp_path, captions=(images, [{"image_id": i, "caption": f"{i}"} for i in ("1", "1.0", 2, "0003")]))
    records, rejected = read_all(tmp_path)
    assert not rejected and {(r.texts, r.image) for r in records} == {
        (("1", "1.0"), jpeg("a")),
        (("2",), jpeg("b")),
        (("0003",), jpeg("c")),
    }


def test_an_image_that_coco_lists_twice_has_its_captions_once(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg("a"))
    image = {"id": 1, "file_name": "a.jpg"}
    write_coco_lists(tmp_path, captions=([image, image], [{"image_id": 1, "caption": "one"}]))
    (record,), (again,) = read_all(tmp_path)
    assert record.texts == ("one",) and (again.reason, again.lost) == ("duplicate_key", 1)


def test_a_list_of_boxes_beside_one_of_captions_costs_nothing(tmp_path):
    """Whatever they are called; a list whose captions are all null is one of captions."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg(name[0]))
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    write_coco_lists(
        tmp_path,
        boxes=(images, [{"image_id": 1, "bbox": [1, 2, 3, 4]}]),
        mine_train=(images[:1], [{"image_id": 1, "caption": "one"}]),
        mine_val=(images[1:], [{"image_id": 2, "caption": None}]),
    )
    records, rejected = read_all(tmp_path)
    assert [r.texts for r in records] == [("one",), ()] and [r.reason for r in rejected] == ["bad_row"]


def test_a_sentence_without_words_is_told(tmp_path):
    """The others stay; a plain string is one."""
    image = {**karpathy_image("a", 0, "train"), "sentences": [{"raw": "one"}, {"raw": None}, "two", {}, {"tokens": ["a", "dog"]}]}
    write_karpathy(tmp_path, [image, karpathy_image("b", 1, "holiday")])
    (record,), rejected = read_all(tmp_path)
    assert record.texts == ("one", "two", "a dog")
    assert [(r.where.partition(":")[2], r.reason, r.lost) for r in rejected] == [
        ("images[0].sentences[1]", "bad_row", 1),
        ("images[0].sentences[3]", "bad_row", 1),
        ("images[1]", "unknown_split", 2),
    ]


def test_karpathy_paths_of_another_machine(tmp_path):
    write_karpathy(tmp_path, [karpathy_image("a", 0, "train")])
    path = tmp_path / "dataset_karpathy.json"
    path.write_text(path.read_text().replace("a.jpg", "D:\\\\data\\\\images\\\\a.jpg"))
    (record,), rejected = read_all(tmp_path)
    assert record.image == jpeg("a") and not rejected


def test_adding_a_format_is_a_module_and_its_name(tmp_path, monkeypatch):
    """The recipe in the package's docstring."""
    (tmp_path / "pairs.tsv").write_text("a red ball\t1.jpg\n")
    (tmp_path / "1.jpg").write_bytes(jpeg("1"))
    (tmp_path / "tsv.py").write_text(
        "from blip_core.intake.formats.files import Entry, read, slices\n"
        "EXPECTS = 'pairs.tsv'\n"
        "def recognises(path): return (path / 'pairs.tsv').exists()\n"
        "def units(path):\n"
        "    rows = [line.split('\\t') for line in (path / 'pairs.tsv').read_text().splitlines()]\n"
        "    return slices(path, 'pairs.tsv', [Entry(n[:-4], (n,), (t,), None, None, f'pairs.tsv:{i}') for i, (t, n) in enumerate(rows)])\n"
    )
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, "tsv"))
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, os.fspath(tmp_path)])
    (record,), _ = read_all(tmp_path)
    assert (record.texts, record.image) == (("a red ball",), jpeg("1"))
