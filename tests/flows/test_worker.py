"""A GPU stage on a worker elsewhere: a second clone with its own cache, which has only git's remote, DVC's remote and Prefect's server.

The server, the worker and DVC are real. The stages are quick; what they do is told by files outside the project, and so is what ran where.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.support.fault_proxy import Rule
from tests.support.processes import HANG, WARM, cold, heed_interrupts, kill_tree, wait_until
from tests.support.small import small_values

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

DVC_YAML = """
stages:
  ingest: {cmd: python make.py ingest data/x artifacts/g0, deps: [data, make.py], outs: [artifacts/g0], meta: {pool: cpu}}
  pretrain:
    foreach: [a, b]
    do:
      cmd: python make.py pretrain@${item} artifacts/g0 artifacts/models/${item} artifacts/metrics/${item}.json
      deps: [artifacts/g0, make.py]
      params: [seed]
      outs: ["artifacts/models/${item}"]
      metrics: ["artifacts/metrics/${item}.json"]
      meta: {pool: gpu}
  report:
    cmd: python make.py report artifacts/models/a artifacts/report/table.txt
    deps: [artifacts/models]
    outs: [artifacts/report/table.txt]
"""
# each start is a line of OUTSIDE/log; OUTSIDE/<stage> may say {"steps", "seconds" of each, "fail": message, "beside": who runs meanwhile,
# "word": what DVC does not see}
MAKE = """
import json, os, sys, time
from pathlib import Path
import yaml

OUTSIDE = Path({outside!r})
name, source, *outs = sys.argv[1:]
work = Path(".work") / name  # as the real stages keep their checkpoints
wish = json.loads((OUTSIDE / name).read_text()) if (OUTSIDE / name).exists() else {{}}

def note(what):
    with (OUTSIDE / "log").open("a") as f:
        f.write(f"{{name}} {{what}} {{os.getpid()}} {{Path.cwd()}}\\n")

done = int(work.read_text()) if work.exists() else 0
note(f"from:{{done}}")
work.parent.mkdir(exist_ok=True)
for step in range(done, wish.get("steps", 1)):
    print(f"{{name}}  {{step + 1}}/{{wish.get('steps', 1)}}  loss 1.0", flush=True)
    time.sleep(wish.get("seconds", 0))
    new = work.with_suffix(".new")
    new.write_text(str(step + 1))
    new.replace(work)  # as the real ones: it may be killed at any moment
deadline = time.monotonic() + {hang}
while "beside" in wish and wish["beside"] + " " not in (OUTSIDE / "log").read_text():
    assert time.monotonic() < deadline, "nothing ran beside it"
    time.sleep(0.1)
if "fail" in wish:
    Path(os.environ["BLIP_ERROR_FILE"]).write_text(json.dumps({{"kind": "input", "message": wish["fail"]}}))
    sys.exit(1)
