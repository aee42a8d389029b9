"""What must hold of caption tables, checked by Great Expectations; the only home of that library.

`check` runs lists of `Expect` over tables and can write Data Docs; `require` turns what failed into one message. Great
Expectations lets pass what it should not: an empty table and NaN where rows are judged one by one, NaN beside numbers in a
mean, a limit that is missing or NaN, a suite without expectations. Here each of these fails.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.atomic import new_folder
from blip_core.captions import SCHEMA, read_manifest, sha256_file, table_paths


@dataclass(frozen=True)
class Expect:
    """One expectation: of an aggregate (bounds `low`, `high`), or of every row (the number of rows that break it must be 0)."""

    name: str  # unique within a check; users read it in messages, gate files and Data Docs
    kind: str  # of _KINDS
    says: str  # what is measured, as Data Docs and messages put it
    columns: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    values: tuple = ()  # one_of: the values; pairs: pairs of them; matches: one regular expression
    where: tuple[str, str] | None = None  # only rows whose first column has the second value

    @property
    def limit(self) -> str:
        if self.kind in _ROW_WISE:
            return "0 rows"
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"


def at_most(name: str, limit: float, says: str) -> Expect:
    """The column `name` holds at most `limit`."""
    return Expect(name, "max", says, (name,), high=_finite(name, limit))


def at_least(name: str, limit: float, says: str) -> Expect:
    """The column `name` holds at least `limit`."""
    return Expect(name, "min", says, (name,), low=_finite(name, limit))


def share_at_most(name: str, column: str, limit: float, says: str, *, kind: str = "mean", where: tuple[str, str] | None = None) -> Expect:
    """The mean of a column of 0 and 1 is at most `limit`. kind="noise": Great Expectations knows it as ExpectNoiseRatioAtMost."""
    return Expect(name, kind, says, (column,), high=_finite(name, limit), where=where)


def within(column: str, low: float, high: float, says: str) -> Expect:
    """Every value is a number from `low` to `high`."""
    return Expect(f"{column}_range", "within", says, (column,), low=_finite(column, low), high=_finite(column, high))


def never_null(column: str, says: str) -> Expect:
    return Expect(f"{column}_known", "never_null", says, (column,))


def unique(name: str, columns: tuple[str, ...], says: str) -> Expect:
    """No two rows agree in all these columns."""
    return Expect(name, "unique", says, columns)


def one_of(name: str, column: str, values: tuple, says: str, *, where: tuple[str, str] | None = None) -> Expect:
    return Expect(name, "one_of", says, (column,), values=values, where=where)


def pairs(name: str, columns: tuple[str, str], values: tuple[tuple[str, str], ...], says: str) -> Expect:
    """The two columns hold one of these pairs."""
    return Expect(name, "pairs", says, columns, values=values)


def matches(name: str, column: str, pattern: str, says: str) -> Expect:
    return Expect(name, "matches", says, (column,), values=(pattern,))


def _finite(name: str, limit: float) -> float:
    """Great Expectations takes no limit, and NaN, for no limit at all."""
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
        raise ValueError(f"{name}: expected a finite number as limit, got {limit!r}")
    return float(limit)


def check(suites: dict[str, tuple[object, list[Expect]]], *, docs: Path | None, title: str) -> list[dict]:
    """Judge tables (pyarrow or pandas), by name of the suite, each by its expectations.

    Returns one {name, says, observed, limit, passed} per expectation, those that were added to close gaps included: every
    table has rows, every column that is judged has no null. Data Docs replace the folder `docs`.
    """
    for suite, (_, expectations) in suites.items():
        if not expectations:
            raise ValueError(f"{suite}: no expectation given, so nothing would be checked")
    context = _context()
    source, results = context.data_sources.add_pandas("tables"), []
    for suite, (table, expectations) in suites.items():
        frame = table.to_pandas() if isinstance(table, pa.Table) else table
        results += _run(context, source, suite, frame, [*_closing(suite, expectations), *expectations], title)
    if docs is not None:
        _write_docs(context, docs)
    return results


def require(results: list[dict], *, what: str, remedy: str, docs: Path | None) -> None:
    """ValueError listing each failed check with what was observed and its limit."""
    if not results:
        raise ValueError(f"{what}: no check ran, so nothing is known")
    failed = [r for r in results if r["passed"] is not True]
    if not failed:
        return
    lines = [f"  {r['name']}: {_number(r['observed'])}, expected {r['limit']} ({r['says']}{_examples(r)})" for r in failed]
    where = [f"Data Docs: {docs / 'index.html'}"] if docs is not None and (docs / "index.html").exists() else []
    raise ValueError("\n".join([f"{what}: {len(failed)} of {len(results)} checks failed", *lines, remedy, *where]))


def schema_faults(path: Path, schema: pa.Schema = SCHEMA, *, exact: bool = True) -> list[str]:
    """How the columns of a Parquet file differ from the contract, by its footer alone. Unless `exact`, more columns may be there."""
    try:
        got = pq.read_schema(path)
    except (pa.ArrowException, OSError) as e:
        return [f"{path}: not a readable Parquet file ({e})"]
    faults = [f"{path}: no column {n}" for n in schema.names if n not in got.names]
    both = [n for n in schema.names if n in got.names]
    types = [(n, got.field(n).type, schema.field(n).type) for n in both]
    faults += [f"{path}: column {n} is {found}, expected {expected}" for n, found, expected in types if found != expected]
    if exact and not faults and got.names != schema.names:
        faults = [f"{path}: columns are {got.names}, expected {schema.names}"]
    return faults


def folder_faults(*folders: Path) -> list[str]:
    """What keeps the caption tables of sealed folders from being read at all: off the schema, or altered since they were sealed."""
    faults = []
    for folder in folders:
        faults += [fault for path in table_paths(folder) for fault in schema_faults(path)]
        listed = read_manifest(folder)["files"]
        altered = [n for n, f in listed.items() if sha256_file(folder / n) != f["sha256"]]
        faults += [f"{folder / n}: altered since the manifest was written" for n in altered]
    return faults


def broken(faults: list[str]) -> list[dict]:
    """The results when tables can't be read: one failed check per fault."""
    shared = {"name": "contract", "says": "tables as their manifest and the schema say", "limit": "no fault", "passed": False}
    return [{**shared, "observed": fault} for fault in faults]


