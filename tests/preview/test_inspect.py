"""The verb inspect: what a person learns about raw data before it is ingested."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.__main__ import main
from blip_core.config.intake import FieldsConfig
from blip_core.preview.enough import Least
from blip_core.preview.inspect import inspect
from blip_core.preview.sampling import spread
from tests.intake.test_salesforce import write_images
from tests.stages.test_ingest import CFG
from tests.support.archives import jpeg, karpathy_image, sample, tar_bytes, write_img2dataset, write_karpathy


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
        "fields       3 beside picture and text\n      12  of 13: key, text\n      12  of 13: status, text\n      12  of 13: url, text\n",
        "languages    und 12 (und: too short to tell)",
        "       0  boilerplate: at more than 3 of the 12 images\n      10  file_name: 'picture 000000000', ",
        "       0  markup\n",
        "       0  repeats\n",
        "per image    1 to 1 texts, 1.00 on average; words in a text 2 to 2",
        "sizes        short side 36 to 36, long side 40 to 40; most often 40x36 (12 of 12)",
        "  000000000  40x36  picture 000000000",
        "set aside    4 of 16 texts, 25.0%",
        "       2  failed_to_download: img2dataset could not get the image",
        "          first: 000000003 at 00000.parquet:row 3: 000000003 is gone",
        "       1  not_an_image: no JPEG, PNG, WebP or GIF\n          first: d at 00002.tar:d.jpg: ",
        "       1  text_too_long: ",
    ):
        assert line in text


def test_keys_of_the_data_are_those_that_the_chain_will_use(tmp_path):
    write_img2dataset(tmp_path / "data/web", "00000", ["7"])
    write_karpathy(tmp_path / "data/clean", [karpathy_image("n0", 0, "val"), karpathy_image("n1", 1, "train")])
    crawl = inspect(tmp_path / "data/web", cfg=CFG, data=tmp_path / "data")
    assert "first rows   by the keys of the chain, which `blip history` takes\n  web-7  " in crawl
    clean = inspect(tmp_path / "data/clean", cfg=CFG, data=tmp_path / "data")
    assert "\n  val-" in clean and "\n  train-" in clean
    elsewhere = inspect(tmp_path / "data/web", cfg=CFG)
    assert "\n  7  " in elsewhere and "the chain puts web- before those of a crawl" in elsewhere


def test_a_limited_look_goes_to_all_parts(tmp_path):
    write_karpathy(tmp_path, [karpathy_image(f"n{i}", i, ["train", "val", "test"][i % 3]) for i in range(30)])
    text = inspect(tmp_path, cfg=CFG, limit=9)
    assert "looked at    9 of some 30 samples, in 3 units, of each as its size says; --limit 0 looks at all" in text
    assert "splits       test 3, train 3, val 3" in text and "2 to 2 texts" in text and "(+1)" in text
    assert "looked at    all 30 samples" in inspect(tmp_path, cfg=CFG, limit=0)


def write_rows(folder: Path, captions: list[tuple[str, str]]) -> None:
    """A table of pictures, with split and caption of each."""
    write_images(folder, *(f"{i}.jpg" for i in range(len(captions))))
    rows = [{"image": f"{i}.jpg", "split": split, "caption": caption} for i, (split, caption) in enumerate(captions)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_shares_of_a_sample_are_those_of_the_whole(tmp_path):
    """Small splits have units of their own, and no more of the sample for that."""
    write_rows(tmp_path, [("train" if i < 1600 else "val" if i < 1700 else "test", f"dog {i}") for i in range(1800)])
    text = inspect(tmp_path, cfg=CFG, limit=180)
    assert "splits       test 10, train 160, val 10 (of what was looked at)" in text
    assert "looked at    180 of some 1800 samples, in 4 units" in text


@pytest.mark.parametrize(("every", "hit"), [(20, 5), (90, 0)])
def test_a_limit_in_images_holds_for_the_whole(tmp_path, every, hit):
    """The screen's 25 images are the tenth of it in a tenth of the rows: 50 of 1,000 images are more, 11 are not."""
    write_rows(tmp_path, [("train", "buy now" if i % every == 0 else f"dog {i}") for i in range(1000)])
    cfg = CFG.model_copy(update={"screens": CFG.screens.model_copy(update={"max_images": 25})})
    assert f"  {hit:6d}  boilerplate: at more than 2 of the 100 images looked at" in inspect(tmp_path, cfg=cfg, limit=100)
    whole = 50 if hit else 0
    assert f"  {whole:6d}  boilerplate: at more than 25 of the 1000 images" in inspect(tmp_path, cfg=cfg, limit=0)


def test_of_many_units_those_are_drawn_that_stand_for_the_whole():
    """A large one may be drawn again, small ones are drawn in their turn."""
    units = [SimpleNamespace(name=str(i), size=9900 if i == 0 else 100) for i in range(100)]
    chosen = {unit.name: each for unit, each in spread(units, 200, most=10)}
    assert chosen["0"] == 100 and len(chosen) == 6 and sum(chosen.values()) == 200


def test_the_samples_of_tars_are_estimated_by_their_bytes(tmp_path):
    for name, count in (("0", 100), ("1", 20)):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(m for i in range(count) for m in sample(f"{name}{i}")))
    number = int(re.search(r"of some (\d+) samples", inspect(tmp_path, cfg=CFG, limit=12))[1])
    assert 100 <= number <= 140


def told_too_few(text: str) -> list[str]:
    return [line.removeprefix("too few      ") for line in text.splitlines() if line.startswith("too few")]


