"""WebDataset tars, of img2dataset and plain, whole and hostile: whatever is lost has its row."""

import gzip
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.config.intake import FieldsConfig
from blip_core.intake.formats import Record, RejectedRow, webdataset
from tests.support.archives import jpeg, read_all, sample, tar_bytes, write_img2dataset


def read_tar(folder: Path, data: bytes, name: str = "00000.tar") -> tuple[list[Record], list[RejectedRow]]:
    """What a folder with this one plain tar holds, the tar's name taken off the keys."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    records, rejected = read_all(folder)
    assert all(r.key.startswith("00000-") for r in records)
    return [Record(**{**vars(r), "key": r.key.removeprefix("00000-")}) for r in records], rejected


def fits(record: Record) -> bool:
    """The record's text and picture both belong to its key."""
    name = record.key.rpartition("-")[2]
    return record.image == jpeg(name) and record.texts == (f"picture {name}",)


# img2dataset


def test_img2dataset_with_failures(tmp_path):
    failed = {"000000002": "failed_to_download", "000000003": "failed_to_resize", "000000004": "quota_exceeded"}
    write_img2dataset(tmp_path, "00000", [f"00000000{i}" for i in range(6)], failed=failed)
    write_img2dataset(tmp_path, "00001", [f"00001000{i}" for i in range(3)])
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["000000000", "000000001", "000000005", "000010000", "000010001", "000010002"]
    assert all(fits(r) for r in records)
    assert records[3].where == "00001.tar:000010000.jpg"
    reasons = {"000000002": "failed_to_download", "000000003": "failed_to_resize", "000000004": "failed_upstream"}
    assert {r.key: r.reason for r in rejected} == reasons and len(rejected) == 3
    assert (rejected[0].where, rejected[0].detail) == ("00000.parquet:row 2", "000000002 is gone")
    assert "quota_exceeded" in rejected[2].detail


def test_real_crawl(shared):
    folder = shared / "real/web_alt"
    records, rejected = read_all(folder)
    assert len(records) == 480 and len({r.key for r in records}) == 480
    assert Counter(r.reason for r in rejected) == {"failed_to_download": 60}
    table = pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("*.parquet"))])
    captions = {row["key"]: row["caption"] for row in table.to_pylist() if row["status"] == "success"}
    assert {r.key: r.texts for r in records} == {key: (caption,) for key, caption in captions.items()}


def test_side_tables_with_more_columns_and_other_case(tmp_path):
    write_img2dataset(tmp_path, "00000", ["a", "b", "c"], failed={"b": "failed_to_download"}, lost=["c"])
    table = pq.read_table(tmp_path / "00000.parquet").rename_columns(["TEXT", "KEY", "Status", "Error_Message"])
    table = table.append_column("similarity", pa.array([0.3] * 3)).append_column("all_captions", pa.array([["x"]] * 3))
    pq.write_table(table, tmp_path / "00000.parquet")
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["a"] and fits(records[0])
    assert [(r.key, r.reason, r.detail[:4]) for r in rejected] == [("b", "failed_to_download", "b is"), ("c", "missing_in_tar", "not ")]


def test_a_success_that_the_tar_lacks_is_told(tmp_path):
    write_img2dataset(tmp_path, "00000", ["a", "b", "c"], lost=["b"])
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["a", "c"]
    assert [(r.key, r.reason) for r in rejected] == [("b", "missing_in_tar")]


def test_without_the_side_table_the_statistics_tell(tmp_path):
    write_img2dataset(tmp_path, "00000", ["a", "b", "c"], lost=["a", "b"])
    (tmp_path / "00000.parquet").unlink()
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["00000-c"]
    assert [r.reason for r in rejected] == ["missing_in_tar"] * 2


def test_a_side_table_whose_tar_is_gone(tmp_path):
    write_img2dataset(tmp_path, "00000", ["a", "b"])
    write_img2dataset(tmp_path, "00001", ["c", "d"], failed={"d": "failed_to_download"})
    (tmp_path / "00001.tar").unlink()
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["a", "b"]
    assert [(r.key, r.reason) for r in rejected] == [("c", "missing_in_tar"), ("d", "failed_to_download")]