def _closing(suite: str, expectations: list[Expect]) -> list[Expect]:
    """What Great Expectations takes for granted: the table has rows, and judged columns have no null (NaN counts as null)."""
    own = {(e.columns[0], e.where) for e in expectations if e.kind == "never_null"}
    judged = {(c, e.where): None for e in expectations if e.kind != "never_null" for c in e.columns}
    added = [
        Expect("_".join(name), "never_null", f"rows without a value in {column}", (column,), where=where)
        for column, where in judged
        for name in [[suite, column, "known", *(where or ())[1:]]]
        if (column, where) not in own and (column, None) not in own
    ]
    return [Expect(f"{suite}_rows", "rows", f"rows of the table of {suite}", low=1.0), *added]


_ROW_WISE = ("never_null", "unique", "one_of", "pairs", "matches", "within")


@cache
def _kinds() -> dict[str, Callable]:
    """By kind: an Expect to the arguments of Great Expectations' class, and the class."""
    import great_expectations.expectations as gxe

    class ExpectNoiseRatioAtMost(gxe.ExpectColumnMeanToBeBetween):
        """Rejected / all, of a column that is 1 where the filter rejected a text and 0 where it kept it (the paper's noise ratio)."""

    def bounds(e: Expect) -> dict:
        return {f"{side}_value": value for side, value in (("min", e.low), ("max", e.high)) if math.isfinite(value)}

    def one(e: Expect) -> dict:
        return {"column": e.columns[0]}

    return {
        "rows": lambda e: gxe.ExpectTableRowCountToBeBetween(**bounds(e), **_labels(e)),
        "max": lambda e: gxe.ExpectColumnMaxToBeBetween(**one(e), **bounds(e), **_labels(e)),
        "min": lambda e: gxe.ExpectColumnMinToBeBetween(**one(e), **bounds(e), **_labels(e)),
        "mean": lambda e: gxe.ExpectColumnMeanToBeBetween(**one(e), **bounds(e), **_labels(e)),
        "noise": lambda e: ExpectNoiseRatioAtMost(**one(e), **bounds(e), **_labels(e)),
        "within": lambda e: gxe.ExpectColumnValuesToBeBetween(**one(e), **bounds(e), **_labels(e)),
        "never_null": lambda e: gxe.ExpectColumnValuesToNotBeNull(**one(e), **_labels(e)),
        "unique": lambda e: gxe.ExpectCompoundColumnsToBeUnique(column_list=list(e.columns), **_labels(e)),
        "one_of": lambda e: gxe.ExpectColumnValuesToBeInSet(**one(e), value_set=list(e.values), **_labels(e)),
        "pairs": lambda e: gxe.ExpectColumnPairValuesToBeInSet(
            column_A=e.columns[0], column_B=e.columns[1], value_pairs_set=list(e.values), **_labels(e)
        ),
        "matches": lambda e: gxe.ExpectColumnValuesToMatchRegex(**one(e), regex=f"^(?:{e.values[0]})\\Z", **_labels(e)),
    }


