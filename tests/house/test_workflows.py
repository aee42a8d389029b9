"""What others read or run, checked offline: the workflows by GitHub's schema and a linter for their safety, the server by Compose, issue
forms and citation by their schemas."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
COMPOSE = yaml.safe_load((ROOT / "mlflow/compose.yaml").read_text())
SERVED = ("postgres", "mlflow", "prefect")


def check(*command: str | Path) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_keep_githubs_schema(schema):
    assert {path.name for path in WORKFLOWS} == {"test.yml", "retrain.yml"}
    check("check-jsonschema", "--builtin-schema", schema, *WORKFLOWS)


@pytest.mark.parametrize(
    ("schema", "files"), [("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/*.yml"), ("vendor.citation-file-format", "CITATION.cff")]
)
def test_issue_forms_and_citation_keep_their_schema(schema, files):
    found = sorted(ROOT.glob(files))
    assert found
    check("check-jsonschema", "--builtin-schema", schema, *found)


def test_the_workflow_runs_what_ci_runs():
    """And before it nothing but the checkout and Python: `make` sets up what it needs. A job of its own runs the slow tests too."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    test, slow = ([step["run"] for step in jobs[name]["steps"] if "run" in step] for name in ("test", "slow"))
    assert test == re.findall(r"^make .+$", (ROOT / ".ci/run").read_text(), re.M) == ["make check", "make test"]
    assert slow == ["make test-all"]


def test_before_a_commit_run_tools_of_make_check():
    check("pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml")
    (own,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    tools = {f".venv/bin/{line.split()[0]}" for line in recipe.splitlines()}
    assert own["repo"] == "local" and {hook["entry"].split()[0] for hook in own["hooks"]} <= tools


def test_workflows_let_nobody_in():
    """zizmor: actions pinned by hash, least permissions, no expression in a script, no credentials left in the checkout, …"""
    check("zizmor", "--offline", "--quiet", "--persona", "pedantic", ROOT / ".github/workflows")


def test_a_schema_that_is_broken_is_seen(tmp_path):
    """The checks above can fail."""
    (tmp_path / "bad.yml").write_text("on: push\njobs: {a: {runs-on: x, steps: [{run: 'echo ${{ github.event.issue.title }}'}]}}\n")
    for command in (
        ["check-jsonschema", "--builtin-schema", "custom.github-workflows-require-timeout"],
        ["zizmor", "--offline", "--quiet"],
    ):
        assert subprocess.run([BIN / command[0], *command[1:], tmp_path / "bad.yml"], capture_output=True).returncode != 0


def test_retraining_follows_data_and_values_on_main_alone():
    workflow = yaml.safe_load((ROOT / ".github/workflows/retrain.yml").read_text())
    triggers = workflow[True]  # YAML 1.1 reads `on` so
    assert triggers["push"] == {"branches": ["main"], "paths": ["data.dvc", "params.yaml"]}
    assert set(triggers) == {"push", "workflow_dispatch"} and workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    command = next(step["run"] for step in job["steps"] if "flows.ask" in step.get("run", ""))
    assert int(re.search(r"--timeout (\d+)", command)[1]) < job["timeout-minutes"] * 60  # it must have time to cancel the run


def test_what_the_job_installs_is_enough_to_ask():
    """Prefect and PyYAML: none of the chain's own libraries."""
    script = "import sys, flows.ask; sys.exit(bool({'torch', 'dvc', 'mlflow', 'pyarrow', 'blip_core'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_server_keeps_composes_schema():
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "mlflow/compose.yaml")


def test_the_server_is_valid_by_compose_itself(tmp_path):
    """`docker compose config`, as docs/tracking.md says: what is not filled in is named; filled in, the file is whole."""
    folder = shutil.copytree(ROOT / "mlflow", tmp_path / "mlflow", ignore=shutil.ignore_patterns(".env"))
    command = [BIN / "docker-compose", "config", "--format", "json"]
    settings = re.sub(r"^(\w+)=$", r"\1=x", (folder / ".env.example").read_text(), flags=re.M)
    names = re.findall(r"^(\w+)=x$", settings, re.M)
    env = {name: value for name, value in os.environ.items() if name not in names}
    run = lambda: subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)  # noqa: E731
    refused = run()
    assert refused.returncode != 0 and all(f"{name} is missing a value: set it in mlflow/.env" in refused.stderr for name in names)
    (folder / ".env").write_text(settings)
    done = run()
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["services"]
    assert set(made) == set(SERVED)
    assert {port["host_ip"] for service in made.values() for port in service.get("ports", [])} == {"127.0.0.1"}
    assert all(made[name]["depends_on"]["postgres"]["condition"] == "service_healthy" for name in ("mlflow", "prefect"))


def test_the_server_is_pinned_watched_and_local():
    for name, service in COMPOSE["services"].items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), name
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
    served = {name for name, service in COMPOSE["services"].items() if service.get("restart") == "unless-stopped"}
    assert served == set(SERVED) and all("healthcheck" in COMPOSE["services"][name] for name in SERVED)
    assert "ports" not in COMPOSE["services"]["postgres"]


def test_secrets_come_from_a_file_that_git_ignores():
    text = (ROOT / "mlflow/compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    example = (ROOT / "mlflow/.env.example").read_text()
    assert required == set(re.findall(r"^(\w+)=$", example, re.M))
    assert set(re.findall(r"\$\{(\w+):-", text)) == set(re.findall(r"^# (\w+)=\S", example, re.M))
    assert "/mlflow/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_server_runs_the_versions_of_the_project():
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = re.findall(r'"([\w-]+)(?:\[\w+\])?==([\w.]+)"', (ROOT / "mlflow/server.Dockerfile").read_text())
    assert {name.lower(): version for name, version in wanted if name.lower() in pins} == {
        name: pins[name] for name in ("mlflow", "fastapi", "boto3", "sqlalchemy", "psycopg2-binary")
    }
    assert COMPOSE["services"]["prefect"]["image"] == f"prefecthq/prefect:{pins['prefect']}-python3.11"
    assert COMPOSE["services"]["mlflow"]["image"] == f"blip-mlflow:{pins['mlflow']}"


def test_databases_are_asked_for_by_drivers_that_are_there():
    """With SQLAlchemy 2.1 a bare postgresql:// means psycopg 3, which is not installed: MLflow's server ended at its start."""
    from sqlalchemy import create_engine

    settings = [s for service in COMPOSE["services"].values() for s in service["environment"].values()]
    urls = [s for s in settings if s.startswith("postgresql")]
    assert len(urls) == 3
    for url in urls:
        create_engine(re.sub(r"\$\{.*?\}", "x", url))


@pytest.mark.parametrize("script", ["start.sh", "databases.sh"])
def test_the_servers_scripts_parse(script):
    assert subprocess.run(["sh", "-n", ROOT / "mlflow" / script]).returncode == 0
