"""Each way in which Great Expectations lets bad data pass must fail here."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.checks.docs import Docs
from blip_core.checks.expect import Expect, at_least, at_most, matches, never_null, one_of, pairs, share_at_most, unique, within
from blip_core.checks.expectations import broken, check, folder_faults, require, schema_faults
from blip_core.tables.captions import SCHEMA, caption_table, write_table
from blip_core.tables.manifest import write_manifest

NAN = float("nan")


def verdicts(columns: dict, *expectations: Expect) -> dict[str, dict]:
    results = check({"t": (pa.table(columns), list(expectations))}, docs=None)
    return {r["name"]: r for r in results}


def passed(columns: dict, *expectations: Expect) -> bool:
    return all(v["passed"] for v in verdicts(columns, *expectations).values())


def test_good_rows_pass_every_kind_and_each_fault_fails_its_own():
    columns = {
        "key": ["web-1", "web-2"],
        "n": [0, 0],
        "source": ["web", "human"],
        "place": ["generation/web", "generation/train"],
        "score": [0.2, 1.0],
        "rejected": [1.0, 0.0],
        "count": [3.0, 4.0],
    }
    expectations = [
        never_null("key", "rows without a key"),
        matches("key_form", "key", "[a-z0-9-]{1,200}", "rows with another key"),
        unique("keys", ("key", "n"), "rows that share key and n"),
        one_of("source", "source", ("web", "human"), "rows of another source"),
        pairs("place", ("place", "source"), (("generation/web", "web"), ("generation/train", "human")), "rows in a wrong place"),
        within("score", 0, 1, "scores beyond 0 to 1"),
        share_at_most("noise", "rejected", 0.5, "noise ratio", kind="noise"),
        at_least("count", 3, "count"),
    ]
    assert passed(columns, *expectations)
    faults = {
        "key_known": {"key": ["web-1", None]},
        "key_form": {"key": ["web-1", "a.jpg"]},
        "keys": {"key": ["web-1", "web-1"]},
        "source": {"source": ["web", "robot"]},
        "place": {"place": ["generation/web", "generation/web"]},
        "score_range": {"score": [0.2, 1.5]},
        "noise": {"rejected": [1.0, 1.0]},
        "count": {"count": [2.0, 4.0]},
    }
    for name, fault in faults.items():
        failed = {n for n, v in verdicts(columns | fault, *expectations).items() if not v["passed"]}
        assert name in failed, (name, failed)


def test_a_key_must_match_to_its_end():
    form = matches("key_form", "key", "[a-z]{1,9}", "rows with another key")
    assert passed({"key": ["abc"]}, form)
    for key in ("abc\n", "abc\nx", "../abc", "", "abcdefghij"):
        assert not passed({"key": ["abc", key]}, form), repr(key)


def test_an_empty_table_fails_even_where_rows_are_judged_one_by_one():
    columns = {"key": pa.array([], pa.string()), "score": pa.array([], pa.float64())}
    row_wise = never_null("key", "k"), unique("u", ("key", "score"), "u"), one_of("o", "key", ("a",), "o"), within("score", 0, 1, "s")
    for expectation in row_wise:
        found = verdicts(columns, expectation)
        assert not found["t_rows"]["passed"] and found["t_rows"]["observed"] == 0
    assert not passed(columns, share_at_most("noise", "score", 0.5, "noise"))


@pytest.mark.parametrize("scores", [[0.1, NAN], [0.1, None], [NAN, NAN], [0.1, float("inf")], [0.1, float("-inf")]])
def test_a_number_that_is_none_fails_row_by_row_and_in_the_mean(scores):
    column = {"score": pa.array(scores, pa.float64())}
    assert not passed(column, within("score", 0, 1, "scores"))
    assert not passed(column, share_at_most("noise", "score", 0.5, "noise"))


@pytest.mark.parametrize("number", [NAN, None, float("inf"), float("-inf")])
def test_a_measured_number_that_is_none_fails_both_ways(number):
    column = {"coverage": pa.array([number], pa.float64())}
    assert not passed(column, at_least("coverage", 0.2, "coverage"))
    assert not passed(column, at_most("coverage", 0.2, "coverage"))


@pytest.mark.parametrize("limit", [None, NAN, float("inf"), "0.5", True])
def test_a_limit_that_is_none_is_refused(limit):
    for make in (at_most, at_least):
        with pytest.raises(ValueError, match=r"noise: expected a finite number as limit, got"):
            make("noise", limit, "noise")
    with pytest.raises(ValueError, match="noise: expected a finite number"):
        share_at_most("noise", "rejected", limit, "noise")
    with pytest.raises(ValueError, match="score: expected a finite number"):
        within("score", 0, limit, "score")


def test_a_suite_without_expectations_is_refused():
    with pytest.raises(ValueError, match="t: no expectation given, so nothing would be checked"):
        verdicts({"key": ["a"]})
    with pytest.raises(ValueError, match="no check ran"):
        require([], what="g1", remedy="", docs=None)


def test_missing_columns_and_text_in_place_of_numbers_fail_with_their_reason():
    missing = verdicts({"key": ["a"]}, share_at_most("noise", "rejected", 0.5, "noise"))["noise"]
    assert not missing["passed"] and "rejected" in missing["observed"]
    text = verdicts({"rejected": ["a"]}, share_at_most("noise", "rejected", 0.5, "noise"))["noise"]
    assert not text["passed"]


def test_only_the_rows_of_a_source_count_and_a_source_without_rows_fails():
    columns = {"source": ["web", "web", "synthetic"], "rejected": [1.0, 0.0, 1.0]}
    web = verdicts(columns, share_at_most("noise_web", "rejected", 0.5, "noise", where=("source", "web")))["noise_web"]
    assert web["passed"] and web["observed"] == 0.5
    assert not passed(columns, share_at_most("noise_human", "rejected", 0.5, "noise", where=("source", "human")))
    unknown = {"source": ["web", "web"], "rejected": pa.array([0.0, None], pa.float64())}
    assert not passed(unknown, share_at_most("noise_web", "rejected", 0.5, "noise", where=("source", "web")))


def test_tables_of_a_suite_count_as_one_however_they_are_cut():
    """What breaks an expectation in one table, or only across two, is found, counted and named as in a single table."""
    table = pa.table(
        {
            "key": ["a", "b", "c", None, "b", "a", "d", "e"],
            "n": [0, 0, 0, 0, 0, 1, 0, 0],
            "source": ["web", "web", "web", "robot", "web", "human", "web", None],
            "score": [0.1, 0.9, 2.0, NAN, 0.5, -1.0, float("inf"), None],
            "rejected": [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0],
        }
    )
    expectations = [
        never_null("key", "rows without a key"),
        unique("keys", ("key", "n"), "rows that share key and n"),
        one_of("source", "source", ("web", "human"), "rows of another source"),
        pairs("pair", ("key", "source"), (("a", "web"), ("b", "web"), ("c", "web"), ("d", "web")), "rows in a wrong place"),
        matches("form", "key", "[a-c]", "rows of another form"),
        within("score", 0, 1, "scores beyond 0 to 1"),
        share_at_most("noise", "rejected", 0.5, "noise ratio", kind="noise", where=("source", "web")),
        at_most("score", 0.5, "greatest score"),
        at_least("n", 0, "least number"),
    ]
    whole = check({"t": (table, expectations)}, docs=None)
    found = {r["name"]: (r["observed"], r.get("examples")) for r in whole}
    assert found["t_rows"] == (8.0, None) and found["keys"] == (2, ["{'key': 'b', 'n': 0}"] * 2)
    assert found["noise"] == (0.4, None) and found["score"] == ("2 of 8 rows have no value", None)
    assert found["score_range"] == (5, ["2.0", "nan", "-1.0"]) and found["form"] == (3, ["no value", "d", "e"])
    assert found["pair"] == (3, ["(None, 'robot')", "('a', 'human')", "('e', None)"])
    for size in (1, 3):
        parts = [table.slice(start, size) for start in range(0, 8, size)]
        assert check({"t": ([*parts, table.slice(0, 0)], expectations)}, docs=None) == whole


def test_no_table_at_all_fails():
    results = check({"t": ([], [never_null("key", "rows without a key")])}, docs=None)
    assert [r["name"] for r in results if not r["passed"]] == ["t_rows"]


def test_the_message_names_each_failed_check_with_observed_limit_and_report(tmp_path):
    texts, generation = pa.table({"source": ["web", "robot"]}), pa.table({"coverage": [0.1999999], "distinct": [0.5]})
    suites = {
        "texts": (texts, [one_of("source", "source", ("web",), "rows of an unknown source")]),
        "generation": (generation, [at_least("coverage", 0.2, "share of images"), at_least("distinct", 0.2, "texts")]),
    }
    docs = tmp_path / "docs/gate-r1"
    results = check(suites, docs=Docs(docs, "Gate of g1", "0" * 64))
    with pytest.raises(ValueError) as e:
        require(results, what="g1 does not pass its gate", remedy="Mend it.", docs=docs)
    lines = str(e.value).splitlines()
    assert lines[0] == f"g1 does not pass its gate: 2 of {len(results)} checks failed"
    assert lines[1] == "  source: 1, expected 0 rows (rows of an unknown source; e.g. robot)"
    assert lines[2] == "  coverage: 0.1999999, expected at least 0.2 (share of images)", "not 0.2"
    assert lines[3:] == ["Mend it.", f"Data Docs: {docs / 'index.html'}"]


def test_what_stands_in_a_row_is_told_on_one_line():
    found = verdicts({"text": ["a\x1b[2J\nb\u2028ç"]}, matches("form", "text", "[a-z]+", "texts of another form"))
    assert found["form"]["examples"] == [r"a\x1b[2J\nb\u2028ç"]


@pytest.mark.parametrize("number", [NAN, None])
def test_a_number_that_is_missing_is_told_once(number):
    found = verdicts({"coverage": pa.array([number], pa.float64())}, at_least("coverage", 0.2, "coverage"))
    assert [v["observed"] for v in found.values()] == ["nothing to measure"]
    some = verdicts({"rejected": pa.array([0.0, number, 1.0], pa.float64())}, share_at_most("noise", "rejected", 0.5, "noise"))
    assert [v["observed"] for v in some.values()] == ["1 of 3 rows have no value"]


def test_checking_imports_late_and_talks_to_nobody(tmp_path):
    """In a fresh process without the conftest's settings, with every connection refused."""
    code = (
        "import os, socket, sys; from pathlib import Path\n"
        "def refuse(*args): raise AssertionError(f'connects to {args[1:]}')\n"
        "import blip_core.checks.expectations, blip_core.stages.gate, blip_core.stages.validate\n"
        "assert not {'great_expectations', 'scipy', 'pandas', 'torch'} & set(sys.modules), 'imported too early'\n"
        "import pyarrow as pa; from blip_core.checks.expect import at_most; from blip_core.checks.expectations import check\n"
        "from blip_core.checks.docs import Docs\n"
        "socket.socket.connect = refuse\n"
        f"results = check({{'t': (pa.table({{'a': [1]}}), [at_most('a', 1, 'a')])}}, docs=Docs(Path({str(tmp_path / 'd')!r}), 't', ''))\n"
        "assert all(r['passed'] for r in results) and os.environ['GX_ANALYTICS_ENABLED'] == 'false'\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "GX_ANALYTICS_ENABLED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_schema_faults_name_file_column_and_types(tmp_path):
    path = tmp_path / "web-00000.parquet"
    table = caption_table([{"key": "web-1", "text": "a", "source": "web", "reason": "kept", "candidate": 0}])
    write_table(table, path)
    assert schema_faults(path) == []
    pq.write_table(table.set_column(table.schema.get_field_index("itm"), "itm", pa.array([0.5], pa.float32())), path)
    assert schema_faults(path) == [f"{path}: column itm is float, expected double"]
    pq.write_table(table.drop_columns(["image_id"]), path)
    assert schema_faults(path) == [f"{path}: no column image_id"]
    pq.write_table(table.append_column("extra", pa.array([1])), path)
    assert "columns are" in schema_faults(path)[0] and schema_faults(path, exact=False) == []
    pq.write_table(table.select(SCHEMA.names[::-1]), path)
    assert "columns are" in schema_faults(path)[0]
    path.write_bytes(b"PAR1 no")
    assert "not a readable Parquet file" in schema_faults(path)[0]


def test_a_table_altered_after_its_manifest_is_a_fault(tmp_path):
    row = {"key": "web-1", "text": "a cat", "source": "web", "reason": "kept", "candidate": 0}
    path = tmp_path / "web-00000.parquet"
    write_table(caption_table([row]), path)
    write_manifest(tmp_path)
    assert folder_faults(tmp_path) == []
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert folder_faults(tmp_path) == [f"{path}: altered since the manifest was written"]
    with pytest.raises(ValueError, match="contract: .*altered since"):
        require(broken(folder_faults(tmp_path)), what="g0", remedy="", docs=None)
