"""The rows of lists of URLs: CC3M, CC12M, LAION, COYO, DataComp, or any CSV, TSV, JSON lines or Parquet with a column of URLs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blip_core.fetch.settings import FetchConfig
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import TEXTS, URLS, column, is_url
from blip_core.intake.formats.rows import Row, Table, Values, kind_of, open_table, scan, without_header

_HEAD = 20  # rows by which the columns are found


@dataclass(frozen=True)
class Wanted:
    """A row of a list. `url` is empty where the row can't be read; then `fault` says why. `rest`: its other columns."""

    url: str
    text: str
    rest: Values = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class UrlList:
    """A file and which of its columns are read."""

    table: Table
    url: str
    text: str | None

    def rows(self) -> Iterator[Wanted]:
        for row in scan(self.table):
            yield self._wanted(row)

    def _wanted(self, row: Row) -> Wanted:
        if isinstance(row.values, Rejected):
            return Wanted("", "", fault=f"{self.table.path.name}:{row.line}: {row.values}")
        url, text = (row.values.get(name) if name else None for name in (self.url, self.text))
        rest = {name: value for name, value in row.values.items() if name not in (self.url, self.text)}
        if not isinstance(url, str) or not url.strip():
            return Wanted("", str(text or ""), rest, f"{self.table.path.name}:{row.line}: no URL in column {self.url!r}")
        return Wanted(url.strip(), "" if text is None else str(text), rest)


def open_lists(paths: list[Path], cfg: FetchConfig) -> list[UrlList]:
    """The lists of these files and of the tables in these folders, by name. ValueError where one is none."""
    files = [file for path in paths for file in (sorted(p for p in path.iterdir() if kind_of(p)) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no .csv, .tsv, .jsonl or .parquet there; expected a list of URLs")
    return [_open(file, cfg) for file in files]


def _open(file: Path, cfg: FetchConfig) -> UrlList:
    if not file.is_file() or kind_of(file) is None:
        raise ValueError(f"{file}: {'no .csv, .tsv, .jsonl or .parquet' if file.exists() else 'no such file'}; expected a list of URLs")
    try:
        table = open_table(file)
        if table.kind == "csv" and any(map(is_url, table.names)):  # CC3M and CC12M have no line of names
            table = without_header(table)
        head = [row.values for _, row in zip(range(_HEAD), scan(table), strict=False) if isinstance(row.values, dict)]
    except Rejected as e:
        raise ValueError(f"{file}: {e}; expected a list of URLs") from None
    names = list(dict.fromkeys(name for values in head for name in values))
    urls = [name for name in names if any(is_url(values.get(name)) for values in head)]
    url = column(names, URLS, cfg.url) if cfg.url else column(urls, URLS) or (urls[0] if len(urls) == 1 else None)
    if url is None:
        asked = f"no column {cfg.url!r}" if cfg.url else f"{len(urls)} columns of URLs" if urls else "no column of URLs"
        raise ValueError(f"{file}: {asked} among {', '.join(names)}; name the right one by --url")
    others = [name for name in names if name != url]
    text = column(others, TEXTS, cfg.text) or (others[0] if len(others) == 1 and not cfg.text else None)
    if cfg.text and text is None:
        raise ValueError(f"{file}: no column {cfg.text!r} among {', '.join(names)}; name the right one by --text")
    return UrlList(table, url, text)
