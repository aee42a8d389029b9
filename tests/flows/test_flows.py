"""The second door to the chain: failures in plain words, no orphans, and agreement with `dvc repro`.

Runs on a toy DVC project whose `blip_core` only copies text; Prefect's server is a real one, started once.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from flows.graph import Choice, read_plan
from tests.support.processes import HANG, cold, gone, heed_interrupts, wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENV = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}

CLI = """
import json, os, sys, time
from pathlib import Path
import yaml

def fail(message):
    if "BLIP_ERROR_FILE" in os.environ:
        Path(os.environ["BLIP_ERROR_FILE"]).write_text(json.dumps({"kind": "input", "message": message}))
    sys.exit(message)

verb, *paths = sys.argv[1:]
params = yaml.safe_load(Path("params.yaml").read_text())
if verb == "params":
    sys.exit(0 if "limit" in params else "params.yaml: limit: missing")
*sources, out = map(Path, paths)
with open("log", "a") as f:
    f.write(f"{out.name} {os.getpid()}\\n")
with open("order", "a") as f:
    f.write(f"+{out.name} ")
print(f"{verb}  5/10  loss 1.0", file=sys.stderr)
time.sleep(params["seconds"])
deadline = time.monotonic() + HANG
while verb == "pretrain" and Path("order").read_text().count("+") < params["started"]:
    assert time.monotonic() < deadline, "nothing ran beside it"
    time.sleep(0.02)
with open("order", "a") as f:
    f.write(f"-{out.name} ")
if params["die"] and len(Path("log").read_text().splitlines()) < 2:
    os.kill(os.getpid(), 9)
if verb == "gate" and params["noise"] > params["limit"]:
    fail(f"gate: noise {params['noise']} > {params['limit']}; clean the data")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(verb + "".join(p.read_text() for p in sources if p.is_file()))
""".replace("HANG", str(HANG))
PARAMS = {"limit": 0.5, "noise": 0.4, "seconds": 0, "started": 0, "die": False}
DVC_YAML = """
stages:
  ingest: {cmd: python -m blip_core ingest data/x a/g0, deps: [data], params: [seconds, die], outs: [a/g0], meta: {pool: cpu}}
  pretrain:
    foreach: [g0, human]
    do:
      cmd: python -m blip_core pretrain a/g0 a/models/${item}
      deps: [a/g0]
      outs: ["a/models/${item}"]
      meta: {pool: gpu}
  gate: {cmd: python -m blip_core gate a/models/g0 a/gate, deps: [a/models/g0], params: [noise, limit], outs: [a/gate]}
  retrain: {cmd: python -m blip_core retrain a/gate a/models/g1, deps: [a/gate], outs: [a/models/g1]}
  report: {cmd: python -m blip_core report a/models/g1 artifacts/report/table.txt, deps: [a/models], outs: [artifacts/report/table.txt]}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    (root / "blip_core").mkdir()
    (root / "blip_core/__init__.py").touch()
    (root / "blip_core/__main__.py").write_text(CLI)
    (root / "data").mkdir()
    (root / "data/x").write_text("one")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    dvc(root, "init", "--no-scm", "-q")
    dvc(root, "add", "-q", "data")
    return root


@pytest.fixture
def toy(template, tmp_path, monkeypatch) -> Path:
    root = shutil.copytree(template, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(root)
    return root


def dvc(root: Path, *arguments: str) -> str:
    return subprocess.run([BIN / "dvc", *arguments], cwd=root, env=ENV, check=True, capture_output=True, text=True).stdout


def set_params(root: Path, **changes) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | changes))


def runs(root: Path) -> list[str]:
    """What ran, by the name of its output, in order."""
    return [line.split()[0] for line in (root / "log").read_text().splitlines()] if (root / "log").exists() else []


def plan(root: Path, **options) -> dict:
    return {node.name: node for node in read_plan(root, dvc=BIN / "dvc", env=ENV, choice=Choice(**options))}


def artifacts(server: str) -> dict[str, object]:
    """The newest of each key: other tests' flows have left some on this server."""
    newest_first = httpx.post(f"{server}/artifacts/filter", json={"sort": "CREATED_DESC"}).json()
    return {a["key"]: a["data"] for a in reversed(newest_first)}


