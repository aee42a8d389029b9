"""Columns of the pictures, from the files of people and from the tables' own."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.tables.slices import Columns, require_values, slices

TABLE = pa.table({"key": ["web-1", "test-2", "val-3", "web-2"], "language": ["en", "", "es", "en"]})
NOCAPS = {
    "images": [{"id": 7, "open_images_id": "2", "file_name": "2.jpg", "domain": "out-domain", "width": 1024}],
    "annotations": [{"image_id": 7, "id": 0, "caption": "A fox."}],
    "info": {},
}
FILES = {
    "web.csv": "key,domain\n1,shop\n2,\n",
    "web.tsv": "file_name\tdomain\n./1.jpg\tshop\n",
    "web.jsonl": '{"key": "web-1", "domain": "shop"}\n',
    "clean.json": json.dumps(NOCAPS),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / ".gitkeep").touch()
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_pictures_by_key_or_by_name(folder, name):
    """web-2 and test-2 are two pictures: a file speaks of one part alone."""
    (folder / name).write_text(FILES[name])
    found = Columns(folder, ["domain"]).of(TABLE)["domain"].tolist()
    assert [v or None for v in found] == ([None, "out-domain", None, None] if name == "clean.json" else ["shop", None, None, None])


def test_numbers_are_told_as_they_stand_and_both_parts_may_have_a_file(folder):
    pq.write_table(pa.table({"key": ["1", "2"], "year": [1999, None]}), folder / "web.parquet")
    (folder / "clean.csv").write_text("key,year\n2,0007\n")
    columns = Columns(folder, ["year", "language"])
    assert columns.of(TABLE)["year"].tolist() == ["1999", "0007", None, None]
    assert columns.of_pictures([TABLE, TABLE.slice(0, 1)])["language"] == {"web-1": "en", "test-2": "", "val-3": "es", "web-2": "en"}


def test_slices_name_each_value_and_what_has_none():
    found = {name: places.tolist() for name, places in slices({"a": ["y", None, "x", ""], "b": [1, 1, 2, 1]})}
    assert found == {"[a=none]": [1, 3], "[a=x]": [2], "[a=y]": [0], "[b=1]": [0, 1, 3], "[b=2]": [2]}
    with pytest.raises(ValueError, match="slices by url: it has 101 values"):
        list(slices({"url": range(101)}))
    with pytest.raises(ValueError, match="slices by a: nothing has a value; do the keys"):
        require_values("a", [None, ""])


BAD = {
    "stray.csv": ("key,domain\n", "expected one file `web`"),
    "web.csv": ("key,domain\n1,a\n1,b\n", "key '1' stands in 2 rows"),
    "web.tsv": ("name\tdomain\n1\ta\n", r"no column key or file_name.*\['name', 'domain'\]"),
    "web.json": ('{"rows": []}', "can't be read .*`images`"),
    "clean.jsonl": ('{"key": "1", "domain": {"a": 1}}\n', "expected plain values in domain"),
    "clean.csv": ("key,domain\n1,a,b\n", "can't be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named(folder, name):
    text, why = BAD[name]
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: .*{why}" if name != "stray.csv" else why):
        Columns(folder, ["domain"])
