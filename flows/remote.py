"""A GPU stage on a worker elsewhere, which shares with this folder only git's remote, DVC's remote and Prefect's server.

What the stage reads is pushed, the worker (worker.py) makes the outputs and pushes them with DVC's run cache, and `dvc repro -s` here
finds them in it. So dvc.lock is written here alone, and nothing is computed twice: not by a flow that was killed while the worker
went on, and not for values that were there before. With `force` the worker also hands over its line of dvc.lock, since the run cache
may give the old outputs.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from blip_core.tracking.provenance import git
from flows.graph import GPU, Node
from flows.progress import Narrator
from flows.repro import reproduce, run_dvc, tail
from flows.watch import Watch
from flows.workspace import Workspace

DEPLOYMENT = "stage/gpu"
MADE = "made"  # the artifact by which a forced run tells what it made
TRAVELS = (":!params.yaml", ":!dvc.lock")  # these go with the request; all else the worker has from git
_POLL = 3.0  # seconds
_UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def find_workers(plan: list[Node], workspace: Workspace, *, force: bool, wait: float) -> "Remote | None":
    """Where the GPU stages of the plan can go; None when there are none to run. ValueError says what is in the way of it."""
    nodes = [node for node in plan if node.pool == GPU and node.dirty and not node.kept]
    if not nodes:
        return None
    for node in nodes:
        if node.uncached:
            raise ValueError(f"dvc.yaml: {node.name}: {', '.join(node.uncached)} has `cache: false`, so it can't come back from a worker")
    check_remote(workspace.root)
    revision = pushed_revision(workspace.root, [dep for node in nodes for dep in node.deps])
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        except ObjectNotFound:
            advice = f"`prefect work-pool create {GPU} --type process`, then `prefect deploy --all`, with PREFECT_API_URL of that server"
            raise ValueError(f"gpu: pool: the server {client.api_url} has no deployment {DEPLOYMENT}: {advice}") from None
    return Remote(revision, pool, wait, force)


def check_remote(root: Path) -> None:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        if not repo.config["core"].get("remote"):
            raise ValueError("gpu: pool: DVC has no remote, by which data gets to a worker: `dvc remote add -d NAME URL`, and commit it")


def pushed_revision(root: Path, deps: list[str]) -> str:
    """The commit that a worker gets from git, and which has all that lies here but params.yaml and dvc.lock."""
    untracked = git(root, "ls-files", "--others", "--exclude-standard", "--", *deps).splitlines() if deps else []
    changed = [line.split()[-1] for line in git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *TRAVELS).splitlines()]
    if files := changed + untracked:
        raise ValueError(f"gpu: pool: a worker has the code from git, and {', '.join(files)} is not committed: commit and push it")
    unpushed = git(root, "rev-list", "--boundary", "HEAD", "--not", "--remotes").split()
    if not unpushed:
        return git(root, "rev-parse", "HEAD")
    for commit in (line.removeprefix("-") for line in unpushed if line.startswith("-")):
        if not git(root, "diff", "--name-only", commit, "HEAD", "--", ".", *TRAVELS):
            return commit
    where = "`git push` it" if git(root, "remote") else "name a remote (`git remote add origin URL`) and `git push` it"
    raise ValueError(
        f"gpu: pool: a worker has the code from git, and commit {git(root, 'rev-parse', '--short', 'HEAD')} is not pushed: {where}"
    )


@dataclass(frozen=True)
class Remote:
    """The workers of a pool, and what they need to know of this folder."""

    revision: str
    pool: str
    wait: float  # seconds without a worker online
    force: bool = False  # make it anew, whatever the run cache has

    def run(self, node: Node, *, workspace: Workspace, log: logging.LoggerAdapter[Any], narrator: Narrator) -> State:
        """Bring the stage up to date with the help of a worker; only one that is not in the run cache here needs one."""
        if not self.force and (state := restore(node.name, [], workspace)):
            return state
        lines: list[str] = []
        if run_dvc(["push", *node.upstream], workspace=workspace, on_line=lines.append, env={}) and node.upstream:
            return stopped(workspace) or Failed(message=f"what it reads could not be pushed to DVC's remote:\n{tail(lines)}")
        with get_client(sync_client=True) as client:
            run = request(client, node, workspace.root, self.revision, force=self.force)
            log.info("asked the pool %s for it: run %s, id %s", self.pool, run.name, run.id)
            done = follow(client, run, Watch(self.pool, self.wait), workspace=workspace, narrator=narrator)
            made = handed_over(client, run) if self.force and done.is_completed() else None
        if not done.is_completed():
            return done
        if made and (failure := adopt(made, node.name, workspace)):
            return failure
        for _ in range(2):  # a remote in a plain folder may have been read while another stage wrote to it
            if state := restore(node.name, ["--pull"], workspace):
                return state if not state.is_completed() else Completed(message=done.message)
        return Failed(message=f"the worker finished ({done.message}), but for other inputs than lie here: was something edited meanwhile?")


def stopped(workspace: Workspace) -> State | None:
    return Failed(name="Stopped", message="stopped before its end") if workspace.children.stopped else None


def restore(stage: str, options: list[str], workspace: Workspace) -> State | None:
    """Take the outputs from DVC's run cache, with `--pull` also from its remote. None when it has none for the inputs as they are."""
    narrator = Narrator(lambda _: None, lambda _: None, interval=float("inf"))
    # dvc runs commands by $SHELL: with this one it does all that it does, but can compute nothing
    state = reproduce(stage, options, workspace=workspace, narrator=narrator, env={"SHELL": shutil.which("false") or "/bin/false"})
    missed = any(line.startswith("Running stage") for line in narrator.lines)
    return None if missed and not workspace.children.stopped else state