def test_plan_is_read_from_dvc(toy):
    nodes = plan(toy)
    names = list(nodes)
    assert all(names.index(up) < names.index(name) for name in names for up in nodes[name].upstream)
    assert nodes["pretrain@g0"].upstream == ("ingest",) and nodes["pretrain@g0"].pool == "gpu"
    assert nodes["report"].upstream == ("pretrain@g0", "pretrain@human", "retrain")
    assert {name for name in names if not nodes[name].dirty} == {"data.dvc"}
    assert set(plan(toy, stages=["gate"])) == {"data.dvc", "ingest", "pretrain@g0", "gate"}


def test_kept_stages_are_neither_run_nor_a_reason_to_run(toy):
    with pytest.raises(ValueError, match="a/models/g0: to be taken as it is, but not in"):
        plan(toy, stages=["retrain"], keep=["pretrain"])
    for name in ("g0", "models/g0"):
        (toy / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (toy / "a" / name).write_text("made once")
    nodes = plan(toy, stages=["retrain"], keep=["pretrain"])
    assert {n.name: (n.dirty, n.kept) for n in nodes.values()} == {
        "pretrain@g0": (False, True),
        "gate": (True, False),
        "retrain": (True, False),
    }


def test_every_stage_of_the_real_chain_is_drawn_in_the_flow():
    from flows.bootstrap import bootstrap

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [name for name in stages if name not in bootstrap.__doc__] == []


def test_pinned_server_works(server):
    """With fastapi >= 0.155 Prefect's server dies at import; 0.151 to 0.154 refuse the null limit that `prefect deploy` sends."""
    assert httpx.post(f"{server}/deployments/filter", json={"limit": None}).status_code == 200


def test_after_either_door_the_other_has_nothing_to_do(toy, server):
    from flows.bootstrap import bootstrap

    dvc(toy, "repro")
    ran = runs(toy)
    state = bootstrap(return_state=True)
    assert state.message == "0 stages run, 0 restored from the cache, 7 unchanged" and runs(toy) == ran

    (toy / "data/x").write_text("two")
    state = bootstrap(return_state=True)
    assert state.message == "7 stages run, 0 restored from the cache, 0 unchanged", state.message
    assert (toy / "artifacts/report/table.txt").read_text() == "reportretraingatepretrainingesttwo"
    assert "reportretrain" in artifacts(server)["results"] and artifacts(server)["progress-ingest"] == 50.0
    assert json.loads(dvc(toy, "status", "--json")) == {}
    ran = runs(toy)
    dvc(toy, "repro")
    assert runs(toy) == ran


def test_a_failing_gate_stops_what_follows_and_says_why(toy, server):
    set_params(toy, noise=0.7)
    door = subprocess.run(
        [sys.executable, ROOT / "flows/bootstrap.py"], cwd=toy, env={**ENV, "PREFECT_API_URL": server}, capture_output=True, text=True
    )
    assert door.returncode == 1 and "Traceback" not in door.stderr
    said = ["gate failed: gate: noise 0.7 > 0.5; clean the data", "not run because of it: retrain, report"]
    assert door.stderr.splitlines()[-3:-1] == said
    assert door.stderr.count("noise 0.7 > 0.5") == 1
    assert sorted(runs(toy)) == ["g0", "g0", "gate", "human"]  # tried once: a gate that said no says it again
    assert (toy / "a/models/human").exists() and not (toy / "a/gate").exists()

    set_params(toy)
    from flows.bootstrap import bootstrap

    assert bootstrap(return_state=True).is_completed()
    assert runs(toy)[4:] == ["gate", "g1", "table.txt"]


def test_who_opens_a_failed_run_on_the_server_reads_once_what_failed(toy, server):
    """In its log; and each stage has its own name, also one that never ran."""
    from flows.bootstrap import bootstrap

    set_params(toy, noise=0.7)
    state = bootstrap(force=True, return_state=True)
    assert state.message == "gate failed: gate: noise 0.7 > 0.5; clean the data\nnot run because of it: retrain, report"
    run = str(state.state_details.flow_run_id)
    assert httpx.get(f"{server}/flow_runs/{run}").json()["name"] == "bootstrap anew"

    def logged() -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in httpx.post(f"{server}/logs/filter", json=wanted).json()]

    wait_until(lambda: "Finished in state Failed" in logged()[-2:], pause=0.5)
    told = "\n".join(logged())
    assert told.count("noise 0.7 > 0.5") == 1 and "gate failed: gate: noise 0.7 > 0.5; clean the data\nnot run" in told
    assert "Upstream" not in told and "ERROR: failed to reproduce" not in told and "NotRun" not in told

    wanted = {"task_runs": {"flow_run_id": {"any_": [run]}}}
    tasks = lambda: {t["name"]: t["state"] for t in httpx.post(f"{server}/task_runs/filter", json=wanted).json()}  # noqa: E731
    stages = {"data.dvc", "ingest", "pretrain@g0", "pretrain@human", "gate", "retrain", "report"}
    wait_until(lambda: set(tasks()) == stages and tasks()["report"]["name"] == "NotRun", pause=0.5)
    assert tasks()["retrain"]["message"] == "waited for gate, which did not come to its end"
    assert tasks()["report"]["message"] == "waited for retrain, which did not come to its end"
    assert tasks()["gate"]["message"] == "gate: noise 0.7 > 0.5; clean the data"


