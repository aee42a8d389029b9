"""The rows of lists of URLs: CC3M, CC12M, LAION, COYO, DataComp, or any CSV, TSV, JSON or Parquet with a column of URLs."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from blip_core.fetch.settings import FetchConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.cells import Values
from blip_core.intake.formats.columns import TEXTS, URLS, column, is_url
from blip_core.intake.formats.rows import kind_of, open_table, scan, without_header

log = logging.getLogger(__name__)
NONE = "no .csv, .tsv, .jsonl, .json or .parquet"
_HEAD = 20  # rows by which the columns are found
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Wanted:
    """A row of a list. `url` is empty where the row can't be read; then `fault` says why. `rest`: its other columns."""

    url: str
    text: str
    rest: Values = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class UrlList:
    """A file and which of its columns are read. `entries`: each row's line and cells."""

    file: Path
    url: str
    text: str | None
    entries: Callable[[], Iterable[tuple[int, Values | Rejected]]]

    def rows(self) -> Iterator[Wanted]:
        for line, values in self.entries():
            yield self._wanted(f"{self.file.name}:{line}", values)

    def _wanted(self, where: str, values: Values | Rejected) -> Wanted:
        if isinstance(values, Rejected):
            return Wanted("", "", fault=f"{where}: {values}")
        url, text = (values.get(name) if name else None for name in (self.url, self.text))
        rest = {name: value for name, value in values.items() if name not in (self.url, self.text)}
        words = "" if text is None else str(text)
        if not isinstance(url, str) or not url.strip():
            return Wanted("", words, rest, f"{where}: no URL in column {self.url!r}")
        return Wanted(url.strip(), words, rest)


def open_lists(paths: list[Path], cfg: FetchConfig) -> list[UrlList]:
    """The lists of these files and of the files in these folders, by name; what else lies there is told. ValueError where one is none."""
    files = [file for path in paths for file in (_lists_in(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: {NONE} there; expected a list of URLs")
    return [_open(file, cfg) for file in files]


def _lists_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if others := [path.name for path in found if not _may_be(path)]:
        log.warning("%s: not read: %s; %s", folder, ", ".join(others[:_SHOWN]) + ", …" * (len(others) > _SHOWN), NONE)
    return [path for path in found if _may_be(path)]


def _may_be(file: Path) -> bool:
    return file.is_file() and (file.suffix.lower() == ".json" or kind_of(file) is not None)


def _open(file: Path, cfg: FetchConfig) -> UrlList:
    if not _may_be(file):
        raise ValueError(f"{file}: {NONE if file.exists() else 'no such file'}; expected a list of URLs")
    try:
        entries = _entries(file)
        head = [values for _, values in islice(entries(), _HEAD) if isinstance(values, dict)]
    except (Rejected, ValueError, RecursionError) as e:
        raise ValueError(f"{file}: {e}; expected a list of URLs") from None
    names = list(dict.fromkeys(name for values in head for name in values))
    urls = [name for name in names if any(is_url(values.get(name)) for values in head)]
    url = column(names, URLS, cfg.url) if cfg.url else column(urls, URLS) or (urls[0] if len(urls) == 1 else None)
    if url is None:
        asked = f"no column {cfg.url!r}" if cfg.url else f"{len(urls)} columns of URLs" if urls else "no column of URLs"
        raise ValueError(f"{file}: {asked} among {', '.join(names)}; name the right one by --url")
    others = [name for name in names if name != url]
    text = column(others, TEXTS, cfg.text) or (others[0] if len(others) == 1 and cfg.text is None else None)
    if others and text is None and cfg.text != "":
        asked = f"no column {cfg.text!r}" if cfg.text else "which column holds the texts is not plain"
        raise ValueError(f"{file}: {asked} among {', '.join(others)}; name the right one by --text, or --text '' for none")
    return UrlList(file, url, text, entries)


def _entries(file: Path) -> Callable[[], Iterable[tuple[int, Values | Rejected]]]:
    """What yields the rows anew each time. Rejected or ValueError where the file can't be read."""
    if kind_of(file) is None:
        rows = list(enumerate(_json_rows(json.loads(file.read_bytes())), 1))
        return lambda: rows
    table = open_table(file)
    if table.kind == "csv" and any(map(is_url, table.names)):  # CC3M and CC12M have no line of names
        table = without_header(table)
    return lambda: ((row.line, row.values) for row in scan(table))


def _json_rows(value: object) -> list[Values | Rejected]:
    """A list of objects, or an object of lists that stand side by side, as in SBU."""
    if isinstance(value, dict):
        lists = {name: cells for name, cells in value.items() if isinstance(cells, list)}
        if not lists or len(set(map(len, lists.values()))) != 1:
            raise ValueError("no list of objects, nor lists of one length side by side")
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if not isinstance(value, list):
        raise ValueError(f"a JSON {type(value).__name__}")
    return [row if isinstance(row, dict) else Rejected("bad_row", f"expected an object, got {type(row).__name__}") for row in value]
