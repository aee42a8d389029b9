"""Pictures that a command line names, and rows that answer it: lines of text, CSV or JSON lines, on the screen or in a file."""

import contextlib
import csv
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from blip_core.files.atomic import new_file
from blip_core.intake.formats.columns import IMAGE_ENDS

Row = dict[str, Any]
FORMATS = ("text", "csv", "jsonl")


def found_pictures(named: list[str], stdin: Iterable[str]) -> list[str]:
    """The files behind names, once each: a folder stands for the pictures below it, `-` for a list of paths. What else is named stays as
    it is, and fails where it is read. ValueError when a folder holds none."""
    found: list[str] = []
    for name in named:
        if name == "-":
            found += found_pictures([line.rstrip("\r\n") for line in stdin if line.strip()], ())
        elif Path(name).is_dir():
            found += _below(Path(name))
        else:
            found.append(name)
    if not found:
        raise ValueError(f"{' '.join(named)}: no picture named")
    return list(dict.fromkeys(found))


def _below(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [str(path) for path in files if path.suffix.lower() in IMAGE_ENDS]
    if not pictures:
        raise ValueError(f"{folder}: no picture among its {len(files)} files; expected names that end in {', '.join(IMAGE_ENDS[:5])} …")
    if len(files) > len(pictures):
        logging.getLogger("blip_core").info("%s: %d files that are named like no picture are left out", folder, len(files) - len(pictures))
    return pictures


class Rows:
    """Writes rows as they come; a file takes its name when all are written. `faults` counts those that have one."""

    def __init__(self, columns: list[str], out: Path | None, form: str | None):
        """ValueError when the ending of `out` names no form, and nothing else does."""
        self.columns, self.out, self.faults = columns, out, 0
        self.form = form or (out.suffix.removeprefix(".") if out else "text")
        if self.form not in FORMATS:
            raise ValueError(f"--out {out}: expected a name that ends in .csv or .jsonl, or the form by --format")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Rows":
        self._file: TextIO = sys.stdout
        if self.out:
            temporary = self._stack.enter_context(new_file(self.out))
            self._file = self._stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        if self.form == "csv":
            self._csv = csv.DictWriter(self._file, self.columns, lineterminator="\n")
            self._csv.writeheader()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def write(self, row: Row) -> None:
        self.faults += row.get("fault") is not None
        if self.form == "csv":
            self._csv.writerow(row)
        else:
            print(json.dumps(row, ensure_ascii=False) if self.form == "jsonl" else _line(row), file=self._file, flush=not self.out)


def _line(row: Row) -> str:
    """Words as they are, numbers with their names, a tab between them."""
    return "\t".join(_word(name, value) for name, value in row.items())


def _word(name: str, value: str | float) -> str:
    if isinstance(value, float):
        return f"{name} {value:.3f}"
    printable = "".join(c if c.isprintable() else "?" for c in value)  # on one line: names and texts come from an unknown hand
    return f"not read: {printable}" if name == "fault" else printable