def test_what_is_too_few_for_later_stages(tmp_path):
    """By the part that the path is; what names no part is told of as either, and splits that are not named are dealt."""
    least = Least(images=30, heldout=5, controls=9, per_image=2)
    for place in ("data/web", "elsewhere"):
        write_img2dataset(tmp_path / place, "00000", [f"{i:09d}" for i in range(12)])
    crawl = "12 images with a text, validate.min_images is 30"
    assert told_too_few(inspect(tmp_path / "data/web", cfg=CFG, data=tmp_path / "data", least=least)) == [f"web: {crawl}"]
    both = told_too_few(inspect(tmp_path / "elsewhere", cfg=CFG, data=tmp_path / "data", least=least))
    assert both == [
        f"as a crawl: web: {crawl}",
        "as a clean set: train: 10 images with a text, validate.min_images is 30",
        "as a clean set: val: 1 images with a text, validate.min_heldout_images is 5",
        "as a clean set: test: 1 images with a text, validate.min_heldout_images is 5",
        "as a clean set: val: half of it gives 1 planted true pairs at score.controls_per_image 2, gate.min_controls is 9",
    ]
    write_karpathy(tmp_path / "data/clean", [karpathy_image(f"n{i}", i, ["train", "val", "test"][i % 3]) for i in range(24)])
    said = "val: half of it gives 8 planted true pairs at score.controls_per_image 2, gate.min_controls is 9"
    train = "train: 8 images with a text, validate.min_images is 30"
    assert told_too_few(inspect(tmp_path / "data/clean", cfg=CFG, data=tmp_path / "data", least=least)) == [train, said]
    assert told_too_few(inspect(tmp_path / "data/clean", cfg=CFG, data=tmp_path / "data", least=least, limit=6)) == []
    assert told_too_few(inspect(tmp_path / "data/clean", cfg=CFG, data=tmp_path / "data", least=Least(8, 8, 8, 2))) == []


def test_what_the_screens_would_hit(tmp_path):
    """Whether they are on or not, and as the texts were found."""
    said = [
        "Buy now!",
        "buy now",
        "BUY NOW",
        "buy, now",
        "IMG_2231.JPG",
        "logo.png",
        "&lt;b&gt;",
        "dog dog dog",
        "ein roter Ball auf der Wiese",
    ]
    files = [member for i, text in enumerate(said) for member in sample(f"{i}", text)]
    (tmp_path / "0.tar").write_bytes(tar_bytes([*files, ("9.jpg", jpeg("9")), ("9.json", b'["dog dog dog", "Dog, dog, dog"]')]))
    cfg = CFG.model_copy(update={"texts": CFG.texts.model_copy(update={"rule": "paper"})})
    text = inspect(tmp_path, cfg=cfg)
    for line in (
        "       4  boilerplate: at more than 3 of the 10 images; most often 'buy now' 4, 'Dog, dog, dog' 2\n",
        "       2  file_name: 'IMG_2231.JPG', 'logo.png'\n",
        "       1  markup: '&lt;b&gt;'\n",
        "       3  repeats: 'dog dog dog', 'Dog, dog, dog'\n",
        "de 1",
    ):
        assert line in text, text
    screens = CFG.screens.model_copy(update={"languages": ("en",)})
    assert "       1  language: in another than en" in inspect(tmp_path, cfg=CFG.model_copy(update={"screens": screens}))


def test_declared_fields_and_dealt_splits(tmp_path):
    write_images(tmp_path, "train/a.jpg", "train/b.jpg")
    (tmp_path / "train/metadata.csv").write_text("file_name,text,titel\na.jpg,x,ein Ball\nb.jpg,y,ein Hund\n")
    dealt = CFG.model_copy(update={"split": CFG.split.model_copy(update={"by": "dealt", "val": 0.6, "test": 0.6})})
    fields = FieldsConfig(image=None, text="titel", split=None)
    text = inspect(tmp_path, cfg=dealt, fields=fields)
    assert "ein Ball" in text and "splits       train 2; by ingest.split a clean set is dealt 40/30/30 by image" in text


def test_a_folder_of_two_formats_is_said_to_be_one(tmp_path):
    write_karpathy(tmp_path, [karpathy_image("n0", 0, "train")])
    (tmp_path / "c.csv").write_text("image,caption\nimages/n0.jpg,x\n")
    assert "there too    table: not read unless ingest.web_format or clean_format names it" in inspect(tmp_path, cfg=CFG)


def test_what_lies_there_instead_is_told(tmp_path):
    """A mistyped name, a folder above the data, pictures without texts."""
    write_karpathy(tmp_path / "data/clean", [karpathy_image("n0", 0, "train")])
    write_images(tmp_path / "pictures", *(f"{i}.jpg" for i in range(12)))
    with pytest.raises(ValueError, match=r"no such file or folder \(.*data holds clean\)"):
        inspect(tmp_path / "data/claen", cfg=CFG)
    with pytest.raises(ValueError, match=r"found 1 entries: clean/.* 1 .jpg, 1 .json. Below it lie clean/ \(karpathy\): name one"):
        inspect(tmp_path / "data", cfg=CFG)
    with pytest.raises(ValueError, match="found 12 entries: .*; files by their ending: 12 .jpg.\nNearest is sidecar.*Expected one of"):
        inspect(tmp_path / "pictures", cfg=CFG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no known format; found nothing. Expected one of"):
        inspect(tmp_path / "empty", cfg=CFG)


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


def test_a_table_without_rows_is_no_division_by_zero(tmp_path):
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="(?s)no usable image with a text.*all 0 samples.*set aside    nothing"):
        inspect(tmp_path, cfg=CFG)
