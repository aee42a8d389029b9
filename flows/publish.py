"""What a run leaves in Prefect's UI: the table of results, the gates' checks, links to the pages."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.stage import slug

TABLE = Path("artifacts/report/table.txt")
COMPARISON = Path("artifacts/compare.json")
FIGURES = ("models", "scores")


def publish(root: Path, *, done: set[str]) -> None:
    """Artifacts of what is there. What stages that are not `done` make may be of an older run, so it is left out."""
    with_table = "report" in done and (root / TABLE).exists()
    if with_table:
        create_markdown_artifact(key="results", markdown=f"```\n{(root / TABLE).read_text()}\n```", description="final table")
    if "compare" in done and (root / COMPARISON).exists():
        verdict = comparison(json.loads((root / COMPARISON).read_text()))
        create_markdown_artifact(key="comparison", markdown=verdict, description="the challenger against its baselines")
    if rows := gate_checks(root / "artifacts"):
        create_table_artifact(key="gates", table=rows, description="checks of the gates")
    for name, link in links(root / "artifacts").items():
        create_link_artifact(key=slug(name), link=link, link_text=name)
    for name in FIGURES:
        if with_table and (image := root / TABLE.parent / f"figures/{name}.png").exists():
            # within the URL: a browser loads no file:// from the server's pages
            url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
            create_image_artifact(key=slug(f"figure {name}"), image_url=url)


def comparison(verdict: dict[str, Any]) -> str:
    """What the stage compare found, in Markdown: the sentence that people look for, the tests, the reasons against."""
    baselines = " and ".join(verdict["baselines"])
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
    """One row per check of a gate that passed, one per value that a gate measured, passed or not."""
    rows = []
    for path in sorted((artifacts / "gates").glob("*.json")):
        for check in json.loads(path.read_text()).get("checks", []):
            row = check if isinstance(check, dict) else {"check": check}
            rows.append({"gate": path.stem, **{key: _cell(value) for key, value in row.items()}})
    for path in sorted((artifacts / "metrics").glob("gate-*.json")):
        rows += [{"gate": path.stem, "check": k, "value": _cell(v)} for k, v in json.loads(path.read_text()).items()]
    return rows


def _cell(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)


def links(artifacts: Path) -> dict[str, str]:
    """The report, the Data Docs and the MLflow server, as far as they are there."""
    pages = {"report": artifacts / "report/index.html"}
    pages |= {f"data docs {p.parent.name}": p for p in sorted(artifacts.glob("docs/*/index.html"))}
    found = {name: page.resolve().as_uri() for name, page in pages.items() if page.exists()}
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    return found | ({"mlflow": tracking} if tracking.startswith("http") else {})
