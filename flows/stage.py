"""One stage of the chain as a Prefect task: here, or on a worker elsewhere, with its progress and its output in the run's log."""

import re
import sys
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Completed

from blip_core.tables.stopped import stopped
from flows.gpus import gpu_locks, locked
from flows.graph import GPU, Node
from flows.progress import Narrator
from flows.remote import Remote
from flows.repro import reproduce
from flows.told import not_run
from flows.workspace import Workspace

RETRIED = ("Killed", "Locked")  # states whose cause may be gone; a gate that said no says it again


def may_recover(_task: object, _task_run: object, state: State) -> bool:
    return state.name in RETRIED


@task(task_run_name="{node.name}", cache_policy=NO_CACHE, retries=1, retry_delay_seconds=10, retry_condition_fn=may_recover)
def run_stage(node: Node, *, missing: Callable[[], list[str]], force: bool, workspace: Workspace, remote: Remote | None) -> State:
    """Bring one stage up to date. All its upstream must be so already, or be kept: `-s` looks at no other stage. `missing`: those not."""
    if names := missing():
        return not_run(names)
    if node.kept:
        return Completed(name="Kept", message="taken as it is")
    if not node.dirty:
        return Completed(name="Unchanged", message="up to date")
    log = get_run_logger()
    narrator = Narrator(log.info, ProgressBar(node.name), interval=1.0 if sys.stderr.isatty() else 10.0)
    with_gpu = node.pool == GPU and not any(stopped(workspace.root / dep) for dep in node.deps)  # else it leaves placeholders alone
    if remote and with_gpu:
        return remote.run(node, workspace=workspace, log=log, narrator=narrator)
    gpus = gpu_locks() if with_gpu else []
    with locked(gpus, stopped=lambda: workspace.children.stopped, say=log.info) as locks, workspace.slots.one(node.behind):
        return reproduce(node.name, ["-f"] if force else [], workspace=workspace, narrator=narrator, locks=locks)


class ProgressBar:
    """A progress artifact of the run, made at the first step that a stage reports."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._id: UUID | None = None

    def __call__(self, percent: float) -> None:
        try:
            self._show(percent)
        except (httpx.HTTPError, PrefectException) as e:  # a server that restarts must not end a long training
            get_run_logger().warning(f"progress is not shown: {e}")

    def _show(self, percent: float) -> None:
        if self._id is None:
            self._id = create_progress_artifact(progress=percent, key=slug(f"progress {self._stage}"), description=self._stage)
        else:
            update_progress_artifact(self._id, progress=percent)


def slug(text: str) -> str:
    """A key as Prefect's artifacts want it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
