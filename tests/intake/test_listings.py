"""Tables of images and captions: imagefolder, CSV and its kin, Parquet with the images within, and lists of URLs."""

import base64
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.config.intake import FieldsConfig
from blip_core.intake.account import account
from blip_core.intake.formats import imagefolder, parquet, recognise, rows, table
from blip_core.intake.walk import below
from tests.intake.test_salesforce import write_images
from tests.support.archives import jpeg, read_all


def texts_by_image(folder: Path) -> dict[str, tuple[str, ...]]:
    """Every record's texts by its picture's name, when nothing is set aside."""
    records, rejected = read_all(folder)
    assert not rejected
    names = {jpeg(p.stem): p.name for p in folder.rglob("*.[jp][pn]g")}
    assert len({r.key for r in records}) == len(records)
    return {names[r.image]: r.texts for r in records}


# imagefolder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_with_split_folders(tmp_path, kind):
    for split in ("train", "validation", "test"):
        write_images(tmp_path / split, f"{split}1.jpg", f"{split}2.jpg")
        data = [{"file_name": f"{split}{i}.jpg", "text": f'a "{split}", {i}', "view": "pa"} for i in (1, 2)]
        path = tmp_path / split / f"metadata.{kind}"
        if kind == "csv":
            lines = "".join('{file_name},"{0}",pa\r\n'.format(r["text"].replace('"', '""'), **r) for r in data)
            path.write_text("\ufefffile_name,text,view\r\n" + lines, newline="")
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in data))
        else:
            pq.write_table(pa.Table.from_pylist(data), path)
    assert recognise(tmp_path) is imagefolder
    records, rejected = read_all(tmp_path)
    assert not rejected
    found = {(r.split, r.texts[0]) for r in records if r.image == jpeg(r.key.rpartition("_")[2])}
    words = {"train": "train", "validation": "val", "test": "test"}
    assert found == {(words[s], f'a "{s}", {i}') for s in words for i in (1, 2)}
    assert records[0].where == f"test/metadata.{kind}:" + {"csv": "line 2", "jsonl": "line 1", "parquet": "row 0"}[kind]


def test_equal_names_in_two_split_folders_are_two_pictures(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, "0001.jpg")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\n0001.jpg,{split}\n")
    records, _ = read_all(tmp_path)
    assert len({r.image_id for r in records}) == 2


def test_metadata_at_the_root_names_the_split_by_folder(tmp_path):
    write_images(tmp_path, "train/a.jpg", "test/b.jpg")
    (tmp_path / "metadata.csv").write_text("FILE_NAME,Caption\ntrain/a.jpg,one\ntest/b.jpg,two\n")
    records, _ = read_all(tmp_path)
    assert {(r.split, r.texts) for r in records} == {("train", ("one",)), ("test", ("two",))}


def test_metadata_without_captions_is_an_error(tmp_path):
    """Common loaders drop such a file without a word."""
    write_images(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.jpg,3\n")
    with pytest.raises(ValueError, match=r"metadata.csv: no column for captions .*\['file_name', 'label'\]"):
        recognise(tmp_path).units(tmp_path)


# CSV, TSV, JSON lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "filepath\ttitle\na.jpg\tone\nb.jpg\ttwo\n"),  # open_clip
        ("train.tsv", "FilePath\tTITLE\r\na.jpg\tone\r\nb.jpg\ttwo\r\n"),
        ("captions.csv", "image,caption\na.jpg,one\nb.jpg,two\n"),
        ("traindata.csv", "id,name,caption\n1, a.jpg, one\n2, b.jpg, two\n"),  # ROCO
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| one\nb.jpg| 0| two\n"),  # Flickr30k
        ("semi.csv", '\ufeffPath;Text\n"a.jpg";"one"\n"b.jpg";two'),
        ("bare.tsv", "a.jpg\tone\nb.jpg\ttwo\n"),
        ("bare.csv", "\n1,a.jpg,one\n2,b.jpg,two\n"),
        ("list.jsonl", '{"file_name": "a.jpg", "text": "one"}\n\n{"text": "two", "file_name": "b.jpg"}\n'),
    ],
)
def test_tables_in_use(tmp_path, name, content):
    write_images(tmp_path / "images", "a.jpg", "b.jpg")
    (tmp_path / name).write_bytes(content.encode())
    assert recognise(tmp_path) is table
    assert texts_by_image(tmp_path) == {"a.jpg": ("one",), "b.jpg": ("two",)}