seed = yaml.safe_load(Path("params.yaml").read_text())["seed"]
for path in map(Path, outs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({{"made": f"{{name}} of {{Path(source).read_text()}}, seed {{seed}}{{wish.get('word', '')}}"}}))
work.unlink(missing_ok=True)
"""


def done(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, env=environment() | (env or {}), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout.strip()


def environment() -> dict[str, str]:
    people = {f"GIT_{who}_{what}": "ann@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **people, "PATH": path, "DVC_NO_ANALYTICS": "1", "MLFLOW_TRACKING_URI": "sqlite:///nowhere.db"}


@dataclass
class World:
    """The folder where the chain runs, a clone elsewhere, a worker in it, and what the stages do."""

    folder: Path
    server: str
    worker: subprocess.Popen | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def here(self) -> Path:
        return self.folder / "here"

    @property
    def there(self) -> Path:
        return self.folder / "there"

    def wish(self, stage: str, **wish) -> None:
        (self.folder / "outside" / stage).write_text(json.dumps(wish))

    def forget(self) -> None:
        for path in (self.folder / "outside").iterdir():
            path.unlink()
        (self.folder / "outside/log").touch()

    def ran(self) -> list[tuple[str, str, str]]:
        """Stage, what it went on from, and where it ran, for each start."""
        lines = (self.folder / "outside/log").read_text().splitlines()
        return [(name, at, "there" if self.there in Path(cwd).parents else "here") for name, at, _, cwd in map(str.split, lines)]

    def pids(self) -> list[int]:
        return [int(line.split()[2]) for line in (self.folder / "outside/log").read_text().splitlines()]

    def seed(self, value: int) -> None:
        values = yaml.safe_load((self.here / "params.yaml").read_text()) | {"seed": value}
        (self.here / "params.yaml").write_text(yaml.safe_dump(values))

    def start_worker(self) -> None:
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_HEARTBEAT_SECONDS": "2"}
        path = f"{WARM}{os.pathsep}{self.there}"
        env = environment() | self.env | quick | {"PREFECT_API_URL": self.server, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with (self.folder / "worker.log").open("a") as log:
            command = [BIN / "prefect", "worker", "start", "--pool", "gpu", "--limit", "2"]
            options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "start_new_session": True}
            self.worker = subprocess.Popen(command, cwd=self.there, env=env, **options)

    def kill_worker(self) -> None:
        """As if its machine lost power: the worker, its flow runs, all at once."""
        kill_tree(self.worker.pid)
        self.worker.wait()

    def run(self, **parameters):
        from flows.bootstrap import bootstrap

        return bootstrap(**{"gpu": "pool", "gpu_wait": HANG} | parameters, return_state=True)


def make_world(folder: Path, server: str, store: str, **remote: str) -> World:
    """A repository that is pushed, a clone of it, the deployment on the server."""
    world = World(folder, server)
    (folder / "outside").mkdir(parents=True)
    world.forget()
    (world.here / "data").mkdir(parents=True)
    (world.here / "data/x").write_text("one")
    (world.here / "make.py").write_text(MAKE.format(outside=str(folder / "outside"), hang=HANG))
    (world.here / "dvc.yaml").write_text(DVC_YAML)
    (world.here / ".gitignore").write_text("/artifacts/\n/data\n/.work/\n__pycache__/\n")
    (world.here / "params.yaml").write_text(yaml.safe_dump(small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))))
    for package in ("blip_core", "flows"):
        (world.here / package).symlink_to(ROOT / package)  # so that it is the package under test, also in the clone
    done("git", "init", "-q", "-b", "main", cwd=world.here)
    done("dvc", "init", "-q", cwd=world.here)
    done("dvc", "remote", "add", "-q", "-d", "store", store, cwd=world.here)
    for key, value in remote.items():
        done("dvc", "remote", "modify", "store", key, value, cwd=world.here)
    done("dvc", "add", "-q", "data", cwd=world.here)
    commit(world.here)
    done("git", "init", "-q", "--bare", folder / "hub.git", cwd=folder)
    done("git", "remote", "add", "origin", folder / "hub.git", cwd=world.here)
    done("git", "push", "-q", "origin", "main", cwd=world.here)
    done("git", "clone", "-q", "-b", "main", folder / "hub.git", world.there, cwd=folder)
    env = {"PREFECT_API_URL": server, "PREFECT_HOME": str(folder / "prefect")}
    make_pool()
    done("prefect", "--no-prompt", "deploy", "--name", "gpu", cwd=ROOT, env=env)
    return world


def make_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process", base_job_template=template))


def commit(root: Path, message: str = "start") -> None:
    done("git", "add", "-A", cwd=root)
    done("git", "commit", "-qm", message, cwd=root)


@pytest.fixture(scope="module")
def module_world(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    world = make_world(folder, server, str(folder / "store"))
    yield world
    if world.worker and world.worker.poll() is None:
        world.kill_worker()


@pytest.fixture
def world(module_world, monkeypatch):
    module_world.forget()
    prepare(module_world, monkeypatch)
    return module_world


def prepare(world: World, monkeypatch) -> None:
    from flows import remote, stage

    monkeypatch.chdir(world.here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    monkeypatch.setattr(remote, "_POLL", 0.5)
    monkeypatch.setattr(stage.run_stage, "retry_delay_seconds", 0)
    if world.worker is None or world.worker.poll() is not None:
        world.start_worker()


def model(world: World, name: str) -> str:
    """What made it, the last of it."""
    return json.loads((world.here / "artifacts/models" / name).read_text())["made"].split("}")[-1]


def meanwhile(act) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def checkpoint(world: World, stage: str) -> int:
    """How far an unfinished stage is, by what it has left with the worker."""
    path = world.there / ".work/stages" / stage.replace("@", "-") / ".work" / stage
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def test_gpu_stages_run_side_by_side_elsewhere_and_come_back(server, request, tmp_path, monkeypatch):
    """Through a bucket where there is an S3 server, else through a folder."""
    try:
        s3 = request.getfixturevalue("s3")
        store, options = f"s3://{s3.bucket()}/dvc", {"endpointurl": f"http://127.0.0.1:{s3.proxy.port}"}
    except pytest.skip.Exception:
        s3, store, options = None, str(tmp_path / "store"), {}
    world = make_world(tmp_path, server, store, **options)
    prepare(world, monkeypatch)
    try:
        world.wish("pretrain@a", beside="pretrain@b")
        world.wish("pretrain@b", beside="pretrain@a")
        state = world.run()
        assert state.message == "4 stages run, 0 restored from the cache, 1 unchanged", state.message
        ran = world.ran()
        assert ran[0] == ("ingest", "from:0", "here") and ran[-1] == ("report", "from:0", "here")
        assert sorted(ran[1:-1]) == [("pretrain@a", "from:0", "there"), ("pretrain@b", "from:0", "there")]
        assert model(world, "a") == ", seed 0" and (world.here / "artifacts/metrics/a.json").exists()
        is_done(world)
    finally:
        world.kill_worker()
    if s3:
        s3.proxy.breaks(Rule("403", match=".*"))
        world.seed(1)
        assert "what it reads could not be pushed to DVC's remote" in world.run(stages=["pretrain@a"]).message


def is_done(world: World) -> None:
    """Neither door has anything to do, and what lies in the folder is what dvc.lock says."""
    ran = world.ran()
    assert json.loads(done("dvc", "status", "--json", cwd=world.here)) == {}
    done("dvc", "repro", cwd=world.here)
    state = world.run()
    assert state.message == "0 stages run, 0 restored from the cache, 5 unchanged", state.message
    assert world.ran() == ran


@pytest.mark.slow
def test_a_worker_that_dies_is_noticed_and_the_stage_goes_on_where_it_was(world, monkeypatch):
    """And a stage that says no is heard."""
    from flows import watch

    world.wish("pretrain@a", steps=200, seconds=0.7)
    world.wish("pretrain@b", fail="seed 0 is no good; take another")

    def lose_power():
        wait_until(lambda: checkpoint(world, "pretrain@a") > 1 and has_failed(world, "pretrain@b"))
        world.kill_worker()
        monkeypatch.setattr(watch, "SILENCE", 5.0)  # the three minutes are over

    killer = meanwhile(lose_power)
    state = world.run()
    killer.join()
    assert "pretrain@a failed: the worker has given no sign for" in state.message, state.message
    assert "pretrain@b failed: seed 0 is no good; take another\n" in state.message
    state = world.run(stages=["pretrain@a"], gpu_wait=1.0)
    assert "no worker of the pool gpu has been online for 1 s: `prefect worker start --pool gpu`" in state.message

    monkeypatch.undo()
    prepare(world, monkeypatch)
    world.wish("pretrain@b")
    world.wish("pretrain@a", steps=checkpoint(world, "pretrain@a") + 1)
    state = world.run()
    assert state.message == "3 stages run, 0 restored from the cache, 2 unchanged", state.message
    starts = [at for name, at, _ in world.ran() if name == "pretrain@a"]  # two: nothing that was asked for in vain is run later
    assert len(starts) == 2 and starts[0] == "from:0" and int(starts[1].removeprefix("from:")) > 1
    assert model(world, "a") == model(world, "b") == ", seed 0"


def has_failed(world: World, stage: str) -> bool:
    wanted = {"flow_runs": {"name": {"any_": [stage]}, "state": {"type": {"any_": ["FAILED"]}}}}
    return httpx.post(f"{world.server}/flow_runs/filter", json=wanted).json() != []


@pytest.mark.slow
def test_a_flow_that_was_killed_finds_what_the_worker_did_meanwhile(world):
    """A process that dies there is tried again; a flow that is stopped stops the worker's stage; values of before need no worker."""
    world.seed(3)
    world.wish("pretrain@a", steps=12, seconds=1)
    door = open_door(world, "pretrain@a")
    wait_until(lambda: checkpoint(world, "pretrain@a"))
    door.kill()
    killer = meanwhile(lambda: kill_flow_run(world, "pretrain@a"))
    state = world.run(stages=["pretrain@a"])
    killer.join()
    assert state.message == "1 stages run, 0 restored from the cache, 2 unchanged", state.message
    starts = [at for name, at, _ in world.ran() if name == "pretrain@a"]
    assert len(starts) == 2 and starts[1] != "from:0" and model(world, "a") == ", seed 3"

    world.forget()
    world.seed(4)
    world.wish("pretrain@a", steps=100, seconds=1)
    door = open_door(world, "pretrain@a")
    wait_until(lambda: checkpoint(world, "pretrain@a"))
    door.send_signal(signal.SIGINT)
    assert door.wait(timeout=HANG) == 130
    wait_until(lambda: not psutil.pid_exists(world.pids()[-1]))
    world.kill_worker()
    world.seed(3)
    assert world.run(stages=["pretrain@a"]).message == "0 stages run, 1 restored from the cache, 2 unchanged"