def test_a_killed_stage_is_tried_again(toy, server, monkeypatch):
    from flows import bootstrap, stage

    monkeypatch.setattr(stage.run_stage, "retry_delay_seconds", 0)
    set_params(toy, die=True)
    (toy / ".dvc/tmp/rwlock").write_text("")  # as a dvc leaves it that was killed while it wrote: no dvc command works then
    assert bootstrap.bootstrap(stages=["ingest"], return_state=True).is_completed()
    assert runs(toy) == ["g0", "g0"]


def test_gpu_stages_of_one_gpu_take_turns(toy, server, tmp_path, monkeypatch):
    """Slots for two, and no limit of a server's: a lock of the system, which holds between flows too."""
    from flows.bootstrap import bootstrap

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for gpus, turns in (("0", True), ("", False)):
        set_params(toy, **({"seconds": 1} if turns else {"started": 3}))  # ingest and both: else neither ends
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        (toy / "order").unlink(missing_ok=True)
        assert bootstrap(stages=["pretrain"], force=True, max_workers=2, return_state=True).is_completed()
        _, _, first, second, *_ = (toy / "order").read_text().split()
        assert (second == first.replace("+", "-")) == turns


def test_what_is_wrong_at_the_start_is_said_at_the_start(toy, server):
    from flows.bootstrap import bootstrap

    assert "did you mean retrain" in bootstrap(stages=["retrian"], return_state=True).message
    assert "max_workers is 0" in bootstrap(max_workers=0, return_state=True).message
    shutil.rmtree(toy / "data")
    assert "`blip sample --out data`" in bootstrap(return_state=True).message
    (toy / "params.yaml").write_text("noise: 0.4\n")
    assert bootstrap(return_state=True).message == "params.yaml: limit: missing"
    assert runs(toy) == []