def test_names_without_an_extension_and_a_parquet_of_paths(tmp_path):
    write_images(tmp_path / "images", "a.jpg", "b.png")
    pq.write_table(pa.table({"name": ["a", "b"], "caption": ["one", "two"]}), tmp_path / "t.parquet")
    assert texts_by_image(tmp_path) == {"a.jpg": ("one",), "b.png": ("two",)}


def test_several_rows_of_one_image_meet_wherever_they_stand(tmp_path):
    """Each caption in a row of its own, the images in turn; more rows than a unit holds."""
    names = [f"n{i}.jpg" for i in range(700)]
    write_images(tmp_path, *names)
    lines = [f'{n},"caption {c}, of\n {n}"' for c in range(3) for n in names]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "\n".join(lines))
    units = recognise(tmp_path).units(tmp_path)
    assert len(units) == 3
    records, rejected = read_all(tmp_path)
    assert not rejected and [r.where for r in records] == [f"captions.csv:line {2 + 2 * i}" for i in range(700)]
    assert all(r.texts == tuple(f"caption {c}, of\n {r.key}.jpg" for c in range(3)) and r.image == jpeg(r.key) for r in records)


def test_splits_by_column_come_in_units_of_their_own(tmp_path):
    words = ["train", "val", "test", "restval", "dev", "holiday", ""]
    write_images(tmp_path, *(f"{i}.jpg" for i in range(len(words))))
    (tmp_path / "c.csv").write_text("Image,Caption,SPLIT\n" + "".join(f"{i}.jpg,x,{w}\n" for i, w in enumerate(words)))
    records, rejected = read_all(tmp_path)
    assert {r.key: r.split for r in records} == {"0": "train", "1": "val", "2": "test", "3": "train", "4": "val", "6": None}
    assert [(r.where, r.reason) for r in rejected] == [("c.csv:line 7", "unknown_split")]
    assert [u.name for u in table.units(tmp_path)] == ["c.csv train 0", "c.csv val 2", "c.csv test 4", "c.csv any 5"]


def test_flickr30k_keeps_five_captions_as_json_in_a_cell(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "flickr_annotations_30k.csv").write_text('raw,split,filename\n"[""one"", ""two""]",train,a.jpg\n')
    assert texts_by_image(tmp_path) == {"a.jpg": ("one", "two")}


HOSTILE = [
    (b'a.jpg,"a quote that never closes\n', "bad_row"),
    (b"a.jpg,a caption, with a comma\n", "bad_row"),
    (b"a.jpg\n", "bad_row"),
    (b",no image\n", "bad_row"),
    (b"gone.jpg,x\n", "missing_image"),
    (b"../../etc/passwd,x\n", "unsafe_key"),
    (b"http://a.example/1.jpg,x\n", "missing_image"),
    (b"\0,x\n", "missing_image"),
    (b"a\rb,x\n", "bad_row"),
]


@pytest.mark.parametrize(("line", "reason"), HOSTILE)
def test_a_bad_line_costs_itself_alone(tmp_path, line, reason):
    write_images(tmp_path, "a.jpg", "b.jpg", "z.jpg")
    (tmp_path / "c.csv").write_bytes(b"image,caption\nb.jpg,before\n" + line + b'z.jpg,"after, or so"\n')
    records, rejected = read_all(tmp_path)
    assert [r.texts for r in records] == [("before",), ("after, or so",)]
    assert [(r.where, r.reason) for r in rejected] == [("c.csv:line 3", reason)]


def test_bytes_that_are_no_utf8_are_left_for_ingest_to_tell(tmp_path):
    from blip_core.config.intake import TextLimits
    from blip_core.texts.clean import clean_text

    write_images(tmp_path, "a.jpg")
    (tmp_path / "c.csv").write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    (record,), _ = read_all(tmp_path)
    with pytest.raises(ValueError, match="bad_encoding"):
        clean_text(record.texts[0], TextLimits(max_chars=100, rule="keep", max_words=9))


