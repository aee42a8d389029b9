"""What each format says of a picture beside its texts reaches the record, and through ingest the metadata folder."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.metadata.folder import ASIDE, accounted, metadata_of
from blip_core.tables.captions import read_tables
from tests.intake.test_salesforce import write_images
from tests.stages.test_ingest import SPLITS, run
from tests.support.archives import jpeg, karpathy_image, read_all, sample, tar_bytes, write_img2dataset, write_karpathy

ROWS = [
    {"file_name": "a.jpg", "text": "one", "url": "http://a", "n": 1},
    {"file_name": "b.jpg", "text": "two", "url": "http://b", "n": None},
]


def as_csv(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text,url,n\na.jpg,one,http://a,1\nb.jpg,two,http://b,\n")


def as_jsonl(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "metadata.parquet")


def as_list(folder: Path) -> None:
    (folder / "list.json").write_text(json.dumps([{"image": r["file_name"], "caption": r["text"], **r} for r in ROWS]))


def as_sidecar(folder: Path) -> None:
    for row in ROWS:
        stem = row["file_name"][:-4]
        (folder / f"{stem}.txt").write_text(row["text"])
        (folder / f"{stem}.json").write_text(json.dumps({"caption": f" {row['text']}\n", "url": row["url"], "n": row["n"]}))


def as_images_within(folder: Path) -> None:
    rows = [{**row, "image": {"bytes": jpeg(row["file_name"][:-4]), "path": row["file_name"]}} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    for path in folder.glob("*.jpg"):
        path.unlink()


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet, as_list, as_sidecar, as_images_within])
def test_columns_and_keys_beside_picture_and_text(tmp_path, write):
    write_images(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path)
    records, rejected = read_all(tmp_path)
    assert not rejected and [r.texts[0] for r in records] == ["one", "two"]
    for record, row, n in zip(records, ROWS, ("1" if write is as_csv else 1, None), strict=True):
        own = {name: value for name, value in record.fields.values.items() if value is not None}
        assert own.pop("file_name", row["file_name"]) == row["file_name"] and own["url"] == row["url"] and own.get("n") == n
        texts = {"text"} if write is as_list else set()  # the caption goes before a second one, which stays as a field
        assert set(own) - texts <= {"url", "n", "image", "image_path"} and "caption" not in own


def test_a_licence_of_coco_has_its_name_and_url(tmp_path):
    write_images(tmp_path, "1.jpg")
    licences = [{"id": 4, "name": "Attribution", "url": "http://creativecommons.org/licenses/by/2.0/"}]
    image = {"id": 1, "file_name": "1.jpg", "license": 4, "flickr_url": "http://f/1.jpg"}
    notes = [{"image_id": 1, "id": 7 + i, "caption": text} for i, text in enumerate(("one", "two"))]
    (tmp_path / "captions_train.json").write_text(json.dumps({"licenses": licences, "images": [image], "annotations": notes}))
    ((record,), _) = read_all(tmp_path)
    named = {"license_name": "Attribution", "license_url": "http://creativecommons.org/licenses/by/2.0/", "annotation_id": [7, 8]}
    assert record.fields.values == {**image, **named}


def test_a_caption_that_is_no_text_and_a_json_that_is_none(tmp_path):
    other = [*sample("a"), ("a.json", json.dumps({"caption": "something else", "url": "http://a"}).encode())]
    (tmp_path / "0.tar").write_bytes(tar_bytes([*other, *sample("b"), ("b.json", b"{")]))
    records, rejected = read_all(tmp_path)
    assert [dict(r.fields.values) for r in records] == [{"caption": "something else", "url": "http://a"}, {}]
    assert [(r.reason, r.lost) for r in rejected] == [("bad_json", 0)] and "its fields are lost" in rejected[0].detail


def test_a_tar_without_json_has_the_fields_of_its_side_table(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar_bytes([*sample("a"), *sample("b")]))
    rows = [{"key": k, "status": "success", "caption": f"picture {k}", "url": f"http://{k}", "punsafe": 0.5} for k in "ab"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    records, rejected = read_all(tmp_path)
    assert not rejected and [r.fields.values["url"] for r in records] == ["http://a", "http://b"]
    assert set(records[0].fields.values) == {"key", "status", "url", "punsafe"}


def test_cells_that_python_has_not_are_text(tmp_path):
    """One such value costs neither its picture nor the others of its column."""
    write_images(tmp_path, "a.jpg", "b.jpg")
    raw = pa.array([b"caf\xe9", b"fine"])
    latin = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    late = pa.array([1 << 40, 0], pa.timestamp("s"))
    names = [row["file_name"] for row in ROWS]
    pq.write_table(pa.table({"file_name": names, "text": ["one", "two"], "latin": latin, "late": late}), tmp_path / "metadata.parquet")
    records, rejected = read_all(tmp_path)
    assert not rejected and [r.fields.values["latin"] for r in records] == ["caf\udce9", "fine"]
    assert isinstance(records[0].fields.values["late"], str)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Path:
    """Two tars, of which the second has other types, another copy of a key, and a picture that is held out."""
    root = tmp_path_factory.mktemp("fields")
    write_img2dataset(root / "data/web", "00000", ["a", "b", "c"])
    metas = {"b": {}, "n9": {"punsafe": "high"}, "d": {"key": 7}}
    members = [
        m
        for key, meta in metas.items()
        for m in [*sample(key), (f"{key}.json", json.dumps({**meta, "url": f"http://second/{key}"}).encode())]
    ]
    (root / "data/web/00001.tar").write_bytes(tar_bytes(members))
    write_karpathy(root / "data/clean", [karpathy_image(f"n{i}", i, split, punsafe=i / 10) for i, split in enumerate(SPLITS)])
    run(root / "data", root / "out", max_rejected=0.9)
    return root / "out"


def test_a_row_for_each_picture_under_one_schema(ingested):
    rows = {}
    for folder in ("g0", "heldout"):
        for shard in set(read_tables(ingested / folder, ["key"])["shard"].to_pylist()):
            keys = [r["key"] for r in read_tables(ingested / folder, ["key"]).to_pylist() if r["shard"] == shard]
            rows |= {row["key"]: row for row in metadata_of(ingested / "metadata", shard, list(dict.fromkeys(keys))).to_pylist()}
    assert rows["web-a"]["url"] == "http://a.example/1.jpg" and rows["web-d"]["url"] == "http://second/d"
    assert rows["web-a"]["source_key"] == "a" and rows["web-d"]["source_key"] == "7"
    assert rows["val-n8"]["punsafe"] == "0.8" and rows["val-n8"]["sentence_sentid"] == "[40, 41]"
    account = accounted(ingested / "metadata")
    assert account["pictures"] == {"web": 4, "train": 8, "val": 5, "test": 3}
    assert account["fields"]["url"] == {"type": "string", "pictures": {"web": 4}}
    assert account["mixed"]["punsafe"] == {"double": 16, "string": 1} and account["mixed"]["source_key"] == {"string": 3, "int64": 1}


def test_of_copies_the_one_that_stays_keeps_its_own_and_the_others_go_aside_with_theirs(ingested):
    (kept,) = metadata_of(ingested / "metadata", "web-00000", ["web-b"], ["url"]).to_pylist()
    assert kept["url"] == "http://a.example/1.jpg"
    aside = {row["key"]: row["url"] for row in pq.read_table(ingested / "metadata" / ASIDE).to_pylist()}
    assert aside == {"web-b": "http://second/b", "web-n9": "http://second/n9"}