@pytest.mark.slow
def test_force_makes_it_anew_there_and_takes_what_came_of_it(world):
    """Also where the run cache holds other outputs of the same inputs; afterwards nobody has anything to do."""
    world.seed(6)
    assert world.run(force=True).is_completed()  # ingest too, whose output here tells the seed
    for word in (", again", ""):
        world.forget()
        world.wish("pretrain@a", word=word)
        state = world.run(stages=["pretrain@a"], force=True)
        assert state.message == "3 stages run, 0 restored from the cache, 0 unchanged", state.message
        assert world.ran() == [("ingest", "from:0", "here"), ("pretrain@a", "from:0", "there")]
        assert model(world, "a") == f", seed 6{word}"
    is_done(world)  # report too: what it read is what it was


def open_door(world: World, stage: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "flows/bootstrap.py", stage, "--gpu", "pool"]
    env = cold(environment()) | {"PREFECT_API_URL": world.server}
    return subprocess.Popen(command, cwd=world.here, env=env, start_new_session=True, preexec_fn=heed_interrupts)


def kill_flow_run(world: World, stage: str) -> None:
    """The process of the worker that runs the stage, as the system does for want of memory."""
    before = checkpoint(world, stage)
    wait_until(lambda: checkpoint(world, stage) > before + 4)
    guardian_of(world, stage).parent().kill()


