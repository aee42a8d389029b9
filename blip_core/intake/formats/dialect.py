"""How a CSV is written: its delimiter, its quotes, and how a quote within quotes is. Declared, or found from the file's head.

Most writers double a quote within quotes; Spark puts a backslash before it. A row is read only as its file's dialect has it, strictly:
one that fits none, or the other alone, is set aside, for a lenient reader would give it a text that nobody wrote.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from blip_core.config.intake import CsvConfig

_DELIMITERS = ("\t", "|", ";", ",")
_NAMED = re.compile(r"\s*sep=(.)\s*", re.IGNORECASE)  # Excel's first line
_MOST_FIELD = 96 << 20  # characters; a picture in base64 is long


@dataclass(frozen=True)
class Dialect:
    delimiter: str = ","
    quote: str = '"'
    escape: str = ""  # before a quote within quotes; none: it is doubled. Before any other sign it is a sign of the text

    def cells(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Rows by the strict rules; csv.Error where one breaks them."""
        csv.field_size_limit(_MOST_FIELD)
        return csv.reader(
            map(self._plain, lines) if self.escape else lines,
            delimiter=self.delimiter,
            quotechar=self.quote or None,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=self.escape or None,
            doublequote=True,
            skipinitialspace=True,
            strict=True,
        )

    def _plain(self, line: str) -> str:
        """Spark writes C:\\new as it is, where csv would take the backslash away."""
        special = (self.quote, self.delimiter, self.escape)
        return re.sub(rf"{re.escape(self.escape)}(.?)", lambda m: m[0] if m[1] in special else self.escape + m[0], line, flags=re.DOTALL)

    @property
    def other(self) -> "Dialect":
        """The other way to write a quote within quotes."""
        return replace(self, escape="" if self.escape else "\\")


PLAIN = Dialect()


def named_delimiter(line: str) -> str | None:
    """Of Excel's line `sep=;`."""
    match = _NAMED.fullmatch(line)
    return match[1] if match else None


def find(head: list[str], *, declared: CsvConfig | None, delimiter: str | None) -> Dialect:
    """The dialect of a file whose first lines these are. `delimiter`: where the file says it."""
    declared = declared or CsvConfig()
    counts = {d: head[0].count(d) for d in _DELIMITERS} if head else {",": 1}
    mark = declared.delimiter or delimiter or ("\t" if counts.get("\t") else max(counts, key=counts.__getitem__))
    plain = Dialect(mark, '"' if declared.quote is None else declared.quote)
    if declared.escape is not None:
        return replace(plain, escape=declared.escape)
    return plain.other if _fitting(head, plain.other) > _fitting(head, plain) else plain


def _fitting(lines: list[str], dialect: Dialect) -> int:
    """How many of the lines are rows of as many cells as the first, each read alone."""
    width, found = 0, 0
    for line in lines:
        try:
            (cells,) = dialect.cells([line])
        except (csv.Error, ValueError):
            continue
        width = width or len(cells)
        found += len(cells) == width
    return found