def test_quotes_in_tsv(tmp_path):
    """Half of the writers quote, half write a quote as it is; a line is a row in any case."""
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "c.tsv").write_text('filepath\ttitle\na.jpg\t"say ""hi"""\nb.jpg\t"open\nc.jpg\t5" nail\n')
    assert texts_by_image(tmp_path) == {"a.jpg": ('say "hi"',), "b.jpg": ('"open',), "c.jpg": ('5" nail',)}


def test_types_in_json_lines(tmp_path):
    write_images(tmp_path, *(f"{i}.jpg" for i in range(8)))
    values = ["x", 7, True, None, ["a", "b"], [1], {"a": 1}, float("nan")]
    lines = [json.dumps({"image": f"{i}.jpg", "caption": v}) for i, v in enumerate(values)]
    (tmp_path / "c.jsonl").write_text("\n".join([*lines, '{"image": ', "[]", "[" * 100_000]))
    records, rejected = read_all(tmp_path)
    assert {r.key: r.texts for r in records} == {"0": ("x",), "3": (), "4": ("a", "b"), "7": ()}
    reasons = ["bad_row", "bad_row", "bad_row", "bad_row", "bad_json", "bad_row", "bad_json"]
    lines = [2, 3, 6, 7, 9, 10, 11]
    assert {int(r.where.rpartition(" ")[2]): r.reason for r in rejected} == dict(zip(lines, reasons, strict=True))


def test_utf16_and_broken_tables_are_told(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,x\n")
    (tmp_path / "excel.csv").write_text("image\tcaption\na.jpg\tx\n", encoding="utf-16")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and nothing")
    records, rejected = read_all(tmp_path)
    assert len(records) == 1
    told = {row.where: (row.reason, row.detail) for row in account(below(tmp_path), {"a.jpg", "c.csv"}.__contains__, texts=1).rows}
    assert not rejected and set(told) == {"excel.csv", "p.parquet"}
    assert told["excel.csv"][0] == "not_understood" and "UTF-16" in told["excel.csv"][1] and "Parquet" in told["p.parquet"][1]


PEAK = """
import sys, tracemalloc
from pathlib import Path
from blip_core.intake.formats import listing, recognise
root = Path(sys.argv[1])
units = recognise(root).units(root)
tracemalloc.start()
count = sum(1 for _ in listing.read(units[0]))
print(len(units), count, tracemalloc.get_traced_memory()[1])
"""


def test_the_first_pass_keeps_no_rows(tmp_path):
    """A table of 30 MB costs both passes far less than its size; in a process of its own, as threads of the test runner would count."""
    write_images(tmp_path, "a.jpg")
    with (tmp_path / "c.csv").open("w") as f:
        f.write("image,caption\na.jpg,x\n")
        f.writelines(f"gone{i}.jpg,{'word ' * 200}\n" for i in range(30_000))
    told = subprocess.run([sys.executable, "-c", PEAK, tmp_path], check=True, capture_output=True, text=True).stdout
    num_units, count, peak = map(int, told.split())
    assert count == 1000 and num_units == 31
    assert peak < 3_000_000
    assert sum(isinstance(r.values, dict) for r in rows.scan(rows.open_table(tmp_path / "c.csv"))) == 30_001


# Parquet with images


def write_parquet(path: Path, names: list[str], *, text: str = "text", group: int = 4, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"image": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in names], text: [f"picture {n}" for n in names]}
    pq.write_table(pa.table(data | columns), path, row_group_size=group)


