"""Every file below a part is read, or told: whatever the format, whatever lies beside, whichever way it is linked."""

import gzip
import json
import os
import shutil
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.files.content import hash64
from blip_core.intake.account import Account, hashed
from blip_core.intake.formats import Record, format_module
from blip_core.intake.sources import look, open_source
from blip_core.intake.walk import below
from tests.intake.test_formats_fuzzed import WRITERS, karpathy, parquet, plain_tar, sidecar, table_csv
from tests.intake.test_salesforce import write_images
from tests.stages.test_ingest import CFG, data, quarantine, run  # noqa: F401
from tests.support.archives import jpeg, sample, tar_bytes, write_img2dataset


def read(root: Path, tmp_path: Path) -> tuple[list[Record], set[str], Account]:
    """Records of a folder, the files that they and their units name, and what became of the rest."""
    source = look(str(root), CFG.remote, scratch=tmp_path / "scratch")
    items = [item for unit in source.units for item in format_module(source.format).read(unit)]
    used = {name for unit in source.units for name in unit.files} | {item.file for item in items if item.file}
    return [i for i in items if isinstance(i, Record)], used, source.account(hashed(used), texts=100)


@pytest.mark.parametrize("write", WRITERS)
def test_the_counts_add_up_to_what_lies_there(tmp_path, write):
    """Something of every kind that nobody reads beside a data set of every format."""
    root = tmp_path / "set"
    write(root)
    whole = set(below(root).names)
    _, used, account = read(root, tmp_path)
    assert used == whole and not account.rows and not account.aside

    (root / "more/and/deeper").mkdir(parents=True)
    strange = {
        "more/photo.bin": b"\x00\x01",
        "more/pictures.zip": b"PK",
        "more/numbers.csv": b"x,y\n1,2\n",
        "more/and/deeper/list.json": json.dumps({"data": [{"img": "a.jpg"}]}).encode(),
    }
    for name, content in strange.items():
        (root / name).write_bytes(content)
    pq.write_table(pa.table({"id": [1], "score": [0.5]}), root / "more/other.parquet")
    (root / "README.md").write_text("notes")
    (root / ".hidden").write_text("x")
    (root / "more/gone").symlink_to(tmp_path / "nowhere")
    (root / "more/itself").symlink_to(root / "more/itself")
    _, used, account = read(root, tmp_path)
    told = {row.where: row for row in account.rows}
    assert used == whole and set(told) == {*strange, "more/other.parquet", "more/gone", "more/itself"}
    assert account.aside == {"hidden": 1, "notes": 1}
    assert {row.reason for row in account.rows} == {"not_understood", "bad_link"} and all(row.lost >= 1 for row in account.rows)
    assert "'x', 'y'" in told["more/numbers.csv"].detail and "'id', 'score'" in told["more/other.parquet"].detail
    assert "data, img" in told["more/and/deeper/list.json"].detail and "unpack" in told["more/pictures.zip"].detail


def test_a_list_of_a_split_that_names_no_picture_is_told(tmp_path):
    """It was taken for read, and its pictures went to any split."""
    root = tmp_path / "set"
    root.mkdir()
    write_images(root, "a.jpg", "b.jpg")
    (root / "c.csv").write_text("image,caption\na.jpg,x\nb.jpg,y\n")
    (root / "trainImages.txt").write_text("a.jpg\n")
    (root / "testImages.txt").write_text("b\n")
    _, _, account = read(root, tmp_path)
    assert [row.where for row in account.rows] == ["testImages.txt"]


@pytest.mark.parametrize("write", [w for w in WRITERS if w is not sidecar])
def test_a_picture_that_no_list_names_is_told(tmp_path, write):
    root = tmp_path / "set"
    write(root)
    (root / "stray").mkdir()
    (root / "stray/zz.jpg").write_bytes(jpeg("zz"))
    _, _, account = read(root, tmp_path)
    assert [(row.where, row.reason, row.lost) for row in account.rows] == [("stray/zz.jpg", "not_listed", 1)]


@pytest.mark.parametrize("write", WRITERS)
def test_a_linked_folder_is_read_as_if_it_lay_here(tmp_path, write):
    """The whole set behind a link, and a part of it."""
    write(tmp_path / "real")
    (tmp_path / "set").symlink_to(tmp_path / "real")
    records, used, account = read(tmp_path / "set", tmp_path)
    assert records and used == set(below(tmp_path / "real").names) and not account.rows


