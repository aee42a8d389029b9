"""What must hold of caption tables, judged by Great Expectations; the only home of that library.

`check` runs lists of `Expect` over tables and can write Data Docs (docs.py); `require` turns what failed into one message. Great
Expectations would take a data set whole, as one pandas table; so Arrow counts what breaks an expectation while the tables go by
(expect.py), and Great Expectations judges the counts. It lets pass what it should not: no rows at all, a number that is missing or NaN,
a limit that is missing or NaN, a suite without expectations. Here each of these fails.
"""

import logging
import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip_core.checks.docs import INDEX, Docs, write_docs
from blip_core.checks.expect import Expect, Tally, measured, tally
from blip_core.files.content import sha256_file
from blip_core.tables.captions import CONTROLS, SCHEMA, table_paths
from blip_core.tables.manifest import read_manifest

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.datasource.fluent import PandasDatasource
    from great_expectations.expectations import Expectation


class ChecksFailed(ValueError):
    """The message lists each failed check with what was observed and its limit."""


def check(suites: Mapping[str, tuple[pa.Table | Iterable[pa.Table], list[Expect]]], *, docs: Docs | None) -> list[dict[str, Any]]:
    """Judge tables by name of the suite, each by its expectations. Several tables of a suite count as one; it must be possible to
    walk over them more than once.

    Returns one {name, says, observed, limit, passed} per expectation, with `examples` where rows broke it. A suite whose rows are judged
    must have some. Data Docs are written where `docs` says.
    """
    for suite, (_, expectations) in suites.items():
        if not expectations:
            raise ValueError(f"{suite}: no expectation given, so nothing would be checked")
    context = _context()
    source, results, answers = context.data_sources.add_pandas("tables"), [], {}
    for suite, (tables, expectations) in suites.items():
        tables = [tables] if isinstance(tables, pa.Table) else tables
        tallies = tally(tables, [*_some_rows(suite, expectations), *expectations])
        answer = _run(context, source, suite, tallies, docs.title if docs else "check")
        results += _verdicts(tallies, answer.results)
        answers[suite] = answer.to_json_dict()
    if docs is not None:
        write_docs(docs, results, answers=answers)
    return results


def require(results: list[dict[str, Any]], *, what: str, remedy: str, docs: Path | None) -> None:
    """ChecksFailed listing each failed check with what was observed and its limit."""
    if not results:
        raise ValueError(f"{what}: no check ran, so nothing is known")
    failed = [r for r in results if r["passed"] is not True]
    if not failed:
        return
    lines = [
        f"  {r['name']}: {measured(r['observed'], r['limit'])}, expected {r['limit']} ({r['says']}{_examples(r.get('examples'))})"
        for r in failed
    ]
    where = [f"Data Docs: {docs / INDEX}"] if docs is not None and (docs / INDEX).exists() else []
    raise ChecksFailed("\n".join([f"{what}: {len(failed)} of {len(results)} checks failed", *lines, remedy, *where]))


def schema_faults(path: Path, schema: pa.Schema = SCHEMA, *, exact: bool = True) -> list[str]:
    """How the columns of a Parquet file differ from the contract, by its footer alone. Unless `exact`, more columns may be there."""
    try:
        got = pq.read_schema(path)
    except (pa.ArrowException, OSError) as e:
        return [f"{path}: not a readable Parquet file ({e})"]
    lacking = [n for n in schema.names if n not in got.names]
    faults = [f"{path}: no column {', '.join(lacking)}"] if lacking else []
    both = [n for n in schema.names if n in got.names]
    types = [(n, got.field(n).type, schema.field(n).type) for n in both]
    faults += [f"{path}: column {n} is {found}, expected {expected}" for n, found, expected in types if found != expected]
    if exact and not faults and got.names != schema.names:
        faults = [f"{path}: columns are {got.names}, expected {schema.names}"]
    return faults


def folder_faults(*folders: Path) -> list[str]:
    """What keeps the caption tables of sealed folders from being read at all: off the schema, or altered since they were sealed. Planted
    pairs have a schema of their own."""
    faults = []
    for folder in folders:
        faults += [fault for path in table_paths(folder) if path.name != CONTROLS for fault in schema_faults(path)]
        listed = read_manifest(folder)["files"]
        altered = [n for n, f in listed.items() if sha256_file(folder / n) != f["sha256"]]
        faults += [f"{folder / n}: altered since the manifest was written" for n in altered]
    return faults