def test_parquet_with_images(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", [f"{split}{i}" for i in range(10)], text="Caption")
    assert recognise(tmp_path) is parquet
    records, rejected = read_all(tmp_path)
    assert not rejected and len(records) == 20 and len(parquet.units(tmp_path)) == 6
    assert all(r.image == jpeg(r.texts[0].partition(" ")[2]) and r.texts[0].startswith(f"picture {r.split}") for r in records)
    assert records[9].where == "data/test-00000-of-00001.parquet:row 9"
    assert records[9].key == "data_test-00000-of-00001-9"


def test_one_picture_in_several_rows_keeps_one_identity(tmp_path):
    write_parquet(tmp_path / "t.parquet", ["a", "a", "b"])
    records, _ = read_all(tmp_path)
    assert [r.image_id == records[0].image_id for r in records] == [True, True, False]


def test_faults_in_parquet(tmp_path):
    write_images(tmp_path, "there.jpg")
    images = [{"bytes": jpeg("a"), "path": None}, {"bytes": None, "path": "there.jpg"}, {"bytes": None, "path": None}, None]
    images += [{"bytes": None, "path": "../../etc/passwd"}, {"bytes": jpeg("a"), "path": None}, {"bytes": jpeg("a"), "path": None}]
    captions = [["one", "two"], ["three"], ["x"], ["x"], ["x"], None, ["x"]]
    pq.write_table(pa.table({"image": images, "captions": captions, "split": ["train"] * 6 + ["holiday"]}), tmp_path / "t.parquet")
    records, rejected = read_all(tmp_path)
    assert [(r.texts, r.image) for r in records] == [(("one", "two"), jpeg("a")), (("three",), jpeg("there")), ((), jpeg("a"))]
    assert [r.reason for r in rejected] == ["missing_image", "missing_image", "unsafe_key", "unknown_split"]
    rows = [{"image": image, "captions": ["one", "two", "three"]} for image in (images[0], images[2])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert [r.lost for r in read_all(tmp_path)[1]] == [3], "all its texts are lost with a picture"


def test_broken_parquet_costs_its_own_part(tmp_path):
    """A file without its footer, and a flipped bit in one row group of another: the other groups are read, and what is lost is counted: of
    the file as its bytes weigh beside those that were read."""
    write_parquet(tmp_path / "a.parquet", ["x"])
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    names = [f"n{i}" for i in range(9)]
    data = {"image": [{"bytes": jpeg(n), "path": None} for n in names], "text": names}
    sink = io.BytesIO()
    pq.write_table(pa.table(data), sink, row_group_size=3, write_page_checksum=True, compression="none", use_dictionary=False)
    raw = bytearray(sink.getvalue())
    raw[raw.index(jpeg("n4")) + 100] ^= 1
    (tmp_path / "b.parquet").write_bytes(raw)
    records, rejected = read_all(tmp_path)
    assert [r.texts[0] for r in records] == ["n0", "n1", "n2", "n6", "n7", "n8"]
    assert [(r.where, r.reason, r.lost) for r in rejected] == [("b.parquet:row 3", "bad_table", 3)]
    (tmp_path / "a.parquet").write_bytes(raw[:-100])
    (row,) = account(below(tmp_path), {"b.parquet"}.__contains__, texts=6).rows
    assert (row.where, row.reason, row.lost) == ("a.parquet", "not_understood", 6) and "Parquet" in row.detail


def test_a_folder_of_nothing_but_broken_parquet_says_so(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=r"found 1 entries: a.parquet \(a.parquet: not a readable Parquet file"):
        recognise(tmp_path)


def test_a_plain_column_of_bytes(tmp_path):
    pq.write_table(pa.table({"jpg": [jpeg("a")], "TXT": ["picture a"]}), tmp_path / "t.parquet")
    (record,), _ = read_all(tmp_path)
    assert (record.texts, record.image) == (("picture a",), jpeg("a"))


# lists of URLs


URL = "http://a.example/1.jpg"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("Train_GCC-training.tsv", f"a bus station\t{URL}\n", "blip fetch .*training.tsv --out FOLDER"),
        ("cc12m.tsv", f"{URL}\ta <PERSON>\n", "blip fetch .*cc12m.tsv --out FOLDER"),
        ("laion.jsonl", json.dumps({"URL": URL, "TEXT": "x", "similarity": 0.3}), "--url URL --text TEXT --out"),
        ("coyo.csv", f"id,url,text\n1,{URL},x\n", "--url url --text text --out"),
        ("sbu.json", json.dumps({"image_urls": [URL], "captions": ["x"]}), "blip fetch .*sbu.json --out"),
        ("ccs_filtered.json", json.dumps([{"url": URL, "caption": "x"}]), "--url url --text caption --out"),
    ],
)
def test_lists_of_urls_are_sent_to_fetch(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"(?s)without images.*{expected}"):
        recognise(tmp_path)