def guardian_of(world: World, stage: str) -> psutil.Process:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended
            script, *words = process.cmdline()[2:] or [""]
            if script.endswith("blip_core/runtime/guardian.py") and stage in words and world.there in Path(process.cwd()).parents:
                return process
    raise AssertionError(f"nothing guards {stage}")


def test_what_is_in_the_way_is_said_before_anything_runs(world, monkeypatch):
    from flows import remote

    world.seed(5)
    (world.here / "notes.txt").write_text("of no stage")
    (world.here / "make.py").write_text((world.here / "make.py").read_text() + "\n")
    assert "the code from git, and make.py is not committed: commit and push it" in world.run().message
    done("git", "commit", "-qam", "blank line", cwd=world.here)
    assert "is not pushed: `git push` it" in world.run().message
    done("git", "reset", "-q", "--hard", "HEAD^", cwd=world.here)
    done("git", "commit", "-qm", "values", "--allow-empty", cwd=world.here)  # as a run of other values commits them
    assert remote.pushed_revision(world.here, []) == done("git", "rev-parse", "origin/main", cwd=world.here)
    world.seed(5)
    monkeypatch.setattr(remote, "DEPLOYMENT", "stage/nowhere")
    assert "has no deployment stage/nowhere: `prefect work-pool create gpu" in world.run().message
    done("dvc", "config", "--local", "core.remote", "", cwd=world.here)
    assert "`dvc remote add -d NAME URL`, and commit it" in world.run().message
    (world.here / ".dvc/config.local").unlink()
    assert world.ran() == []