def test_broken_side_files_are_told_and_the_tar_is_read(tmp_path):
    write_img2dataset(tmp_path, "00000", ["a"])
    write_img2dataset(tmp_path, "00001", ["b"])
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "00001.parquet").unlink()
    (tmp_path / "00001_stats.json").write_text('{"count": 1')
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["a", "b"]
    assert [(r.where, r.reason) for r in rejected] == [("00000.parquet", "bad_side_table"), ("00001_stats.json", "bad_side_table")]


# plain WebDataset tars


def test_plain_tars_count_their_keys_from_zero(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("a.tar", "b.tar", "more/train-1.tar"):
        (tmp_path / name).write_bytes(tar_bytes(sample("0") + sample("1")))
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["a-0", "a-1", "b-0", "b-1", "more_train-1-0", "more_train-1-1"]
    assert [r.split for r in records] == [None] * 4 + ["train"] * 2
    assert not rejected and all(fits(r) for r in records)


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar(tmp_path, fmt):
    files = [(f"./{'folder/' * 12}{name}", data) for name, data in sample("k" * 90)] + sample("1")
    records, rejected = read_tar(tmp_path, tar_bytes(files, fmt=fmt))
    assert [r.key for r in records] == ["folder_" * 12 + "k" * 90, "1"] and not rejected
    assert records[0].image == jpeg("k" * 90)


def test_a_gzipped_tar_whatever_its_name(tmp_path):
    data = gzip.compress(tar_bytes(sample("0") + sample("1")))
    for folder, name in (("a", "00000.tar"), ("b", "00000.tar.gz"), ("c", "00000.TGZ")):
        records, rejected = read_tar(tmp_path / folder, data, name)
        assert [r.key for r in records] == ["0", "1"] and not rejected


def test_extensions_in_upper_case_and_other_members(tmp_path):
    files = [("0.JPG", jpeg("0")), ("0.Txt", b"picture 0"), ("0.cls", b"7"), ("README", b""), ("._0.jpg", b"mac"), (".DS_Store", b"")]
    records, rejected = read_tar(tmp_path, tar_bytes(files))
    assert [r.key for r in records] == ["0"] and fits(records[0])
    (others,) = rejected  # told once for the tar, and no fault
    assert (others.reason, others.lost) == ("other_modality", 0) and others.detail.endswith("1 .cls, 1 without an ending")


def test_other_modalities_beside_the_picture(tmp_path):
    """Depth and masks share the key and are no picture, unless they are named."""
    depth = [("0.depth.png", b"d"), ("0.seg.png", b"s"), ("0.jpg.json", b"{}"), ("0.npy", b"n")]
    files = [*sample("0"), *depth, *sample("1"), ("1.depth.png", b"d")]
    records, (others,) = read_tar(tmp_path, tar_bytes(files))
    assert [r.key for r in records] == ["0", "1"] and all(fits(r) for r in records)
    assert others.lost == 0 and others.detail.endswith("2 .depth.png, 1 .jpg.json, 1 .npy, 1 .seg.png")
    (unit,) = webdataset.units(tmp_path / "00000.tar", FieldsConfig(image="depth.png", text=None, split=None))
    found = [(r.image, r.texts) for r in webdataset.read(unit) if isinstance(r, Record)]
    assert found == [(b"d", ("picture 0",)), (b"d", ("picture 1",))]


def test_a_line_of_a_text_file_is_a_text(tmp_path):
    (record,), _ = read_tar(tmp_path, tar_bytes([("0.jpg", jpeg("0")), ("0.txt", b"one\r\ntwo\n")]))
    assert record.texts == ("one", "two")


@pytest.mark.parametrize("end", ["jfif", "jpe", "tif", "BMP"])
def test_pictures_are_known_by_what_they_hold(tmp_path, end):
    (record,), rejected = read_tar(tmp_path, tar_bytes([(f"0.{end}", jpeg("0")), ("0.txt", b"picture 0")]))
    assert record.image == jpeg("0") and not rejected


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        ([("0.json", b'{"caption": "one"}')], ("one",)),
        ([("0.json", b'["one", "two"]')], ("one", "two")),
        ([("0.json", b'{"caption": ["one", "two"]}')], ("one", "two")),
        ([("0.txt", b"one"), ("0.json", b'["two", "one"]')], ("one", "two")),
        ([("0.txt", b"one"), ("0.json", b'{"caption": "two"}')], ("one",)),
        ([("0.txt", b"one"), ("0.json", b'{"caption": ["two", "one"], "key": "0"}')], ("one", "two")),
        ([("0.json", b'{"URL": "http://a.example", "TEXT": "one", "punsafe": 0.1}')], ("one",)),
        ([("0.json", b'{"Caption": "one", "text": "two"}')], ("one",)),
        ([("0.txt", b"")], ("",)),
    ],
)
def test_where_texts_come_from(tmp_path, members, texts):
    (record,), rejected = read_tar(tmp_path, tar_bytes([("0.jpg", jpeg("0")), *members]))
    assert record.texts == texts and not rejected


