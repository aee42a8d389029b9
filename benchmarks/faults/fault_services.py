"""Faults of services, real ones: Prefect's server and worker, MLflow's server, PostgreSQL, an S3 remote. Used by faults.py."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fault_project import SEED_CHAMPION, Project, Skipped, files, last_line, wait_for

if TYPE_CHECKING:
    from fault_cases import Trial


class Service:
    """A server's process, started outside the project; `start` it again after `kill`."""

    def __init__(self, folder: Path, command: list[str], env: dict[str, str], url: str | None = None):
        self.folder, self.command, self.env, self.url = folder, command, env, url
        folder.mkdir(exist_ok=True)

    def start(self) -> None:
        with (self.folder / f"{Path(self.command[0]).name}.log").open("ab") as log:
            out = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.process = subprocess.Popen(self.command, cwd=self.folder, env=self.env, **out)
        if self.url:
            wait_for(self.answers, 600)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=5):
            return True
        return False

    def kill(self, *, group: bool = True) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL) if group else self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(*services: Service) -> Iterator[None]:
    try:
        yield
    finally:
        for service in services:
            if hasattr(service, "process"):
                service.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return unused.getsockname()[1]


# --- Prefect


def kill_prefect(trial: "Trial", stage: str, victim: str) -> None:
    port = free_port()
    project = trial.before(stage, PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    folder = trial.folder.with_name(f"{trial.folder.name}.services")
    env = project.env | {"PREFECT_HOME": str(folder / "prefect")}
    project.env = env
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    server = Service(folder, command, env, f"http://127.0.0.1:{port}/api/health")
    worker = Service(folder, ["prefect", "worker", "start", "--pool", "cpu"], env)
    with running(server, worker):
        server.start()
        project.run("prefect", "work-pool", "create", "cpu", "--type", "process")
        project.run("prefect", "--no-prompt", "deploy", "--name", "local")
        worker.start()
        ask = ("prefect", "deployment", "run", "bootstrap/local", "--param", f'stages=["{stage}"]')
        project.run(*ask)
        trial.mid_stage()
        {"server": server, "worker": worker}[victim].kill(group=victim == "server")
        time.sleep(1)
        alive = "goes on" if project.stage(trial.name) else "is gone"
        began = time.monotonic()
        wait_for(lambda: not project.processes(), 900)
        trial.look(f"a second later the stage {alive}; {time.monotonic() - began:.0f} s later nothing of the run is left")
        {"server": server, "worker": worker}[victim].start()
        trial.again(lambda: project.run(*ask, "--watch", check=False, timeout=1200))
    shutil.rmtree(folder, ignore_errors=True)


# --- MLflow


def mlflow_server(trial: "Trial", stage: str) -> tuple[Project, Service]:
    """A project that reports to a server, which is not started yet."""
    port = free_port()
    project = trial.before(stage, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    folder = trial.folder.with_name(f"{trial.folder.name}.services")
    folder.mkdir()
    trial.database = folder / "server.db"
    shutil.copy(trial.reference.root.parent / "champion.db", trial.database)
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{trial.database}", "--artifacts-destination", str(folder / "artifacts")]
    env = {k: v for k, v in project.env.items() if k != "MLFLOW_TRACKING_URI"} | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return project, Service(folder, command, env, f"http://127.0.0.1:{port}/health")


def kill_mlflow(trial: "Trial", stage: str, restart: bool) -> None:
    project, server = mlflow_server(trial, stage)
    with running(server):
        server.start()
        dvc = project.start("dvc", "repro", stage)
        trial.mid_stage()
        server.kill()
        if restart:
            server.start()
        code = dvc.wait(1200)
        kept = len(list((project.root / ".work/tracking").glob("*.jsonl")))
        trial.look(f"the training goes on, dvc ends with {code}; {kept} runs kept for later")
        if restart:
            trial.again(before=outbox(project))
        else:
            server.start()
            trial.again(whole=True)
    shutil.rmtree(server.folder, ignore_errors=True)


def without_mlflow(trial: "Trial", stage: str) -> None:
    project, server = mlflow_server(trial, stage)
    with running(server):
        code = project.repro(stage, check=False)
        kept = len(list((project.root / ".work/tracking").glob("*.jsonl")))
        trial.look(f"the training goes on, dvc ends with {code}; {kept} runs kept for later")
        server.start()
        trial.again(before=outbox(project))
    shutil.rmtree(server.folder, ignore_errors=True)


def outbox(project: Project) -> str:
    project.run("python", "-m", "blip_core", "outbox")
    return f"outbox: {project.said().split(' to ')[0]}; "


def stop_postgresql(trial: "Trial", stage: str) -> None:
    from tests.support.postgres_server import NoServer, postgres

    try:
        with postgres() as server:
            url = server.database("mlflow")
            project = trial.before(stage, MLFLOW_TRACKING_URI=url)
            trial.database = url
            project.run("python", "-c", SEED_CHAMPION)
            dvc = project.start("dvc", "repro", stage)
            trial.mid_stage()
            server.stop()
            time.sleep(1)
            server.start()
            code = dvc.wait(1200)
            kept = len(list((project.root / ".work/tracking").glob("*.jsonl")))
            trial.look(f"the training goes on, dvc ends with {code}; {kept} runs kept for later")
            trial.again()
    except NoServer as e:
        raise Skipped(e) from None


# --- DVC's remote


@contextlib.contextmanager
def remote(trial: "Trial") -> Iterator[tuple[Project, object]]:
    """A copy of the whole unbroken project with a bucket behind a proxy as its remote."""
    from tests.support.s3_server import NoServer, s3_server

    folder = trial.folder.with_name(f"{trial.folder.name}.services")
    folder.mkdir()
    try:
        with s3_server(folder) as s3:
            shutil.copytree(trial.reference.root, trial.folder, symlinks=True)
            trial.project = project = Project(trial.folder)
            trial.project.env |= {k: v for k, v in s3.env.items() if k != "AWS_ENDPOINT_URL_S3"}
            trial.database = project.root / "mlflow.db"
            project.run("dvc", "remote", "add", "-q", "-d", "store", f"s3://{s3.bucket()}/dvc")
            project.run("dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{s3.proxy.port}")
            project.run("git", "add", "-A")
            project.run("git", "commit", "-qm", "all")
            yield project, s3.proxy
    except NoServer as e:
        raise Skipped(e) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clone(project: Project) -> Project:
    folder = project.root.with_name(f"{project.root.name}.clone")
    project.run("git", "clone", "-q", str(project.root), str(folder))
    return Project(folder, {k: v for k, v in project.env.items() if k.startswith("AWS_")})


def same_files(other: Project, reference: Project) -> str:
    return f"the clone that pulls has {'the same files' if files(other.root) == files(reference.root) else 'OTHER FILES'}"


PATIENCE = 90.0  # seconds until a person presses Ctrl-C


def vanish(project: Project, proxy: object, command: tuple[str, ...], match: str, behind: int) -> str:
    """From a while after the command's start the remote hangs up on every request; how the command ends."""
    from tests.support.fault_proxy import Rule

    proxy.breaks()
    process = project.start(*command)
    wait_for(lambda: sum(line.startswith(match) for line in proxy.requests) >= behind or process.poll() is not None, 600)
    proxy.breaks(Rule("reset", match=".*"))
    try:
        told = f"{process.wait(PATIENCE)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        told = f"{process.wait(600)}, at Ctrl-C: it was still trying after {PATIENCE:.0f} s"
    proxy.breaks()
    return told


def lose_remote(trial: "Trial", stage: str) -> None:
    trial.stage, trial.run = stage, f"base/{stage}"
    with remote(trial) as (project, proxy):
        code = vanish(project, proxy, ("dvc", "push"), "PUT", trial.draw.randint(5, 40))
        trial.look(f"dvc push ends with {code}")
        other = clone(project)
        trial.again(lambda: project.run("dvc", "push", check=False) or other.run("dvc", "pull", check=False), whole=True)
        trial.after += f"; {same_files(other, trial.reference)}"
    shutil.rmtree(other.root, ignore_errors=True)


def cut_pull(trial: "Trial", stage: str) -> None:
    trial.stage, trial.run = stage, f"base/{stage}"
    with remote(trial) as (project, proxy):
        project.run("dvc", "push")
        other = clone(project)
        code = vanish(other, proxy, ("dvc", "pull"), "GET", trial.draw.randint(5, 40))
        trial.project, original = other, project
        trial.look(f"in a clone dvc pull ends with {code}")
        codes = [other.run("dvc", "pull", check=False)]
        told = ""
        if codes[0]:
            failed = next((line for line in other.said().splitlines() if line.startswith("ERROR")), last_line(other.said()))
            codes.append(other.run("dvc", "pull", check=False))
            told = f"dvc pull ends with {codes[0]} ({failed[:120]}), once more with {codes[1]}; "
        trial.project = original
        trial.again(lambda: codes[-1], whole=True, before=told)
        trial.after += f"; {same_files(other, trial.reference)}"
    shutil.rmtree(other.root, ignore_errors=True)