def test_laion_parquet_is_sent_to_fetch(tmp_path):
    rows = {"URL": [URL], "TEXT": ["IMG_2231"], "top_caption": ["a table"], "all_captions": [["a table"]], "punsafe": [0.1]}
    pq.write_table(pa.table(rows), tmp_path / "part-0.parquet")
    with pytest.raises(ValueError, match="blip fetch .*parquet --url URL --text TEXT --out"):
        recognise(tmp_path)


def test_what_is_neither_is_still_unknown(tmp_path):
    (tmp_path / "shop.csv").write_text("name,description,price\nchair,a chair,5\n")
    (tmp_path / "instances.json").write_text('{"info": {"url": "http://a.example"}, "images": [], "categories": []}')
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="no known format"):
        recognise(tmp_path)


def test_splits_are_counted_by_folder_and_file_name(tmp_path):
    for name in ("train.csv", "dev.csv", "other.csv"):
        write_images(tmp_path, f"{name}.jpg")
        (tmp_path / name).write_text(f"image,caption\n{name}.jpg,x\n")
    assert Counter(r.split for r in read_all(tmp_path)[0]) == {"train": 1, "val": 1, None: 1}


def test_an_ending_in_the_other_case_is_found(tmp_path):
    """A list made on Windows; where both are there, each name is its own file."""
    write_images(tmp_path, "a.JPG", "b.jpg", "c.jpg", "c.JPG")
    (tmp_path / "c.JPG").write_bytes(jpeg("other"))
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,one\nb.JPG,two\nc.jpg,three\nd.JPG,four\n")
    records, rejected = read_all(tmp_path)
    assert [(r.texts[0], r.image) for r in records] == [("one", jpeg("a")), ("two", jpeg("b")), ("three", jpeg("c"))]
    assert [r.reason for r in rejected] == ["missing_image"]


@pytest.mark.parametrize("name", ["a.JFIF", "a.tiff", "a.HEIC"])
def test_a_name_without_an_ending_may_be_of_any_kind(tmp_path, name):
    (tmp_path / name).write_bytes(jpeg("a"))
    (tmp_path / "c.csv").write_text("file,caption\na,one\n")
    records, rejected = read_all(tmp_path)
    assert [r.texts for r in records] == [("one",)] and not rejected


# dialects of CSV


def test_spark_writes_a_backslash_before_a_quote(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = ['a.jpg,"a red \\"STOP\\" sign"', 'b.jpg,"one, two"', 'c.jpg,"it says \\"no\\", twice"']
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows]))
    expected = {"a.jpg": ('a red "STOP" sign',), "b.jpg": ("one, two",), "c.jpg": ('it says "no", twice',)}
    assert texts_by_image(tmp_path) == expected


def test_a_backslash_before_another_sign_is_a_sign_of_the_text(tmp_path):
    """Spark writes it as it is; csv would take it away, and swallow the next line where it stands at the end of one."""
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "c.csv").write_text('image,caption\na.jpg,"a \\"red\\" sign"\nb.jpg,"in C:\\new\\x"\nc.jpg,tail \\\n')
    assert texts_by_image(tmp_path) == {"a.jpg": ('a "red" sign',), "b.jpg": ("in C:\\new\\x",), "c.jpg": ("tail \\",)}


def test_a_declared_dialect_is_read(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "c.csv").write_text("""image;caption\na.jpg;'it''s; so'\nb.jpg;'a "b" c'\n""")
    fields = FieldsConfig(image=None, text=None, split=None, csv={"delimiter": ";", "quote": "'"})
    records = [r for unit in table.units(tmp_path, fields) for r in table.read(unit)]
    assert {r.texts for r in records} == {("it's; so",), ('a "b" c',)}


def test_excel_names_its_delimiter(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "c.csv").write_text("sep=;\nimage;caption\na.jpg;one, two, three\n")
    assert texts_by_image(tmp_path) == {"a.jpg": ("one, two, three",)}


# pictures in cells, columns of other names, lists of other endings


