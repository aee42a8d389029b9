"""What a run leaves in Prefect's UI: the table of results, the gates' checks, links to the pages."""

import base64
import json
import os
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.stage import slug

TABLE = Path("artifacts/report/table.txt")
FIGURES = ("models", "scores")


def publish(root: Path, *, with_table: bool) -> None:
    """Artifacts of what is there; a chain that stopped half way has some of it, and the table of an older run."""
    if with_table and (root / TABLE).exists():
        create_markdown_artifact(key="results", markdown=f"```\n{(root / TABLE).read_text()}\n```", description="final table")
    if rows := gate_checks(root / "artifacts"):
        create_table_artifact(key="gates", table=rows, description="checks of the gates")
    for name, link in links(root / "artifacts").items():
        create_link_artifact(key=slug(name), link=link, link_text=name)
    for name in FIGURES:
        if with_table and (image := root / TABLE.parent / f"figures/{name}.png").exists():
            # within the URL: a browser loads no file:// from the server's pages
            url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
            create_image_artifact(key=slug(f"figure {name}"), image_url=url)


def gate_checks(artifacts: Path) -> list[dict]:
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