def test_a_text_stays_where_its_fields_are_unreadable(tmp_path):
    members = [("0.jpg", jpeg("0")), ("0.txt", b"one"), ("0.json", b"not JSON")]
    (record,), (lost,) = read_tar(tmp_path, tar_bytes(members))
    assert record.texts == ("one",) and lost.reason == "bad_json" and "its fields are lost" in lost.detail


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.txt", b"x")], "missing_image"),
        ([("0.jpg", b"x"), ("0.json", b'{"caption": 7}')], "bad_json"),
        ([("0.jpg", b"x"), ("0.json", b'{"caption": ')], "bad_json"),
        ([("0.jpg", b"x"), ("0.json", b"[" * 200_000)], "bad_json"),
        ([("0.jpg", b"x"), ("0.png", b"x"), ("0.txt", b"x")], "duplicate_member"),
        ([("0.jpg", b"x"), ("0.txt", b"x"), ("0.txt", b"y")], "duplicate_member"),
        ([("0.jpg", b"x"), ("0.txt", b"x" * (1 << 17))], "too_many_bytes"),
        ([("img.v1.jpg", b"x")], "dotted_key"),
        ([("../../etc/x.jpg", b"x")], "unsafe_key"),
        ([("/abs/y.jpg", b"x")], "unsafe_key"),
        ([("a b.jpg", b"x")], "unsafe_key"),
        ([("水.jpg", b"x")], "unsafe_key"),
    ],
)
def test_bad_samples_between_good_ones(tmp_path, members, reason):
    """One row tells the fault, and the neighbours are whole."""
    records, rejected = read_tar(tmp_path, tar_bytes(sample("before") + members + sample("zafter")))
    assert [r.key for r in records] == ["before", "zafter"] and all(fits(r) for r in records)
    assert [r.reason for r in rejected] == [reason]
    assert rejected[0].where.startswith("00000.tar:")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_never_followed(tmp_path, kind):
    link = tarfile.TarInfo()
    link.type, link.linkname = kind, "/etc/passwd"
    records, rejected = read_tar(tmp_path, tar_bytes([*sample("0"), ("1.jpg", link), ("1.txt", b"x"), *sample("2")]))
    assert [r.key for r in records] == ["0", "2"]
    assert [r.reason for r in rejected] == ["not_regular", "missing_image"]


@pytest.mark.parametrize("members", [[], [("0.json", b'{"caption": null}')], [("0.json", b"[]")]])
def test_a_picture_without_a_text_is_a_record(tmp_path, members):
    """Whether it stays is for ingest to say."""
    (record,), rejected = read_tar(tmp_path, tar_bytes([("0.jpg", jpeg("0")), *members]))
    assert (record.texts, record.image) == ((), jpeg("0")) and not rejected


