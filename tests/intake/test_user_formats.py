"""The lists that users hold, field by field as their publishers write them: what is read, and what is told where nothing can be."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.config.intake import FieldsConfig
from blip_core.fetch.rows import open_lists
from blip_core.fetch.settings import FetchConfig
from blip_core.intake.formats import DECLARABLE, Record, RejectedRow, format_module, recognise, units
from tests.intake.test_salesforce import write_images, write_list
from tests.support.archives import jpeg, karpathy_image, read_all, tar_bytes, write_img2dataset

URL = "http://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/AAAAAAAAM6o/_11MuAAKalQ/IMG_3422.JPG?imgmax=800"


def texts(folder: Path) -> dict[str, tuple[str, ...]]:
    records, rejected = read_all(folder)
    assert not rejected
    return {r.image_id or r.key: r.texts for r in records}


def declared(**names: str) -> FieldsConfig:
    return FieldsConfig(**{"image": None, "text": None, "split": None} | names)


def read_declared(folder: Path, fields: FieldsConfig) -> tuple[str, list[Record], list[RejectedRow]]:
    module = recognise(folder, None, fields)
    items = [item for unit in units(module, folder, fields) for item in module.read(unit)]
    name = module.__name__.rpartition(".")[2]
    return name, [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, RejectedRow)]


# lists of URLs: what is said

LAION = {"URL": URL, "TEXT": "Vintage oak table", "WIDTH": 640, "HEIGHT": 480, "similarity": 0.31, "NSFW": "UNLIKELY", "LICENSE": "?"}
LAION_5B = {**{k: LAION[k] for k in ("URL", "TEXT", "WIDTH", "HEIGHT", "similarity")}, "hash": -912, "punsafe": 0.01, "pwatermark": 0.2}
LAION_COCO = {**LAION_5B, "top_caption": "a wooden table", "all_captions": ["a wooden table", "a table"], "all_similarities": [0.29, 0.27]}
COYO = {"id": 1, "url": URL, "text": "oak", "clip_similarity_vitb32": 0.2, "nsfw_score_gantman": 0.1, "watermark_score": 0.1}
DATACOMP = {"uid": "139e4a9b22a614771f06c700a8ebe150", "url": URL, "text": "oak", "clip_l14_similarity_score": 0.24, "face_bboxes": [[0.1]]}
CAPSFUSION = {"image_url": URL, "laion_2b": "oak", "laion_coco": "a table", "capsfusion": "an oak table"}


@pytest.mark.parametrize(
    ("row", "url", "text"),
    [(LAION, "URL", "TEXT"), (LAION_5B, "URL", "TEXT"), (LAION_COCO, "URL", "TEXT"), (COYO, "url", "text"), (DATACOMP, "url", "text")]
    + [(CAPSFUSION, "image_url", "COLUMN")],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
def test_tables_of_urls(tmp_path, row, url, text, kind):
    """The command names the columns as they are written."""
    if kind == "json":
        (tmp_path / "part.json").write_text(json.dumps([row]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "part-00000.parquet")
    else:
        (tmp_path / "part.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"--url {url} --text {text} ") as e:
        recognise(tmp_path)
    assert ("laion_2b, laion_coco, capsfusion" in str(e.value)) == (text == "COLUMN")


@pytest.mark.parametrize("name", ["image", "link"])
def test_a_column_of_urls_is_known_by_its_cells(tmp_path, name):
    (tmp_path / "list.jsonl").write_text(json.dumps({name: URL, "caption": "oak"}))
    with pytest.raises(ValueError, match=f"--url {name} --text caption "):
        recognise(tmp_path)


def test_pictures_with_several_columns_that_may_be_texts_want_one_named(tmp_path):
    """Not to be downloaded: they are there."""
    write_images(tmp_path, "a.jpg")
    (tmp_path / "list.jsonl").write_text(json.dumps({"url": URL, "image": "a.jpg", "blip_caption": "one", "caption_en": "two"}))
    with pytest.raises(
        ValueError, match="which column holds their texts is not plain: blip_caption, caption_en; name it in ingest.web_fields"
    ):
        recognise(tmp_path)


@pytest.mark.parametrize("line", [f"a bus station\t{URL}", f"{URL}\tphotos of <PERSON>"])
def test_cc3m_and_cc12m_need_no_names_in_either_order(tmp_path, line):
    (tmp_path / "list.tsv").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="blip fetch .*list.tsv --out FOLDER"):
        recognise(tmp_path)
    ((found,),) = ([*one.rows()] for one in open_lists([tmp_path / "list.tsv"], FetchConfig()))
    assert found.url == URL and found.text == line.replace(URL, "").strip()


# img2dataset


def test_img2dataset_files(tmp_path):
    """Its output format `files`: a folder for each shard, its table beside it."""
    write_img2dataset(tmp_path, "00000", ["000000000", "000000001", "000000002"], failed={"000000001": "failed_to_download"})
    (tmp_path / "00000.tar").unlink()
    write_images(tmp_path / "00000", "000000000.jpg")
    (tmp_path / "00000/000000000.txt").write_text("a very typical bus station")
    (tmp_path / "00000/000000000.json").write_text("{}")
    records, rejected = read_all(tmp_path)
    assert [(r.key, r.texts, r.image) for r in records] == [("00000_000000000", ("a very typical bus station",), jpeg("000000000"))]
    assert [(r.key, r.reason, r.where) for r in rejected] == [
        ("000000001", "failed_to_download", "00000.parquet:row 1"),
        ("000000002", "missing_in_tar", "00000.parquet:row 2"),
    ]


def test_img2dataset_parquet(tmp_path):
    """Its output format `parquet`: failures are rows without an image, and are told as failures."""
    rows = [
        {"key": "0", "caption": "picture a", "jpg": jpeg("a"), "status": "success", "error_message": None, "url": URL},
        {"key": "1", "caption": "gone", "jpg": None, "status": "failed_to_download", "error_message": "HTTP Error 404", "url": URL},
        {"key": "2", "caption": "odd", "jpg": None, "status": "moon", "error_message": None, "url": URL},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    (record,), rejected = read_all(tmp_path)
    assert (record.texts, record.image) == (("picture a",), jpeg("a"))
    assert [(r.reason, r.detail) for r in rejected] == [
        ("failed_to_download", "HTTP Error 404"),
        ("failed_upstream", "status 'moon': None"),
    ]


def test_json_of_a_sample_may_be_a_list_or_hold_one(tmp_path):
    """LAVIS writes the first, LAION-COCO's users the second."""
    files = [("0.jpg", jpeg("0")), ("0.json", b'["one", "two"]'), ("1.jpg", jpeg("1")), ("1.json", b'{"captions": ["one", "two"]}')]
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    assert texts(tmp_path) == {"0-0": ("one", "two"), "0-1": ("one", "two")}