def _labels(e: Expect) -> dict:
    from great_expectations.expectations.row_conditions import Column

    condition = {"row_condition": Column(e.where[0]) == e.where[1]} if e.where else {}
    return {"meta": {"name": e.name}, "description": f"{e.name}: {e.says}: {e.limit}", **condition}


def _context():
    """An ephemeral context: suites live in code, nothing is kept in files, nothing is sent."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def _run(context, source, suite: str, frame, expectations: list[Expect], title: str) -> list[dict]:
    import great_expectations as gx

    data = source.add_dataframe_asset(suite).add_batch_definition_whole_dataframe("all")
    judged = context.suites.add(gx.ExpectationSuite(name=suite, expectations=[_kinds()[e.kind](e) for e in expectations]))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=suite, data=data, suite=judged))
    run_id = gx.RunIdentifier(run_name=title, run_time=datetime.now(UTC))
    answers = definition.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY", run_id=run_id).results
    by_name = {a.expectation_config.meta["name"]: a for a in answers}
    assert len(by_name) == len(expectations), f"{suite}: {len(expectations)} expectations, {len(by_name)} answers"
    return [_verdict(e, by_name[e.name]) for e in expectations]


def _verdict(e: Expect, answer) -> dict:
    """Great Expectations' answer, and passed only where its own numbers say so too."""
    result, verdict = answer.result, {"name": e.name, "says": e.says, "limit": e.limit}
    key = "unexpected_count" if e.kind in _ROW_WISE else "observed_value"
    if result.get(key) is None:
        return {**verdict, "observed": _exception(answer) or "nothing to measure", "passed": False}
    if e.kind in _ROW_WISE:
        count = int(result[key])
        examples = {"examples": [str(v) for v in result["partial_unexpected_list"][:3]]} if count else {}
        return {**verdict, "observed": count, "passed": answer.success is True and count == 0, **examples}
    observed = float(result[key])
    return {**verdict, "observed": observed, "passed": answer.success is True and math.isfinite(observed) and e.low <= observed <= e.high}


def _exception(answer) -> str | None:
    """The message of what was raised; Great Expectations nests it below the metric where it was a metric's."""
    info = answer.exception_info or {}
    found = [i for i in [info, *info.values()] if isinstance(i, dict) and i.get("raised_exception")]
    return f"error: {str(found[0]['exception_message']).strip()}" if found else None


def _write_docs(context, docs: Path) -> None:
    """Static HTML, replaced as a whole."""
    with new_folder(docs) as temporary:
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(temporary.absolute())}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": store, "show_how_to_buttons": False}
        context.add_data_docs_site("docs", site)
        context.build_data_docs(site_names=["docs"])


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _examples(result: dict) -> str:
    return f"; e.g. {', '.join(result['examples'])}" if result.get("examples") else ""