def commit(root: Path) -> str:
    """The toy as a repository of git with one commit; its name."""
    (root / ".gitignore").write_text(
        "/data\n/a\n/artifacts\n/log\n/order\n/.work/\n/.dvc/tmp\n/.dvc/cache\n/.dvc/config.local\n__pycache__/\n"
    )
    dvc(root, "config", "--unset", "core.no_scm")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=Ann", "-c", "user.email=ann@localhost", "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return git(root, "rev-parse", "HEAD")


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_other_values_and_commits_run_in_a_tree_of_their_own(toy, server, monkeypatch):
    """The folder stays as it is, the branch tells what ran, and what was run once is not run again."""
    from flows.bootstrap import bootstrap

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    (toy / "params.yaml").write_text("# the limit\n" + yaml.safe_dump(PARAMS))
    start = commit(toy)
    before = git(toy, "status", "--porcelain")
    state = bootstrap(stages=["gate"], params={"noise": 0.7, "limit": 0.8}, return_state=True)
    assert state.is_completed(), state.message
    (tree,) = (path for path in (toy / ".work/runs").iterdir() if path.is_dir())
    assert state.message.startswith("3 stages run") and state.message.endswith(f"in {tree}, branch run/{tree.name}")
    assert runs(tree) == ["g0", "g0", "gate"] and runs(toy) == [] and git(toy, "status", "--porcelain") == before
    assert git(toy, "log", "--format=%s", f"{start}..run/{tree.name}").splitlines() == [
        "dvc.lock of the run",
        "params: noise=0.7, limit=0.8",
    ]
    assert "# the limit" in (tree / "params.yaml").read_text()

    state = bootstrap(stages=["gate"], params={"limit": 0.8, "noise": 0.7}, return_state=True)
    assert state.message.startswith("0 stages run, 0 restored from the cache, 4 unchanged")
    state = bootstrap(stages=["pretrain@g0"], revision=start[:7], return_state=True)
    assert state.message.startswith("0 stages run, 2 restored from the cache"), state.message  # what other values did not change

    (toy / "params.yaml").write_text("limit: 1\n")
    assert "params.yaml differ from it: commit them" in bootstrap(params={"noise": 0.1}, return_state=True).message
    assert "git knows no commit 'v9'" in bootstrap(revision="v9", return_state=True).message
    assert "expected a commit, got '--all'" in bootstrap(revision="--all", return_state=True).message
    assert "params.yaml has no section 'gate'" in bootstrap(revision=start, params={"gate.limit": 1}, return_state=True).message

    (toy / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")  # of the folder's own runs, committed by nobody
    git(toy, "checkout", f"run/{tree.name}", "--", "params.yaml", "dvc.lock")
    dvc(toy, "checkout", "--allow-missing")
    assert bootstrap(stages=["gate"], return_state=True).message == "0 stages run, 0 restored from the cache, 4 unchanged"


def test_deployments_reach_a_server_and_ci_waits_for_no_worker(server, tmp_path, monkeypatch):
    """`prefect deploy --all` as documented; an event that the server takes; a run that nobody takes is cancelled, not left behind."""
    from prefect.client.orchestration import get_client

    from flows.announce import announce
    from flows.ask import ask, told

    env = {**ENV, "PREFECT_API_URL": server, "PREFECT_HOME": str(tmp_path)}
    for command in ("work-pool create cpu --type process", "work-pool create gpu --type process --overwrite", "--no-prompt deploy --all"):
        done = subprocess.run([BIN / "prefect", *command.split()], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    found = {d["name"]: d for d in httpx.post(f"{server}/deployments/filter", json={}).json()}
    assert set(found) == {"local", "retrain", "capfilt", "evaluate", "gpu", "candidate"}
    assert found["retrain"]["parameters"]["revision"] == "HEAD" and found["capfilt"]["parameters"]["stages"] == ["gate"]
    (schedule,) = found["retrain"]["schedules"]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 3 * * 0", False)
    (automation,) = httpx.post(f"{server}/automations/filter", json={}).json()
    assert automation["actions"][0]["deployment_id"] == found["retrain"]["id"]
    assert automation["actions"][0]["parameters"] == {"revision": "{{ event.payload.revision }}"}
    announce({"revision": "0" * 40, "md5": "1.dir"})

    with get_client(sync_client=True) as client:
        run = ask(client, "bootstrap/retrain", {"revision": "0" * 40, "params": None}, timeout=0)
        assert not run.state.is_final() and "cancelled, it took too long" in told(client, run)
        assert client.read_flow_run(run.id).state.is_cancelled()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_no_stage_outlives_the_flow(toy, server, how, code):
    from flows.bootstrap import bootstrap

    set_params(toy, seconds=2 * HANG)
    door = subprocess.Popen(
        [sys.executable, ROOT / "flows/bootstrap.py", "ingest"],
        cwd=toy,
        env={**cold(ENV), "PREFECT_API_URL": server},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    assert wait_until(lambda: runs(toy))
    stage = int((toy / "log").read_text().split()[-1])
    assert psutil.pid_exists(stage)
    if how == signal.SIGKILL:
        assert f"process {door.pid}" in bootstrap(return_state=True).message  # one orchestrator in a folder
    door.send_signal(how)
    assert wait_until(lambda: gone(stage))
    assert door.wait(timeout=HANG) == code
    assert runs(toy) == ["g0"]
