"""The verb inspect: what a person learns about raw data before it is ingested."""

import json

import pytest
from archives import jpeg, karpathy_image, sample, tar_bytes, write_img2dataset, write_karpathy
from test_ingest import CFG

from blip_core.__main__ import main
from blip_core.inspect import inspect


def test_a_whole_crawl(tmp_path):
    keys = [f"{i:09d}" for i in range(12)]
    write_img2dataset(tmp_path, "00000", keys, failed={keys[3]: "failed_to_download", keys[5]: "failed_to_download"})
    write_img2dataset(tmp_path, "00001", ["a", "b"])
    (tmp_path / "00002.tar").write_bytes(tar_bytes([*sample("c", "x" * 200), ("d.jpg", b"<html>"), ("d.txt", b"x\n")]))
    text = inspect(tmp_path, cfg=CFG)
    for line in (
        f"{tmp_path}: webdataset, 3 units",
        "looked at    all 16 samples",
        "usable       12 images with 12 texts",
        "splits       none named; a clean set is dealt 80/10/10 by image",
        "per image    1 to 1 texts, 1.00 on average; words in a text 2 to 2",
        "sizes        short side 36 to 36, long side 40 to 40; most often 40x36 (12 of 12)",
        "  000000000  40x36  picture 000000000",
        "set aside    4 (25.0% of the texts)",
        "       2  failed_to_download: img2dataset could not get the image",
        "          first: 000000003 at 00000.parquet:row 3: 000000003 is gone",
        "       1  not_an_image: no JPEG, PNG, WebP or GIF\n          first: d at 00002.tar:d.jpg: ",
        "       1  text_too_long: ",
    ):
        assert line in text


def test_a_limited_look_goes_to_all_parts(tmp_path):
    write_karpathy(tmp_path, [karpathy_image(f"n{i}", i, ["train", "val", "test"][i % 3]) for i in range(30)])
    text = inspect(tmp_path, cfg=CFG, limit=9)
    assert "looked at    9 samples, up to 3 of each of 3 units; --limit 0 looks at all" in text
    assert "splits       test 3, train 3, val 3" in text and "2 to 2 texts" in text and "(+1)" in text
    assert "looked at    all 30 samples" in inspect(tmp_path, cfg=CFG, limit=0)


def test_hostile_texts_stay_on_their_line(tmp_path):
    files = [("a.jpg", jpeg("a")), ("a.json", json.dumps(["\x1b[31mred\nline\u202e", "x"]).encode())]
    (tmp_path / "0.tar").write_bytes(tar_bytes([*files, ("b\udcff.jpg", b"x"), *sample("c", "\x1b]0;title\x07")]))
    text = inspect(tmp_path, cfg=CFG)
    assert all(c == "\n" or c.isprintable() for c in text)


def test_the_verb(tmp_path, capsys):
    write_karpathy(tmp_path / "clean", [karpathy_image("n0", 0, "train")])
    assert main(["inspect", str(tmp_path / "clean")]) == 0
    assert "karpathy, 1 units" in capsys.readouterr().out
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip/photos.zip").write_bytes(b"")
    for place, message in (("zip", "photos.zip. Expected one of\n  webdataset: "), ("nowhere", "no such file or folder")):
        assert main(["inspect", str(tmp_path / place)]) == 1
        assert message in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "clean"), "--limit", "-1"]) == 1


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar_bytes([("a.jpg", b"<html>"), ("a.txt", b"x")]))
    with pytest.raises(ValueError, match="(?s)no usable image with a text.*1  not_an_image"):
        inspect(tmp_path, cfg=CFG)
