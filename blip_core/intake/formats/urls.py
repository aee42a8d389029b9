"""Lists of URLs: CC3M, CC12M, LAION, COYO, DataComp, SBU. No images lie there, so nothing reads them; here is told what to do."""

from pathlib import Path

from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import FILES, IMAGE_FILE, TEXTS, URLS, column, is_url
from blip_core.intake.formats.files import head_holds, json_files
from blip_core.intake.formats.rows import Table, open_table
from blip_core.intake.formats.table import table_files


def advice(path: Path) -> str | None:
    """What to say about a file or folder that holds URLs and captions but no images; None where it holds none."""
    for file in table_files(path):
        try:
            found = _columns(open_table(file))
        except Rejected:
            continue
        if found:
            return _say(file, *found)
    for file in json_files(path):
        if head_holds(file, *URLS, opens="[") and not head_holds(file, "image", *FILES, opens="[", value=IMAGE_FILE):
            url, text = (next((w for w in words if head_holds(file, w, opens="[")), words[0]) for words in (URLS, TEXTS))
            return _say(file, "json", url, text, "")
        if head_holds(file, "image_urls"):
            return _say(file, "json", "url", "caption", "\nIts lists stand side by side, as in SBU: make it [{url, caption}, ...] first")
    return None


def _columns(table: Table) -> tuple[str, str, str, str] | None:
    """img2dataset's input format, the columns of URLs and texts, and a remark."""
    kind = {"jsonl": "jsonl", "parquet": "parquet"}.get(table.kind, "tsv" if table.dialect.delimiter == "\t" else "csv")
    url, text = column(table.names, URLS), column(table.names, TEXTS)
    if url is not None:
        rest = "" if text else f"\nWhich column holds the texts is not plain: it has {', '.join(table.names)}; put one for COLUMN"
        return kind, url, text or "COLUMN", rest
    at = [i for i, cell in enumerate(table.names) if is_url(cell)]
    if table.kind != "csv" or len(at) != 1 or len(table.names) < 2:
        return None
    first, second = ("url", "caption") if at[0] == 0 else ("caption", "url")
    tab = "$'\\t'" if table.dialect.delimiter == "\t" else table.dialect.delimiter
    order = f"its columns are {first}, {second} (CC3M: caption, url; CC12M: url, caption)"
    return kind, "url", "caption", f"\nIt has no line of names, and {order}: add one first: sed -i 1i{first}{tab}{second} FILE"


def _say(file: Path, kind: str, url: str, text: str, remark: str) -> str:
    return (
        f"{file}: a list of URLs without images. Download them with img2dataset and give its output folder instead:\n"
        f"  img2dataset --url_list {file} --input_format {kind} --url_col {url} --caption_col {text}"
        f" --output_format webdataset --output_folder FOLDER{remark}"
    )
