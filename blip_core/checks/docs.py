"""Data Docs: a page of what was checked and found, and an index of these pages, newest first.

Great Expectations' own pages take styles, icons and scripts from other hosts. These are drawn from the same answers (pages/*.html), each
one file that fetches nothing and runs no script. Texts of the crawl stand on them as examples, so every string is escaped.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.checks.expect import measured
from blip_core.checks.remedies import remedy
from blip_core.files.atomic import new_file, new_folder
from blip_core.files.content import write_json
from blip_core.tables.manifest import listed_hash

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

INDEX, RESULTS = "index.html", "results.json"


@dataclass(frozen=True)
class Docs:
    """Where they go, and what they are of."""

    folder: Path  # replaced; the index lies beside it
    title: str
    generation: str  # hash of its content
    notes: Sequence[str] = ()  # what explains several results at once


def write_docs(docs: Docs, results: list[dict[str, Any]], *, answers: dict[str, Any]) -> None:
    """A page of `results` and the file that it is drawn from, then the index. `answers`: Great Expectations' own, by suite."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"title": docs.title, "at": at, "notes": list(docs.notes), "checks": results}
    with new_folder(docs.folder) as temporary:
        write_json({**about, "generation": docs.generation, "great_expectations": answers}, temporary / RESULTS)
        (temporary / INDEX).write_text(_render("validation.html", **about), encoding="utf-8")
    _write_index(docs.folder.parent)


def read_verdict(generation: Path, docs: Path, gate: Path) -> list[dict[str, Any]] | None:
    """The results of the last checks of this very generation; None where it was not checked. The gate file tells them as well, and may have
    come without the rest, as from DVC's remote; of a failure there is none."""
    for path in (gate, docs / RESULTS):
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if found.get("generation") == listed_hash(generation):
            return found["checks"]
    return None


def _write_index(folder: Path) -> None:
    shown = None
    while shown != (page := _render("index.html", validations=_newest_first(folder))):  # a stage that ends meanwhile writes one as well
        with new_file(folder / INDEX) as temporary:
            temporary.write_text(page, encoding="utf-8")
        shown = page


def _newest_first(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"*/{RESULTS}"))
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
    pages.filters |= {"found": _found, "time": _time, "remedy": _remedy}
    return pages


def _found(observed: object, limit: str) -> str:
    """An int counts rows."""
    if isinstance(observed, int):
        return f"{observed:,} row{'' if observed == 1 else 's'}"
    return measured(observed, limit)


def _remedy(check: str) -> "Markup":
    """What stands in backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(remedy(check)))))


def _time(at: str) -> str:
    return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M:%S} UTC"