@pytest.mark.parametrize("write", [plain_tar, parquet, sidecar, table_csv])
def test_half_of_a_crawl_behind_a_link(tmp_path, write):
    (tmp_path / "web").mkdir()
    write(tmp_path / "web/a")
    write(tmp_path / "elsewhere")
    (tmp_path / "web/b").symlink_to(tmp_path / "elsewhere")
    records, used, account = read(tmp_path / "web", tmp_path)
    alone, _, _ = read(tmp_path / "web/a", tmp_path)
    assert len(records) == 2 * len(alone) and len({r.key for r in records}) == len(records)
    assert used == set(below(tmp_path / "web").names) and not account.rows


def test_a_link_in_a_circle_ends(tmp_path):
    plain_tar(tmp_path / "web")
    (tmp_path / "web/again").symlink_to(tmp_path / "web")
    (tmp_path / "web/sub").mkdir()
    (tmp_path / "web/sub/up").symlink_to("..")
    records, _, account = read(tmp_path / "web", tmp_path)
    assert len(records) == len({r.key for r in records}) == 3
    assert {(row.where, row.reason) for row in account.rows} == {("again", "bad_link"), ("sub/up", "bad_link")}


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    plain_tar(tmp_path / "web")
    (tmp_path / "web/closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    _, _, account = read(tmp_path / "web", tmp_path)
    assert [(row.where, row.reason) for row in account.rows] == [("closed", "bad_link")] and "Permission" in account.rows[0].detail


@pytest.mark.parametrize("end", ["tar.xz", "tar.bz2", "tgz", "tar.zst"])
def test_packed_tars_are_read_like_the_others(tmp_path, end):
    import bz2
    import lzma

    pack = {"tar.xz": lzma.compress, "tar.bz2": bz2.compress, "tgz": gzip.compress, "tar.zst": lambda d: bytes(pa.compress(d, "zstd"))}[end]
    (tmp_path / "web").mkdir()
    (tmp_path / "web/0.tar").write_bytes(tar_bytes(sample("a")))
    (tmp_path / f"web/1.{end}").write_bytes(pack(tar_bytes(sample("b"))))
    records, _, account = read(tmp_path / "web", tmp_path)
    assert [r.texts for r in records] == [("picture a",), ("picture b",)] and not account.rows


def test_tars_of_one_stem_are_read_each(tmp_path):
    """Packed and plain, in a folder and named one by one."""
    web = tmp_path / "data/web"
    web.mkdir(parents=True)
    (web / "0.tar").write_bytes(tar_bytes(sample("a")))
    (web / "0.TAR.GZ").write_bytes(gzip.compress(tar_bytes(sample("a"))))
    records, used, account = read(web, tmp_path)
    assert len(records) == len({r.key for r in records}) == len(used) == 2 and not account.rows
    cfg = CFG.model_copy(update={"web": ("web/0.tar", "web/0.TAR.GZ")})
    assert len(open_source(tmp_path / "data", "web", cfg, scratch=tmp_path / "scratch").units) == 2


def test_what_is_called_like_notes_and_holds_samples_is_told(tmp_path):
    """A name that begins as a README's says nothing of a table, a picture or an archive; neither do boxes of a list of texts, nor a
    download that is empty."""
    root = tmp_path / "set"
    table_csv(root)
    strange = {
        "manifest.jsonl": b'{"a": 1}\n{"a": 2}\n',
        "state-of-the-art.csv": b"x,y\n1,2\n",
        "manifest.json": b'[{"a": "b.jpg", "c": "two"}]',
        "readme-pictures.zip": b"PK",
        "license.png": jpeg("license"),
        "regions.json": b'[{"img": "a.jpg", "phrase": "left man", "bbox": [1, 2, 3, 4]}]',
        "empty.zip": b"",
        "empty.jpg": b"",
    }
    notes = {
        "README-old.txt": b"x",
        "dataset_info.json": b"{}",
        "sub/manifest.json": b'{"files": {}}',
        "boxes.json": b'{"categories": [1]}',
        "nothing": b"",
    }
    (root / "sub").mkdir()
    for name, content in (strange | notes).items():
        (root / name).write_bytes(content)
    _, _, account = read(root, tmp_path)
    told = {row.where: row for row in account.rows}
    assert set(told) == set(strange) and account.aside.total() == len(notes)
    assert told["empty.zip"].detail == "an empty file" and told["license.png"].reason == "not_listed"


def test_other_modalities_beside_pictures_are_counted_and_left(tmp_path):
    """As in tars: beside a list they are no fault, beside sidecars no pictures that want a text."""
    for write in (table_csv, sidecar):
        root = tmp_path / write.__name__
        write(root)
        for name in ("a.depth.png", "a.seg.png"):
            (root / name).write_bytes(jpeg(name))
        (root / "a.jpg.json").write_text("{}")
        records, used, account = read(root, tmp_path)
        assert len(records) == 2 and not account.rows
        assert account.aside["beside a picture"] + len(used & {"a.depth.png", "a.seg.png"}) == 3


# ingest


def test_what_is_not_understood_counts_against_the_limit(data, tmp_path):  # noqa: F811
    """A list that is as large as the tars stands for as many texts as they hold."""
    size = sum(p.stat().st_size for p in (data / "web").iterdir())
    (data / "web/more.zip").write_bytes(b"PK" + bytes(size))
    metrics = run(data, tmp_path, max_rejected=0.6)
    assert 0.4 < metrics["rejected_share_web"] < 0.6 and metrics["rejected_not_understood"] == 1
    assert [r["where"] for r in quarantine(tmp_path) if r["reason"] == "not_understood"] == ["web/more.zip"]
    with pytest.raises(ValueError, match="(?s)web: .*% of the texts were set aside.*1  not_understood"):
        run(data, tmp_path, max_rejected=0.3)


def test_every_text_of_the_crawl_has_a_fate(data, tmp_path):  # noqa: F811
    """Texts that an image has twice, a picture without one, a picture that nobody names, notes: all are counted."""
    twice = [("twice.jpg", jpeg("twice")), ("twice.txt", b"a dog\na dog\na cat"), ("bare.jpg", jpeg("bare"))]
    (data / "web/00002.tar").write_bytes(tar_bytes(twice))
    (data / "web/loose.jpg").write_bytes(jpeg("loose"))
    (data / "web/LICENSE").write_text("free")
    metrics = run(data, tmp_path)
    names = ("images_web", "texts_web", "images_without_text", "rejected_duplicate_text", "rejected_not_listed", "aside_files_web")
    assert [metrics[name] for name in names] == [22, 22, 1, 1, 1, 1]
    assert run(data, tmp_path / "strict", without_text="reject")["rejected_missing_text"] == 1


def test_a_side_by_side_of_all_formats_is_told_whole(tmp_path):
    """One folder with a data set of every format in it: what the chosen format does not read is told, file by file."""
    root = tmp_path / "all"
    for write in WRITERS:
        write(root / write.__name__)
    write_img2dataset(root, "00000", ["000000000"])
    _, used, account = read(root, tmp_path)
    told = {row.where for row in account.rows}
    names = below(root).names
    assert len(used) + len(told) + account.aside.total() == len(names) and not used & told
    shutil.rmtree(root)


@pytest.mark.parametrize("name", ["café0.jpg", "café0.JPG"])
def test_an_accent_may_be_one_character_in_the_list_and_two_on_the_disk(tmp_path, name):
    """As between macOS and the rest; the ending may differ in case as well."""
    root = tmp_path / "set"
    root.mkdir()
    (root / unicodedata.normalize("NFD", name)).write_bytes(jpeg("café0"))
    (root / "c.csv").write_text(unicodedata.normalize("NFC", "image,caption\ncafé0.jpg,one\n"), encoding="utf-8")
    records, used, account = read(root, tmp_path)
    assert [r.texts for r in records] == [("one",)] and not account.rows and len(used) == 2


def test_an_accent_of_a_text_beside_its_picture(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (root / unicodedata.normalize("NFD", "café.jpg")).write_bytes(jpeg("café"))
    (root / unicodedata.normalize("NFC", "café.txt")).write_text("one")
    (record,), used, account = read(root, tmp_path)
    assert record.texts == ("one",) and len(used) == 2 and not account.rows


def test_karpathy_pictures_are_claimed_by_its_records(tmp_path):
    karpathy(tmp_path / "set")
    records, used, _ = read(tmp_path / "set", tmp_path)
    assert {hash64(r.file) for r in records} <= hashed(used) and all(r.file for r in records)
