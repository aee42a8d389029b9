"""Lists of URLs: CC3M, CC12M, LAION, COYO, DataComp, SBU. No images lie there, so nothing reads them; here is told what to do."""

import json
from pathlib import Path

from blip_core.files.rejected import Rejected
from blip_core.intake.formats.cells import Values
from blip_core.intake.formats.columns import NAME_IT, TEXTS, URLS, column, is_image_name, is_url, suffixed, text_columns
from blip_core.intake.formats.files import head_holds, head_of, json_files
from blip_core.intake.formats.rows import Table, open_table, scan
from blip_core.intake.formats.table import table_files


def advice(path: Path) -> str | None:
    """What to say about a file or folder that holds URLs and captions but no images, or pictures whose texts are not plain to find; None
    where it holds neither."""
    for file in table_files(path):
        try:
            table = open_table(file)
        except Rejected:
            continue
        first = next((row.values for row in scan(table) if isinstance(row.values, dict)), {})
        if found := _unclear(file, first) or _listed(file, first) or _nameless(file, table):
            return found
    for file in json_files(path):
        first = _first_object(file)
        if found := _unclear(file, first) or _listed(file, first):
            return found
        if head_holds(file, "image_urls"):
            return _say(file)
    return None


def _unclear(file: Path, first: Values) -> str | None:
    """Of a list of pictures by their names, where several columns may be the texts."""
    several = suffixed(list(first))
    if not any(map(is_image_name, first.values())) or text_columns(list(first)) or not several:
        return None
    return f"{file}: names pictures, but which column holds their texts is not plain: {', '.join(several)}; {NAME_IT}"


def _listed(file: Path, first: Values) -> str | None:
    """`first`: a row, by the names of the columns."""
    urls = [name for name, cell in first.items() if is_url(cell)]
    url = column(urls, URLS) or (urls[0] if len(urls) == 1 else None)
    if url is None or any(map(is_image_name, first.values())):
        return None
    text = column([name for name in first if name != url], TEXTS)
    rest = "" if text else f"\nWhich column holds the texts is not plain: it has {', '.join(first)}; put one for COLUMN"
    return _say(file, f" --url {url} --text {text or 'COLUMN'}", rest)


def _nameless(file: Path, table: Table) -> str | None:
    """Of a table whose first line is a row."""
    at = [i for i, cell in enumerate(table.names) if is_url(cell)]
    if table.kind != "csv" or len(at) != 1 or len(table.names) < 2:
        return None
    return _say(file)


def _first_object(file: Path) -> Values:
    """Of a JSON list, by a look at the file's head; empty where there is none."""
    head = head_of(file)
    if not head.startswith(b"["):
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(head[1:].decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _say(file: Path, flags: str = "", remark: str = "") -> str:
    return (
        f"{file}: a list of URLs without images. Fetch them, and give the folder instead:\n  blip fetch {file}{flags} --out FOLDER{remark}"
    )
