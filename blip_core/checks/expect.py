"""One expectation of tables, and the count that it is judged by. Tables go by one at a time: what is held are counts and examples.

Start at `Expect` and the functions that make one; `tally` counts several in one walk over the tables.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from blip_core.tables.counting import repeated

_EXAMPLES = 3  # of the rows that break an expectation
_LONGEST = 100  # characters of a value in an example
_PLACE = ("shard", "row", "key")  # columns that tell where a row stands


@dataclass(frozen=True)
class Expect:
    """One expectation: of an aggregate (bounds `low`, `high`), or of every row (the number of rows that break it must be 0)."""

    name: str  # unique within a check; messages, gate files and Data Docs have it
    kind: str  # of _BREAKS, or unique | rows | mean | noise | max | min
    says: str  # what is measured, as a reader of Data Docs and messages understands it
    columns: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    values: tuple[Any, ...] = ()  # one_of: the values; pairs: pairs of them; matches: one regular expression
    where: tuple[str, str] | None = None  # only rows whose first column has the second value

    @property
    def row_wise(self) -> bool:
        return self.kind == "unique" or self.kind in _BREAKS

    @property
    def limit(self) -> str:
        if self.row_wise:
            return "0 rows"
        return f"at most {number(self.high)}" if math.isinf(self.low) else f"at least {number(self.low)}"


def number(value: float) -> str:
    """As people read it: 15,971 or 0.7394."""
    return f"{value:,.0f}" if math.isfinite(value) and value == round(value) else f"{value:.4g}"


def measured(observed: object, limit: str) -> str:
    """What a check found, beside the limit that it is held against: a number has more digits where else both would read the same."""
    if not isinstance(observed, float):
        return str(observed)
    return f"{observed:,.9g}" if limit.endswith(f" {number(observed)}") else number(observed)


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
    """Every row has a number from `low` to `high`."""
    return Expect(f"{column}_range", "within", says, (column,), low=_finite(column, low), high=_finite(column, high))


def never_null(column: str, says: str) -> Expect:
    return Expect(f"{column}_known", "never_null", says, (column,))


def unique(name: str, columns: tuple[str, ...], says: str) -> Expect:
    """No two rows agree in all these columns. That each has a value is for other expectations to say."""
    return Expect(name, "unique", says, columns)


def one_of(name: str, column: str, values: tuple[str, ...], says: str, *, where: tuple[str, str] | None = None) -> Expect:
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


# by kind: the rows of a table that break the expectation; a value that is missing breaks each
_BREAKS = {
    "never_null": lambda table, e: pc.is_null(table[e.columns[0]], nan_is_null=True),
    "one_of": lambda table, e: pc.invert(pc.is_in(table[e.columns[0]], pa.array(e.values))),
    "pairs": lambda table, e: pc.invert(_is_pair(table, e)),
    "matches": lambda table, e: pc.fill_null(pc.invert(pc.match_substring_regex(table[e.columns[0]], rf"^(?:{e.values[0]})\z")), True),
    "within": lambda table, e: pc.fill_null(pc.invert(_is_within(table[e.columns[0]], e)), True),
}


def _is_pair(table: pa.Table, e: Expect) -> pa.ChunkedArray:
    a, b = (table[c] for c in e.columns)
    found = [pc.and_(pc.equal(a, one), pc.equal(b, other)) for one, other in e.values]
    return pc.fill_null(reduce(pc.or_, found), False)


def _is_within(column: pa.ChunkedArray, e: Expect) -> pa.ChunkedArray:
    """NaN is not."""
    return pc.and_(pc.greater_equal(column, e.low), pc.less_equal(column, e.high))


@dataclass
class Tally:
    """What one expectation is judged by."""

    expect: Expect
    rows: int = 0  # that are there (kind rows), or that break it
    examples: list[str] = field(default_factory=list)  # of these
    missing: int = 0  # rows of a column without a number
    numbers: int = 0  # what follows is of the numbers
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    error: str | None = None  # why it can't be counted

    @property
    def unmeasured(self) -> str | None:
        """Why there is no number to judge."""
        if self.error or self.expect.row_wise or self.expect.kind == "rows":
            return self.error
        if not self.numbers:
            return "nothing to measure"
        return f"{number(self.missing)} of {number(self.missing + self.numbers)} rows have no value" if self.missing else None

    @property
    def observed(self) -> float | None:
        if self.unmeasured:
            return None
        if self.expect.row_wise or self.expect.kind == "rows":
            return float(self.rows)
        mean = self.total / self.numbers
        return {"max": self.high, "min": self.low, "mean": mean, "noise": mean}[self.expect.kind]

    def add(self, table: pa.Table) -> None:
        e = self.expect
        missing = [c for c in (*e.columns, *(e.where or ())[:1]) if c not in table.column_names]
        try:
            if missing:
                self.error = f"error: no column {', '.join(missing)} among {table.column_names}"
            elif e.kind != "unique":  # that no table tells by itself
                self._add(table if e.where is None else table.filter(pc.equal(table[e.where[0]], e.where[1])))
        except pa.ArrowException as error:  # text in place of numbers
            self.error = f"error: {', '.join(e.columns)}: {error}"

    def _add(self, table: pa.Table) -> None:
        if self.expect.kind == "rows":
            self.rows += table.num_rows
        elif self.expect.kind in _BREAKS:
            self.blame(table.filter(_BREAKS[self.expect.kind](table, self.expect)))
        else:
            column = table[self.expect.columns[0]]
            numbers = column.filter(pc.invert(pc.is_null(column, nan_is_null=True)))
            self.total += pc.sum(numbers, min_count=0).as_py()
            self.numbers += len(numbers)
            self.missing += len(column) - len(numbers)
            extremes = pc.min_max(numbers).as_py()
            if len(numbers):
                self.low, self.high = min(self.low, float(extremes["min"])), max(self.high, float(extremes["max"]))

    def blame(self, rows: pa.Table) -> None:
        """These rows break it."""
        self.rows += rows.num_rows
        columns = dict.fromkeys(c for c in (*_PLACE, *self.expect.columns) if c in rows.column_names)
        some = rows.select(list(columns)).slice(0, _EXAMPLES - len(self.examples)).to_pylist()
        self.examples += [told for row in some if (told := _told(row, self.expect))]


def _told(row: dict[str, Any], e: Expect) -> str:
    """What stands in the row, and where the row stands if its table says so."""
    values = {c: row[c] for c in e.columns}
    one = row[e.columns[0]]
    told = str(values if e.kind == "unique" else tuple(values.values()) if len(values) > 1 else "no value" if one is None else one)
    # what breaks a text's form is often what a terminal would act upon
    told = "" if e.kind == "never_null" else "".join(c if c.isprintable() else repr(c)[1:-1] for c in told)
    if "row" not in row:
        return told
    return f"{told[:_LONGEST]} in {row['shard']}.parquet, row {row['row']}, key {row['key']}".strip()


def tally(tables: Iterable[pa.Table], expectations: list[Expect]) -> list[Tally]:
    """Count what each is judged by. The tables are walked over once, and again for rows that must be unique."""
    tallies = [Tally(e) for e in expectations]
    for table in tables:
        for t in tallies:
            t.add(table)
    for t in tallies:
        if t.expect.kind == "unique" and not t.error:
            t.blame(repeated(tables, t.expect.columns))
    return tallies
