"""Data Docs: a page of what was checked and found, and an index of these pages, newest first.

Great Expectations' own pages take styles, icons and scripts from other hosts. These are drawn from the same answers (pages/*.html), each
one file that fetches nothing and runs no script. Texts of the crawl stand on them as examples, so every string is escaped.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.checks.expect import number
from blip_core.files.atomic import new_file, new_folder
from blip_core.files.content import write_json

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX, RESULTS = "index.html", "results.json"


def write_docs(docs: Path, results: list[dict[str, Any]], *, title: str, notes: Sequence[str] = (), answers: dict[str, Any]) -> None:
    """Replace the folder `docs` by a page of `results` and the file that it is drawn from, then the index beside the folder.

    `notes`: what explains several results at once; `answers`: Great Expectations' own, by suite."""
    about = {"title": title, "at": datetime.now(UTC).isoformat(timespec="seconds"), "notes": list(notes)}
    with new_folder(docs) as temporary:
        write_json({**about, "checks": results, "great_expectations": answers}, temporary / RESULTS)
        (temporary / INDEX).write_text(_render("validation.html", **about, checks=results), encoding="utf-8")
    _write_index(docs.parent)


def _write_index(folder: Path) -> None:
    shown = None
    while shown != (found := sorted(folder.glob(f"*/{RESULTS}"))):  # a stage that ends meanwhile writes one as well
        with new_file(folder / INDEX) as temporary:
            temporary.write_text(_render("index.html", validations=_newest_first(found)), encoding="utf-8")
        shown = found


def _newest_first(paths: list[Path]) -> list[dict[str, Any]]:
    found = [{**json.loads(path.read_text(encoding="utf-8")), "link": f"{path.parent.name}/{INDEX}"} for path in paths]
    return sorted(found, key=lambda validation: validation["at"], reverse=True)


def _render(template: str, **values: Any) -> str:
    return _pages().get_template(template).render(**values) + "\n"


@cache
def _pages() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("pages")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"found": _found, "time": _time}
    return pages


def _found(observed: object) -> str:
    """An int counts rows."""
    if isinstance(observed, int):
        return f"{observed:,} row{'' if observed == 1 else 's'}"
    return number(observed) if isinstance(observed, float) else str(observed)


def _time(at: str) -> str:
    return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M:%S} UTC"