def handed_over(client: SyncPrefectClient, run: FlowRun) -> dict[str, Any] | None:
    """What the worker's dvc.lock says of the stage that it was forced to make."""
    own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    return next((json.loads(artifact.data) for artifact in client.read_artifacts(artifact_filter=own) if artifact.key == MADE), None)


def adopt(made: dict[str, Any], stage: str, workspace: Workspace) -> State | None:
    """Take these outputs for the stage's; None when all went well. The run cache may hold others that the same inputs gave before."""
    from dvc.repo import Repo
    from dvc.utils.serialize import modify_yaml

    with Repo(str(workspace.root), _wait_for_lock=True) as repo, repo.lock, modify_yaml(str(workspace.root / "dvc.lock")) as lock:
        lock.setdefault("schema", "2.0")
        lock.setdefault("stages", {})[stage] = made
    lines: list[str] = []
    if run_dvc(["pull", "--force", stage], workspace=workspace, on_line=lines.append, env={}):
        return stopped(workspace) or Failed(message=f"the worker made it, but it could not be pulled from DVC's remote:\n{tail(lines)}")
    return None


def request(client: SyncPrefectClient, node: Node, root: Path, revision: str, *, force: bool) -> FlowRun:
    """The run that makes the stage of these inputs: one that is under way already, asked for by a flow that was killed, or a new one."""
    parameters = {
        "stage": node.name,
        "revision": revision,
        "params": (root / "params.yaml").read_text(),
        "lock": upstream_lock(root, node.upstream),
        "upstream": list(node.upstream),
        "force": force,
    }
    tag = "request-" + hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    asked = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": {"type": {"any_": _UNFINISHED}}})
    if found := client.read_flow_runs(flow_run_filter=asked, limit=1):
        return found[0]
    return run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, tags=[tag], flow_run_name=node.name)


def upstream_lock(root: Path, upstream: tuple[str, ...]) -> str:
    """What dvc.lock says of these stages: whatever goes on in others, the request for the same inputs stays the same."""
    path = root / "dvc.lock"
    lock: dict[str, Any] = yaml.safe_load(path.read_text()) if path.exists() else {"schema": "2.0"}
    return yaml.safe_dump({**lock, "stages": {name: made for name, made in lock.get("stages", {}).items() if name in upstream}})


def follow(client: SyncPrefectClient, run: FlowRun, watch: Watch, *, workspace: Workspace, narrator: Narrator) -> State:
    """Wait for the run's end and pass on what it says. However the wait ends, the run does not go on, unless this process is killed."""
    lost = None
    try:
        while not (run.state and run.state.is_final()):
            if workspace.children.stopped:
                return Failed(name="Stopped", message="stopped before its end")
            time.sleep(_POLL)
            try:
                run = client.read_flow_run(run.id)
                for line in watch.lines(client, run):
                    narrator(line)
                if lost := watch.lost(client, run):
                    return Failed(name="Lost", message=lost)
            except httpx.HTTPError as e:  # a server that restarts or is overrun must not end a long training
                if isinstance(e, httpx.HTTPStatusError) and e.response.status_code < 500:
                    raise
                get_run_logger().warning(f"the server does not answer ({e}); asking again")
    finally:
        if not (run.state and run.state.is_final()):
            end(client, run, lost)
    return told(run)


def end(client: SyncPrefectClient, run: FlowRun, lost: str | None) -> None:
    """Cancel the run; one whose worker is gone would stay as it is for ever."""
    gone = lost and run.state and run.state.is_running()
    state = State(type=StateType.CRASHED, message=lost) if gone else State(type=StateType.CANCELLING)
    client.set_flow_run_state(run.id, state, force=bool(gone))


def told(run: FlowRun) -> State:
    """The run's end as that of the stage. A process that died is tried again, as one here is."""
    if run.state.is_crashed():
        return Failed(name="Killed", message=f"its process on the worker died: {run.state.message}")
    if run.state.is_cancelled():
        return Failed(message=f"the run {run.name} (id {run.id}) was cancelled")
    return State(type=run.state.type, name=run.state.name, message=run.state.message)