def test_scattered_members_are_told(tmp_path):
    files = [("0.jpg", jpeg("0")), ("1.jpg", jpeg("1")), ("0.txt", b"0"), ("1.txt", b"1")]
    records, rejected = read_tar(tmp_path, tar_bytes(files))
    assert [r.texts for r in records] == [(), ()]
    assert [r.reason for r in rejected] == ["missing_image"] * 2
    assert "must stand together" in rejected[0].detail


TAR = tar_bytes(sample("0") + sample("1") + sample("2"))
SECOND = TAR.index(b"1.jpg")


@pytest.mark.parametrize(
    ("data", "num_records", "reason"),
    [
        (b"", 0, "not_a_tar"),
        (b"<html>404</html>" * 100, 0, "not_a_tar"),
        (bytes(512), 0, "empty_tar"),
        (bytes(10240), 0, "empty_tar"),
        (TAR[:SECOND] + b"\xff" * 512 + TAR[SECOND + 512 :], 1, "corrupt_tar"),
        (TAR[: SECOND + 600], 1, "truncated_tar"),
        (TAR[: SECOND + 100], 1, "truncated_tar"),
        (TAR[:SECOND], 1, "truncated_tar"),
        (TAR + TAR, 3, "trailing_data"),
        (TAR[:SECOND] + bytes(512) + TAR[SECOND + 512 :], 1, "trailing_data"),
        (gzip.compress(TAR)[:-200], 3, "truncated_tar"),
        (gzip.compress(TAR)[:-8] + bytes(8), 3, "corrupt_tar"),
        (TAR[:SECOND].replace(b"0.txt", b"0.bin") + TAR[SECOND:], 0, "corrupt_tar"),
    ],
)
def test_a_damaged_tar_never_ends_quietly(tmp_path, data, num_records, reason):
    records, rejected = read_tar(tmp_path, data)
    assert len(records) <= num_records + (reason == "truncated_tar") and all(fits(r) for r in records)
    assert reason in [r.reason for r in rejected]
    if data[:2] != b"\x1f\x8b":
        assert len(records) == num_records


def test_each_lost_sample_of_a_damaged_img2dataset_tar_has_its_row(tmp_path):
    write_img2dataset(tmp_path, "00000", ["a", "b", "c", "d"])
    data = (tmp_path / "00000.tar").read_bytes()
    at = data.index(b"c.jpg")
    (tmp_path / "00000.tar").write_bytes(data[:at] + b"\xff" * 512 + data[at + 512 :])
    records, rejected = read_all(tmp_path)
    assert [r.key for r in records] == ["a", "b"]
    assert [(r.key, r.reason) for r in rejected] == [("", "corrupt_tar"), ("c", "missing_in_tar"), ("d", "missing_in_tar")]


def test_an_announced_size_costs_no_memory(tmp_path):
    """A header that promises 8 GB, and a pax header that promises 1 GB."""
    for kind, size in ((tarfile.REGTYPE, 8 << 30), (tarfile.XHDTYPE, 1 << 30), (tarfile.GNUTYPE_LONGNAME, 1 << 30)):
        info = tarfile.TarInfo("1.jpg")
        info.type, info.size = kind, size
        head = tar_bytes(sample("0")).rstrip(b"\0")
        data = head + bytes(-len(head) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        records, rejected = read_tar(tmp_path, data)
        assert [r.key for r in records] == ["0"]
        assert rejected[-1].reason in ("truncated_tar", "corrupt_tar")


@pytest.mark.parametrize(
    "record", [b"9" * 5000 + b" path=x\n", b"0 path=x\n", b"99 path=x\n", b"10 no equals\n", b"18 size=" + b"9" * 9 + b"x\n"]
)
def test_hostile_pax_headers(tmp_path, record):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    files = tar_bytes(sample("0"))
    data = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512) + files
    records, rejected = read_tar(tmp_path, data)
    assert not records and [r.reason for r in rejected] == ["corrupt_tar"]
