"""Fields of pictures from any source: they keep their types, their values and their names, or it is said."""

import datetime
import decimal
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.config.intake import MetadataConfig
from blip_core.metadata.columns import ShardColumns
from blip_core.metadata.fields import OTHERS, Fields, as_text, beside, free_name, joined
from blip_core.metadata.folder import field_types, metadata_of
from blip_core.metadata.keeping import MORE, Keeping
from blip_core.metadata.licences import Spellings, names_licence, normalised
from blip_core.metadata.schema import Survey, conform, rare
from blip_core.tables.captions import write_table
from blip_core.tables.manifest import write_manifest


def table(*rows: dict, types: dict | None = None, max_fields: int = 200) -> pa.Table:
    columns = ShardColumns()
    for i, row in enumerate(rows):
        columns.add(f"k{i}", Fields(row, types or {}))
    return columns.table(max_fields=max_fields)


def together(*tables: pa.Table, max_fields: int = 200) -> tuple[list[pa.Table], Survey]:
    survey = Survey()
    for one in tables:
        survey.add(one)
    schema = survey.schema(max_fields=max_fields)
    return [conform(one, schema) for one in tables], survey


def test_values_of_json_have_their_own_types():
    found = table({"n": 1, "x": 0.5, "ok": True, "t": "a", "l": [1, {"a": None}], "never": None}, {"n": 2, "x": 3, "t": None})
    assert {f.name: str(f.type) for f in found.schema} == {
        "key": "string",
        "n": "int64",
        "x": "double",
        "ok": "bool",
        "t": "string",
        "l": "string",
    }
    assert found["x"].to_pylist() == [0.5, 3.0] and found["l"].to_pylist() == ['[1, {"a": null}]', None]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**64 - 1, None], pa.uint64()),
        pa.array([1.5, None], pa.float32()),
        pa.array([datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC), None], pa.timestamp("ms", "UTC")),
        pa.array([decimal.Decimal("1.20"), None]),
        pa.array([{"a": 1, "b": [{"c": "x"}]}, None]),
        pa.array([b"\xff\x00", None]),
        pa.array([["a", None], []]),
    ],
)
def test_types_of_parquet_stay(values):
    found = table(*({"f": v} for v in values.to_pylist()), types={"f": values.type})
    assert found["f"].combine_chunks().equals(values)


@pytest.mark.parametrize(
    "values,plain",
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string()),
        (pa.array(["a", None], pa.large_string()), pa.string()),
        (pa.array([b"0" * 16, None], pa.uuid()), pa.string()),
        (pa.array([["a"], None], pa.large_list(pa.large_string())), pa.list_(pa.string())),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)), pa.list_(pa.int32())),
    ],
)
def test_dictionary_large_fixed_and_extension_types_are_stored_plain(values, plain):
    found = table(*({"f": v} for v in pa.table({"f": values})["f"].to_pylist()), types={"f": values.type})["f"]
    assert found.type == plain
    assert found.to_pylist() == [str(v) if isinstance(v, uuid.UUID) else v for v in values.to_pylist()]


def test_one_field_of_several_types_over_files_is_text_and_told():
    rows = ({"id": 7, "n": 1}, {"id": "a7", "n": 0.5}, {"id": None, "big": 2**53 + 1}, {"big": 0.5})
    parts, survey = together(*map(table, rows))
    assert [p["id"].to_pylist() for p in parts] == [["7"], ["a7"], [None], [None]]
    assert parts[0]["n"].to_pylist() == [1.0] and parts[0].schema == parts[3].schema
    assert parts[2]["big"].to_pylist() == ["9007199254740993"]  # no float is that exact
    assert survey.mixed == {"id": {"int64": 1, "string": 1}, "n": {"int64": 1, "double": 1}, "big": {"int64": 1, "double": 1}}


def test_nan_and_none_are_two_things():
    found = table({"x": float("nan")}, {"x": None})["x"]
    assert found[0].as_py() != found[0].as_py() and not found[1].is_valid
    assert as_text({"x": float("nan"), "b": b"\xff"}) == '{"x": null, "b": "/w=="}'  # JSON has no NaN


def test_rare_fields_share_one_column():
    """A hundred fields each of its own: two columns, and every value can be found."""
    rows = [{"url": f"u{i}", f"tag{i}": i} for i in range(100)]
    parts, survey = together(table(*rows[:50], max_fields=2), table(*rows[50:], max_fields=2), max_fields=1)
    assert parts[0].column_names == ["key", "url", OTHERS] and survey.others
    found = [json.loads(text) for part in parts for text in part[OTHERS].to_pylist()]
    assert found == [{f"tag{i}": i} for i in range(100)]
    assert [len(rare(part)) for part in parts] == [50, 50]