@pytest.mark.parametrize("write", ["base64", "data", "hex", "url-safe", "no padding", "database", "python"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_pictures_as_text_are_pictures(tmp_path, write, kind):
    def text(name: str) -> str:
        plain = base64.b64encode(jpeg(name)).decode()
        return {
            "base64": plain,
            "data": f"data:image/jpeg;base64,{plain}",
            "hex": jpeg(name).hex(),
            "url-safe": base64.urlsafe_b64encode(jpeg(name)).decode(),
            "no padding": plain.rstrip("="),
            "database": f"\\x{jpeg(name).hex()}",
            "python": f"b'{plain}'",
        }[write]

    column = "image" if write in ("hex", "database", "python") else "img_b64"
    rows = [{column: text(n), "caption": f"picture {n}"} for n in "ab"] + [{column: text("a"), "caption": "the same"}]
    if kind == "csv":
        lines = [f"{column},caption", *(f'"{r[column]}",{r["caption"]}' for r in rows)]
        (tmp_path / "c.csv").write_text("\n".join(lines))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    else:
        (tmp_path / f"c.{kind}").write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    records, rejected = read_all(tmp_path)
    assert not rejected and {(r.image, r.texts[0]) for r in records} >= {(jpeg(n), f"picture {n}") for n in "ab"}
    assert len({r.key for r in records}) == len(records)


def test_pictures_as_text_without_names_of_columns(tmp_path):
    """OFA's lists: number, text, picture."""
    lines = [f"{i}\tpicture {n}\t{base64.b64encode(jpeg(n)).decode()}\n" for i, n in enumerate("ab")]
    (tmp_path / "ofa.tsv").write_text("".join(lines))
    records, rejected = read_all(tmp_path)
    assert not rejected and [(r.texts, r.image) for r in records] == [((f"picture {n}",), jpeg(n)) for n in "ab"]


def test_a_column_that_is_called_like_files_and_holds_long_texts(tmp_path):
    """No file has such a name; asking the system for one is an error of its own."""
    write_images(tmp_path, "a.jpg")
    (tmp_path / "c.csv").write_text(f"image,filename,caption\n{'word ' * 200},a.jpg,one\n")
    assert texts_by_image(tmp_path) == {"a.jpg": ("one",)}


def test_the_only_column_that_ends_in_caption_is_the_text(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "l.json").write_text(json.dumps([{"image": "a.jpg", "blip_caption": "one", "url": "http://a.example/1"}]))
    assert texts_by_image(tmp_path) == {"a.jpg": ("one",)}


def test_lists_called_json_and_lists_within_an_object(tmp_path):
    """train.json a list, val.json JSON lines, test.json an object that holds the list."""
    names = [f"{split}{i}" for split in ("train", "val", "test") for i in range(2)]
    write_images(tmp_path, *(f"{n}.jpg" for n in names))
    rows = [{"image": f"{n}.jpg", "caption": n} for n in names]
    (tmp_path / "train.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "val.json").write_text("\n".join(map(json.dumps, rows[2:4])))
    (tmp_path / "test.json").write_text(json.dumps({"info": {"year": 2020}, "data": rows[4:]}))
    assert texts_by_image(tmp_path) == {f"{n}.jpg": (n,) for n in names}
    lines = tmp_path / "lines"
    write_images(lines, "a.jpg", "b.jpg")
    (lines / "val.json").write_text('{"image": "a.jpg", "caption": "one"}\n{"image": "b.jpg", "caption": "two"}\n')
    assert texts_by_image(lines) == {"a.jpg": ("one",), "b.jpg": ("two",)}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.tar.lz4": b"x"}, "archives that must be unpacked first: a.tar.lz4"),
        ({"x.tfrecord": b"x"}, "no format reads: x.tfrecord; write the samples as Parquet or as WebDataset tars"),
        ({"a.jpg": b"x"}, "Nearest is sidecar, but no .txt or .caption lies beside any of 1 pictures, as a.txt beside a.jpg"),
        ({"a.zip": b"x"}, "archives that must be unpacked first: a.zip"),
        ({"data-0.arrow": b"x", "state.json": b"{}"}, "save_to_disk"),
        ({"a.jpg": b"x", "c.csv": b"id,price\n1,2\n"}, "Nearest is table, but none of c.csv names the pictures"),
    ],
)
def test_an_unknown_folder_is_told_what_is_nearest(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="no known format") as e:
        recognise(tmp_path)
    assert said in str(e.value)
