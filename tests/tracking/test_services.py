"""The services of a team, real ones: MLflow and Prefect on PostgreSQL, artifacts in S3; what needs one that is missing here skips."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from blip_core.tracking.registry import open_registry
from blip_core.tracking.runs import stage_run
from tests.flows.test_flows import ENV, runs, template, toy  # noqa: F401
from tests.stages.test_register import COMPARE, registered, root  # noqa: F401
from tests.support.postgres_server import NoServer, postgres
from tests.support.processes import HANG, wait_until

ROOT, BIN = Path(__file__).resolve().parents[2], Path(sys.executable).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server_of_databases():
    try:
        with postgres() as server:
            yield server
    except NoServer as e:
        pytest.skip(str(e))


@contextlib.contextmanager
def running(command: list, *, port: int, path: str, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """A server's process until it answers at `path`; its address. What it says goes to `folder`/log."""
    with (folder / "log").open("wb") as log:
        out = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen([str(c) for c in command], cwd=folder, env=env, **out)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or answers(address + path))
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=HANG):
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return unused.getsockname()[1]


@pytest.fixture(params=["server", "no server"])
def store(request, root, s3, server_of_databases, tmp_path, monkeypatch):  # noqa: F811
    """MLFLOW_TRACKING_URI of a store in PostgreSQL and S3: of MLflow's server, which alone has S3's keys, or of the database itself."""
    url, artifacts = server_of_databases.database(f"mlflow_{free_port()}"), f"s3://{s3.bucket()}/mlflow"
    if request.param == "no server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        command = [BIN / "mlflow", "experiments", "create", "--experiment-name", "blip", "--artifact-location", artifacts]
        subprocess.run(command, check=True, capture_output=True)
        yield url
        return
    port, folder = free_port(), tmp_path / "server"
    folder.mkdir()
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 1, "--artifacts-destination", artifacts]
    env = {**os.environ, "MLFLOW_BACKEND_STORE_URI": url, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    for name in s3.env:
        monkeypatch.delenv(name)
    with running(command, port=port, path="/health", folder=folder, env=env) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address


def test_runs_figures_and_versions_in_postgresql_and_s3(store, root, s3):  # noqa: F811
    """A stage's run, a version and its aliases, and the model loaded by alias; keys come from the environment alone."""
    import mlflow
    from matplotlib.figure import Figure

    with stage_run("r1/caption", stage="caption", params={"p": 0.9}, inputs=[Path("artifacts/generations/g1")], root=root) as run:
        for step in range(3000):
            run.log({"loss": 1.0 + step}, step=step)
        run.figure(Figure(), "plots/empty.png")
        run.artifact(root / "dvc.lock")
    assert registered("first")["promoted"] and registered("second")["promoted"]
    assert [p for p in root.rglob("*") if p.is_file() and "mlruns" in p.parts] == []

    client = mlflow.MlflowClient(store, registry_uri=store)
    assert [m.step for m in client.get_metric_history(run.run_id, "loss")] == list(range(3000))
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.data.params == {"p": "0.9"}
    assert {f.path for f in client.list_artifacts(run.run_id)} == {"plots", "dvc.lock"}
    assert {alias: int(v) for alias, v in client.get_registered_model("blip").aliases.items()} == {"champion": 2, "challenger": 2}
    stored = s3.client.list_objects_v2(Bucket=f"bucket-{s3.buckets}")["Contents"]
    assert any(item["Key"].endswith("model.safetensors") for item in stored)
    with open_registry("blip", root) as registry:
        assert registry.at("champion").tags["gate"] == "passed"

    code = (
        "import mlflow, pandas, sys; model = mlflow.pyfunc.load_model('models:/blip@champion');"
        "print(model.predict(pandas.DataFrame({'image': [sys.argv[1]]}))[0]['captions'])"
    )
    picture = root / "picture.png"
    picture.write_bytes(grey_picture())
    done = subprocess.run([sys.executable, "-c", code, picture], capture_output=True, text=True, cwd=root.parent)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]


def grey_picture() -> bytes:
    from blip_core.stages.register import example_image

    return example_image(64)


def test_a_flow_runs_on_prefect_with_postgresql(toy, server_of_databases, tmp_path):  # noqa: F811
    port = free_port()
    url = server_of_databases.database("prefect", "asyncpg")
    env = {**ENV, "PREFECT_HOME": str(tmp_path), "PREFECT_API_DATABASE_CONNECTION_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
    with running(command, port=port, path="/api/health", folder=tmp_path, env=env) as address:
        env = {k: v for k, v in ENV.items() if k != "PYTHONPATH"} | {"PREFECT_API_URL": f"{address}/api"}
        done = subprocess.run([sys.executable, ROOT / "flows/bootstrap.py"], cwd=toy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "6 stages run" in done.stdout and len(runs(toy)) == 6
        body = json.dumps({}).encode()
        asked = urllib.request.Request(f"{address}/api/flow_runs/filter", body, {"Content-Type": "application/json"})
        (run,) = json.loads(urllib.request.urlopen(asked).read())
        assert run["state"]["type"] == "COMPLETED"
