"""What a run leaves in Prefect's UI: its results, the comparison, the gates' checks, figures, and where to see the pages.

A browser follows no link from the server's pages to a file, so all that can stands in the artifacts themselves.
"""

import base64
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from blip_core.checks.docs import RESULTS
from blip_core.cli.show import address, pages, title

COMPARISON = Path("artifacts/compare.json")
SUMMARY = "In short"  # a section of the report, finished or not
# of a check as the stages note it, and what stands above the column
COLUMNS = {"gate": "gate", "name": "check", "observed": "found", "limit": "expected", "says": "what it is"}


def publish(root: Path, here: Path, states: Mapping[str, State]) -> None:
    """Artifacts of what is in `root`, in or below the project's folder `here`, after the stages ended so. What others make may be of an
    older run, so it is left out."""
    done = {name for name, state in states.items() if state.is_completed() and state.name != "Kept"}
    if folder := _report(root, done, {name.split("@")[0] for name, state in states.items() if state.name == "Failed"}):
        create_markdown_artifact(key="results", markdown=results((folder / "table.txt").read_text()), description="what came of the run")
        figures = sorted(folder.glob("figures/*.png"), key=lambda path: (path.stem.startswith("examples"), path.stem))
        create_markdown_artifact(key="figures", markdown="\n\n".join(map(_picture, figures)), description="figures of the report")
    if "compare" in done and (root / COMPARISON).exists():
        verdict = comparison(json.loads((root / COMPARISON).read_text()))
        create_markdown_artifact(key="comparison", markdown=verdict, description="the challenger against its baselines")
    if checks := gate_checks(root / "artifacts"):
        create_markdown_artifact(key="gates", markdown=as_page(checks), description="checks of the gates, those that failed first")
    create_markdown_artifact(key="pages", markdown=where_to_look(root, here), description="the report and the other pages")


def _report(root: Path, done: set[str], failed: set[str]) -> Path | None:
    """The folder of the report, or of what is drawn of an unfinished chain where a gate says no; None without."""
    folder = "report" if "report" in done else "interim" if failed & {"validate", "gate"} else None
    return root / "artifacts" / folder if folder and (root / "artifacts" / folder / "table.txt").exists() else None


def results(table: str) -> str:
    """The report's text in Markdown: its summary as a list, all else as it is. A line of dashes below a line marks a heading."""
    _, *rest = re.split(r"^(.+)\n[-=]{4,}\n", table, flags=re.MULTILINE)
    sections = {_sentence(heading): body.strip("\n") for heading, body in zip(rest[::2], rest[1::2], strict=True) if body.strip()}
    if not sections:
        return _fenced(table)
    parts = [f"## {heading}\n\n{_list(body) if heading == SUMMARY else _fenced(body)}" for heading, body in sections.items()]
    return "\n\n".join(parts) + "\n"


def _list(summary: str) -> str:
    """A line that was wrapped goes on behind two blanks."""
    return "\n".join(f"- {_escaped(line)}" for line in summary.replace("\n  ", " ").splitlines())


def _sentence(heading: str) -> str:
    """`1. THE MODELS` as `1. The models`."""
    return re.sub(r"[a-z]", lambda first: first[0].upper(), heading.lower(), count=1)


def _fenced(text: str) -> str:
    return f"```\n{text}\n```"


def _picture(path: Path) -> str:
    """In the page itself: an image artifact would show its address too, which is as long as the picture."""
    return f"## {path.stem}\n\n![{path.stem}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"


def comparison(verdict: dict[str, Any]) -> str:
    """What the stage compare found, in Markdown: the sentence that people look for, the tests, the reasons against."""
    baselines = " and ".join(verdict["baselines"]) or "any baseline"
    head = f"**{verdict['challenger']} is {'better' if verdict['better'] else 'not shown to be better'} than {baselines}.**"
    rows = ["| against | metric | challenger | baseline | change | interval | |", "|---|---|---|---|---|---|---|"]
    for name, metrics in verdict["baselines"].items():
        for metric, test in metrics.items():
            change = f"{test['difference']:+.4f} | [{test['low']:+.4f}, {test['high']:+.4f}]"
            mark = "passed" if test["passed"] else "**failed**"
            rows.append(f"| {name} | {metric} | {test['challenger']:.4f} | {test['baseline']:.4f} | {change} | {mark} |")
    instead = [f"{verdict['instead_because']}.", ""] if verdict.get("instead_because") else []
    return "\n".join([head, "", *instead, *rows, "", *(f"- {reason}" for reason in verdict["reasons"])]).strip() + "\n"


def gate_checks(artifacts: Path) -> list[dict[str, Any]]:
    """The checks of all gates, those that failed first. A gate that failed leaves its verdict beside its Data Docs alone."""
    found: dict[str, dict[str, Any]] = {}  # by what was checked: who passed has it in two files
    for name, path in [
        *((path.parent.name, path) for path in sorted((artifacts / "docs").glob(f"*/{RESULTS}"))),
        *((path.stem, path) for path in sorted((artifacts / "gates").glob("*.json"))),
    ]:
        verdict = json.loads(path.read_text())
        found.setdefault(verdict.get("generation", name), {"gate": name, "checks": verdict.get("checks", [])})
    rows = [{"gate": gate["gate"], **check} for gate in found.values() for check in gate["checks"]]
    return sorted(rows, key=lambda row: row.get("passed") is True)


def as_page(checks: list[dict[str, Any]]) -> str:
    """What failed in sentences, then every check in a table, which is too wide to be read at a glance."""
    failed = [check for check in checks if check.get("passed") is not True]
    lines = [f"**{len(failed)} of {len(checks)} checks failed.**" if failed else f"All {len(checks)} checks passed.", ""]
    for check in failed:
        found, limit, says, gate = (_cell(check.get(name)) for name in ("observed", "limit", "says", "gate"))
        lines.append(f"- **{_cell(check.get('name'))}** of {gate}: found {found}, expected {limit} ({says})")
    lines += ["", f"| | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
    for check in checks:
        mark = "passed" if check.get("passed") is True else "**failed**"
        lines.append(f"| {mark} | {' | '.join(_cell(check.get(name)) for name in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Numbers as people read them, 0.3312 for 0.33115689572320994."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return "nothing" if value is None else _escaped(str(value))


def _escaped(text: str) -> str:
    """A text of the crawl, shown with a check or in the summary, must make no link, no picture and no other cell."""
    return re.sub(r"([\\|<>*_\[\]`!])", r"\\\1", " ".join(text.split()))


def where_to_look(root: Path, here: Path) -> str:
    """The pages of the run, with the addresses at which `blip show` serves them."""
    own = [page for page in pages(root) if page.parts[0] == "artifacts"]
    links = [f"- [{title(page)}]({address((root / page).relative_to(here))})" for page in own]
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    lines = [f"These open in a browser on the machine of the run while `blip show` runs in `{here}`:", "", *links, ""] if links else []
    lines += [f"MLflow: [{tracking}]({tracking})", ""] if tracking.startswith("http") else []
    return "\n".join([*lines, f"The files lie in `{root / 'artifacts'}`."]) + "\n"