@pytest.mark.parametrize("name", ["0.json", "0.text", "0.jpg.txt"])
def test_texts_beside_a_picture_are_those_of_a_tar(tmp_path, name):
    """A caption in JSON, other endings, the text's name with the picture's ending."""
    write_images(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / name).write_text('{"caption": ["one", "two"]}' if name.endswith(".json") else "one\ntwo\n")
    (tmp_path / "1.caption").write_text("three")
    assert sorted(texts(tmp_path).values()) == [("one", "two"), ("three",)]


# lists beside images


def test_a_bad_line_of_json_costs_itself_alone(tmp_path):
    """Among lists, lines are lines: a separator of lines within a text is none."""
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write_list(tmp_path / "train.json", [{"image": "a.jpg", "caption": "one"}])
    rows = [{"image": "b.jpg", "caption": "two\u2028 lines"}, {"image": "c.jpg", "caption": "three"}]
    (tmp_path / "val.json").write_text("\n".join([*(json.dumps(r, ensure_ascii=False) for r in rows), '{"image": ']))
    records, rejected = read_all(tmp_path)
    assert [r.texts for r in records] == [("one",), ("two\u2028 lines",), ("three",)]
    assert [(r.where, r.reason) for r in rejected] == [("val.json:[2]", "bad_json")]


def test_flickr8k_as_published(tmp_path):
    """Captions by image name and number, splits in lists of names; five captions go with their picture."""
    names = [f"{i}_693b08cb0e.jpg" for i in range(4)]
    write_images(tmp_path / "Flicker8k_Dataset", *names)
    (tmp_path / "Flickr8k.token.txt").write_text("".join(f"{n}#{c}\tA child , number {c} .\n" for n in names for c in range(5)))
    for split, name in zip(("train", "dev", "test"), names, strict=False):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text(f"{name}\n")
    records, rejected = read_all(tmp_path)
    assert not rejected and [len(r.texts) for r in records] == [5] * 4
    assert {r.split: r.image_id for r in records} == dict(zip(("train", "val", "test", None), names, strict=True))