def broken(faults: list[str]) -> list[dict[str, Any]]:
    """The results when tables can't be read: one failed check per fault."""
    shared = {"name": "contract", "says": "tables as their manifest and the schema say", "limit": "no fault", "passed": False}
    return [{**shared, "observed": fault} for fault in faults]


def _some_rows(suite: str, expectations: list[Expect]) -> list[Expect]:
    """Of no rows at all none breaks anything."""
    return [Expect(f"{suite}_rows", "rows", f"{suite} in all", low=1.0)] if any(e.row_wise for e in expectations) else []


@cache
def _kinds() -> dict[str, type]:
    """Classes of Great Expectations, for a column that holds the count of an expectation."""
    import great_expectations.expectations as gxe

    class ExpectNoiseRatioAtMost(gxe.ExpectColumnMeanToBeBetween):
        """Rejected / all: the share of the texts that the filter rejected (the paper's noise ratio)."""

    column = {"max": gxe.ExpectColumnMaxToBeBetween, "min": gxe.ExpectColumnMinToBeBetween, "mean": gxe.ExpectColumnMeanToBeBetween}
    return {**column, "rows": column["min"], "noise": ExpectNoiseRatioAtMost}


def _expectation(t: Tally) -> "Expectation":
    e = t.expect
    bounds = {"max_value": 0.0} if e.row_wise else {f"{s}_value": v for s, v in (("min", e.low), ("max", e.high)) if math.isfinite(v)}
    says = f"{e.name}: {e.says}: {e.limit}{_examples(t.examples)}"
    return _kinds()["max" if e.row_wise else e.kind](column=e.name, **bounds, meta={"name": e.name}, description=says)


def _context() -> "EphemeralDataContext":
    """An ephemeral context: suites live in code, nothing is kept in files, nothing is sent."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations as gx

    for name in ("great_expectations", "great_expectations.data_context.types.base"):  # the latter sets a level of its own
        logging.getLogger(name).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def _run(
    context: "EphemeralDataContext", source: "PandasDatasource", suite: str, tallies: list[Tally], title: str
) -> "ExpectationSuiteValidationResult":
    import great_expectations as gx
    import pandas as pd

    data = source.add_dataframe_asset(suite).add_batch_definition_whole_dataframe("all")
    judged = context.suites.add(gx.ExpectationSuite(name=suite, expectations=[_expectation(t) for t in tallies]))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=suite, data=data, suite=judged))
    run_id = gx.RunIdentifier(run_name=title, run_time=datetime.now(UTC))
    counts = pd.DataFrame({t.expect.name: pd.Series([t.observed], dtype=float) for t in tallies})
    return definition.run(batch_parameters={"dataframe": counts}, result_format="SUMMARY", run_id=run_id)


def _verdicts(tallies: list[Tally], answers: "list[ExpectationValidationResult]") -> list[dict[str, Any]]:
    by_name = {a.expectation_config.meta["name"]: a for a in answers}
    assert len(by_name) == len(tallies), f"{len(tallies)} expectations, {len(by_name)} answers"
    return [_verdict(t, by_name[t.expect.name]) for t in tallies]


def _verdict(t: Tally, answer: "ExpectationValidationResult") -> dict[str, Any]:
    """Great Expectations' answer, and passed only where the count itself says so too."""
    e, measured = t.expect, answer.result.get("observed_value")
    observed: float | str
    if t.observed is None or measured is None:
        observed, within = t.unmeasured or _exception(answer) or "nothing to measure", False
    elif e.row_wise:
        observed, within = t.rows, t.rows == 0
    else:
        observed = float(measured)
        within = math.isfinite(observed) and e.low <= observed <= e.high
    verdict = {"name": e.name, "says": e.says, "limit": e.limit, "observed": observed, "passed": within and answer.success is True}
    return {**verdict, "examples": t.examples} if t.examples else verdict


def _exception(answer: "ExpectationValidationResult") -> str | None:
    """The message of what was raised; Great Expectations nests it below the metric where it was a metric's."""
    info = answer.exception_info or {}
    found = [i for i in [info, *info.values()] if isinstance(i, dict) and i.get("raised_exception")]
    return f"error: {str(found[0]['exception_message']).strip()}" if found else None


def _examples(examples: list[str] | None) -> str:
    return f"; e.g. {', '.join(examples)}" if examples else ""