def test_a_field_that_is_rare_in_one_shard_alone_gets_its_column_there_too():
    common = table(*({"license": "by", "url": "u"} for _ in range(5)))
    odd = table({"a": 1, "b": 2, "license": "nc"}, {"a": 1, "b": 2, "license": 4}, {"a": 3, "b": 4}, max_fields=2)
    (_, found), _ = together(common, odd, max_fields=3)
    assert found["license"].to_pylist() == ["nc", "4", None] and OTHERS in odd.column_names


def test_what_is_rare_in_one_shard_and_of_another_type_stays_among_the_others():
    odd = table({"a": 1, "b": 2, "nsfw": True, "ok": 1}, {"a": 1, "b": 2}, max_fields=2)
    _, found = together(table({"nsfw": 0.5, "ok": True}), odd, max_fields=9)[0]
    assert found["nsfw"].null_count == found["ok"].null_count == 2
    assert [json.loads(text) for text in found[OTHERS].drop_null().to_pylist()] == [{"nsfw": True, "ok": 1}]


def test_rows_of_one_picture_join():
    found = joined(beside({"url": "u", "caption": c, "n": n}, ["caption"]) for n, c in enumerate("ab"))
    assert found.values == {"url": "u", "n": [0, 1]}
    assert joined([Fields({"x": 1}, {}), Fields({"x": 1.0}, {})]).values == {"x": [1, 1.0]}


def test_a_taken_name_gets_another_that_no_field_has():
    names = ["key", "source_key", "source_source_key", "url", "Key"]
    assert [free_name(n, {"key"}) for n in names] == ["source_key", "source_source_key", "source_source_source_key", "url", "source_Key"]


def test_what_is_kept_is_a_choice_and_the_rest_is_counted():
    keeping = Keeping(MetadataConfig(keep=("URL", "licen?e*"), max_bytes=30))
    kept = keeping.of(Fields({"url": "u" * 20, "LICENSE": "by", "exif": "{}", "license_url": "x" * 40, "none": None}, {}))
    assert kept.values == {"url": "u" * 20, "LICENSE": "by"}
    assert keeping.left_out == {"not_kept": {"exif": 1}, "too_long": {"license_url": 1}}
    nothing = Keeping(MetadataConfig(keep="none"))
    assert not nothing.of(Fields({f"f{i}": i for i in range(3000)}, {})).values
    assert len(nothing.left_out["not_kept"]) == 1001 and nothing.left_out["not_kept"][MORE] == 2000


def test_bytes_that_are_no_utf8_stay_readable():
    kept = Keeping(MetadataConfig()).of(Fields({"caf\udce9": "na\udcefve", "l": ["\udcff"]}, {}))
    found = table(kept.values)
    assert found.column_names == ["key", "caf\\udce9", "l"] and found["l"][0].as_py() == '["\\\\udcff"]'


def test_licences_are_counted_with_each_spelling():
    found = Spellings()
    for text in ["CC-BY 4.0", "cc by 4.0", "https://creativecommons.org/licenses/by/4.0/deed.en", "CC_BY-NC 4.0", "", None]:
        found.add(text)
    rows = {licence: (n, written) for licence, n, written in found.rows()}
    assert rows["cc by 4.0"][0] == 3 and "CC-BY 4.0 (1); cc by 4.0 (1); https://" in rows["cc by 4.0"][1]
    assert rows["cc by nc 4.0"][0] == 1 and rows["none told"][0] == 2
    assert normalised("Apache-2.0") != normalised("Apache-2.1") and names_licence("LICENSE") and names_licence("usage_rights")
    assert not names_licence("brights")


def test_the_rows_of_some_keys(tmp_path):
    parts, _ = together(table({"url": "u0"}, {"url": "u1"}, {"n": 2}))
    write_table(parts[0], tmp_path / "web-00000.parquet")
    write_manifest(tmp_path)
    found = metadata_of(tmp_path, "web-00000", ["k2", "k0", "k2"], ["n"])
    assert found.to_pylist() == [{"key": "k2", "n": 2}, {"key": "k0", "n": None}, {"key": "k2", "n": 2}]
    assert metadata_of(tmp_path, "web-00000", found["key"])["url"].to_pylist() == [None, "u0", None]
    assert field_types(tmp_path) == {"url": pa.string(), "n": pa.int64()}
    with pytest.raises(ValueError, match="no field licence; the sources have url, n"):
        metadata_of(tmp_path, "web-00000", ["k0"], ["licence"])
    with pytest.raises(ValueError, match="no row of 'k9'; metadata and shards are not of one ingest"):
        metadata_of(tmp_path, "web-00000", ["k9"])
    assert pq.read_schema(tmp_path / "web-00000.parquet").names == ["key", "url", "n"]