@pytest.mark.parametrize("kind", ["token", "karpathy", "salesforce"])
def test_images_in_a_folder_of_any_name(tmp_path, kind):
    """Flicker8k_Dataset and flickr30k-images are what the downloads unpack to. Of two such folders, neither is guessed."""
    write_images(tmp_path / "Flicker8k_Dataset", "a.jpg", "b.jpg")
    if kind == "token":
        (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tone\nb.jpg#0\ttwo\n")
    elif kind == "salesforce":
        write_list(tmp_path / "list.json", [{"image": f"{n}.jpg", "caption": "x"} for n in "ab"])
    else:
        images = [karpathy_image(n, i, "train") for i, n in enumerate("ab")]
        (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    records, rejected = read_all(tmp_path)
    assert [r.image for r in records] == [jpeg("a"), jpeg("b")] and not rejected
    write_images(tmp_path / "others", "a.jpg")
    assert [r.reason for r in read_all(tmp_path)[1]] == ["missing_image"] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results_20130124.token", "{}#0\tTwo young guys\n{}#1\tTwo men\n"),
        ("results.csv", "image_name| comment_number| comment\n{}| 0| Two young guys\n{}| 1| Two men\n"),
        ("captions.txt", "image,caption\n{},Two young guys\n{},Two men\n"),
        ("flickr_annotations_30k.csv", 'raw,sentids,split,filename,img_id\n"[""Two young guys"", ""Two men""]","[0, 1]",train,{},0\n'),
        ("pandas.csv", "filename,captions\n{},\"['Two young guys', 'Two men']\"\n"),
        ("numbered.csv", "image,caption_0,caption_1\n{},Two young guys,Two men\n"),
        ("list.jsonl", '{{"image": "{}", "captions": ["Two young guys", "Two men"]}}\n'),
        ("pairs.jsonl", '["{}", "Two young guys"]\n["{}", "Two men"]\n'),
        ("lists.jsonl", '["{}", ["Two young guys", "Two men"]]\n'),
        ("nested.jsonl", '{{"filename": "{}", "sentences": [{{"raw": "Two young guys"}}, {{"raw": "Two men"}}]}}\n'),
        ("array.json", '[{{"file_name": "{}", "text": ["Two young guys", "Two men"]}}]'),
        ("numbered.json", '[{{"filepath": "{}", "caption_1": "Two young guys", "caption_2": "Two men"}}]'),
    ],
)
def test_five_captions_in_every_dress(tmp_path, name, content):
    image = "1000092795.jpg"
    write_images(tmp_path / "flickr30k-images", image)
    image = f"flickr30k-images/{image}"
    (tmp_path / name).write_text(content.format(image, image))
    assert list(texts(tmp_path).values()) == [("Two young guys", "Two men")]


def test_a_caption_that_looks_like_a_list_is_a_caption(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "c.csv").write_text('image,caption\na.jpg,"[""sic] he said"\nb.jpg,[\'\n')
    assert texts(tmp_path) == {"a.jpg": ('["sic] he said',), "b.jpg": ("['",)}


def test_a_parquet_of_hugging_face_with_nested_captions(tmp_path):
    image = {"bytes": jpeg("a"), "path": "a.jpg"}
    rows = [{"image": image, "sentences": [{"raw": "one", "tokens": ["one"]}, {"raw": "two", "tokens": ["two"]}], "split": "restval"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    (record,), _ = read_all(tmp_path)
    assert (record.texts, record.split) == (("one", "two"), "train")


def test_a_shop_s_list_is_no_data_set(tmp_path):
    write_list(tmp_path / "shop.json", [{"name": "chair", "description": "a chair"}])
    with pytest.raises(ValueError, match="no known format"):
        recognise(tmp_path)


# declared fields


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "metadata.csv"])
def test_columns_may_be_declared(tmp_path, kind):
    write_images(tmp_path, "a.jpg")
    row = {"bild": "a.jpg", "caption": "not this one", "Titel": "one", "text_de": "zwei", "teil": "dev"}
    path = tmp_path / (kind if "." in kind else f"list.{kind}")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif kind.endswith("csv"):
        path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    else:
        path.write_text(json.dumps([row] if kind == "json" else row))
    _, (record,), rejected = read_declared(tmp_path, declared(image="bild", text="titel,text_de", split="teil"))
    assert (record.texts, record.split, record.image, rejected) == (("one", "zwei"), "val", jpeg("a"), [])


def test_a_declared_key_of_a_tar_goes_before_its_txt(tmp_path):
    files = [("0.jpg", jpeg("0")), ("0.txt", b"IMG_2231"), ("0.json", b'{"caption": "IMG_2231", "top_caption": "a table"}')]
    (tmp_path / "0.tar").write_bytes(tar_bytes([*files, ("1.jpg", jpeg("1")), ("1.txt", b"x"), ("1.json", b"{}")]))
    name, records, rejected = read_declared(tmp_path, declared(text="top_caption"))
    assert (name, [r.texts for r in records], rejected) == ("webdataset", [("a table",), ()], [])


def test_a_declared_column_that_is_not_there_is_told_with_those_that_are(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,one\n")
    with pytest.raises(ValueError, match=r"(?s)c.csv has the columns 'image', 'caption'.*the declared text = 'titel'"):
        recognise(tmp_path, None, declared(text="titel"))
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.jpg,one\n")
    with pytest.raises(ValueError, match="no column for titel; its columns are .*caption"):
        read_declared(tmp_path, declared(text="titel"))


def test_fields_of_a_fixed_format_can_not_be_declared(tmp_path):
    with pytest.raises(ValueError, match="karpathy has its fields by definition"):
        recognise(tmp_path, "karpathy", declared(text="raw"))


def test_every_declarable_format_takes_fields(tmp_path):
    for name in DECLARABLE:
        assert format_module(name).recognises(tmp_path, declared(text="x")) is False
        assert format_module(name).units(tmp_path, declared(text="x")) == []


def test_parquet_whose_image_column_is_declared(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [jpeg("a")], "b": [jpeg("b")], "text": ["x"]}), sink)
    (tmp_path / "t.parquet").write_bytes(sink.getvalue())
    _, (record,), _ = read_declared(tmp_path, declared(image="b"))
    assert record.image == jpeg("b")
