"""One stage of the chain as a Prefect task: `dvc repro -s <stage>`, its output in the run's log, its failure in plain words."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Completed, Failed

from blip_core.stopped import stopped
from flows.gpus import gpu_locks, locked
from flows.graph import Node
from flows.progress import Narrator
from flows.workspace import Workspace

if TYPE_CHECKING:
    from flows.remote import Remote

GPU = "gpu"  # the `meta.pool` of stages that want one
RETRIED = ("Killed", "Locked")  # states whose cause may be gone; a gate that said no says it again
_EXIT = re.compile(r"ERROR: failed to reproduce .*exited with (-?\d+)$")
_LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by|Unable to read RWLock-file")


def may_recover(_task, _task_run, state: State) -> bool:
    return state.name in RETRIED


@task(task_run_name="{node.name}", cache_policy=NO_CACHE, retries=1, retry_delay_seconds=10, retry_condition_fn=may_recover)
def run_stage(node: Node, *, force: bool, workspace: Workspace, remote: "Remote | None") -> State:
    """Bring one stage up to date. All its upstream must be so already, or be kept: `-s` looks at no other stage."""
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
    with locked(gpus, stopped=lambda: workspace.children.stopped, say=log.info) as locks, workspace.slots:
        return reproduce(node.name, ["-f"] if force else [], workspace=workspace, narrator=narrator, locks=locks)


def reproduce(
    stage: str,
    options: list[str],
    *,
    workspace: Workspace,
    narrator: Narrator,
    env: dict[str, str] | None = None,
    locks: tuple[int, ...] = (),
) -> State:
    """Run the stage through DVC; how it ended."""
    error_file = workspace.error_file(stage)
    error_file.parent.mkdir(parents=True, exist_ok=True)
    error_file.unlink(missing_ok=True)
    workspace.mend_locks()
    env = {**(env or {}), "BLIP_ERROR_FILE": str(error_file)}
    code = run_dvc(["repro", "-s", *options, stage], workspace=workspace, on_line=narrator, env=env, locks=locks)
    if workspace.children.stopped:
        return Failed(name="Stopped", message="stopped before its end")
    return verdict(code, list(narrator.lines), error_file)


def run_dvc(
    arguments: list[str], *, workspace: Workspace, on_line: Callable[[str], None], env: dict[str, str], locks: tuple[int, ...] = ()
) -> int:
    """The exit code of dvc, which is 255 for any failure of its own or of a stage."""
    command = [str(workspace.dvc), "--wait-for-lock", *arguments]
    return workspace.children.run(command, cwd=workspace.root, env={**workspace.env, **env}, on_line=on_line, locks=locks)


def verdict(code: int, lines: list[str], error_file: Path) -> State:
    """The stage's state by dvc's exit code, what was printed, and the error file: {"kind": "input" | "crash", "message"}."""
    if code == 0:
        return _success(lines)
    if error_file.exists():
        error = json.loads(error_file.read_text())
        return Failed(message=error["message"] if error["kind"] == "input" else f"crashed: {error['message']}")
    if any(_LOCKED.search(line) for line in lines):
        return Failed(name="Locked", message="another DVC command holds this project's lock, or was killed while it did:\n" + tail(lines))
    exits = [int(found[1]) for line in lines if (found := _EXIT.search(line))]
    number = _signal(exits[-1] if exits else code)
    if number:
        return Failed(name="Killed", message=f"killed by {number.name}{_KILLED_HINT.get(number, '')}")
    return Failed(message=tail(lines))


_KILLED_HINT = {signal.SIGKILL: " (mostly for want of memory: try a smaller batch or fewer workers)"}


def _success(lines: list[str]) -> State:
    if any(line.endswith("is cached - skipping run, checking out outputs") for line in lines):
        return Completed(name="Restored", message="the same run was made before: its outputs came from DVC's cache")
    if any(line.endswith("didn't change, skipping") for line in lines):
        return Completed(name="Unchanged", message="its inputs were made again and are the same")
    return Completed()


def _signal(code: int) -> signal.Signals | None:
    """The signal that ended a process: -n as Popen has it, 128 + n as shells do. 255 is DVC's own failure."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if number in set(signal.Signals) else None


def tail(lines: list[str]) -> str:
    """The last lines; DVC's own last word repeats the command, which helps nobody, so it goes when there is more."""
    told = [line for line in lines if not _EXIT.search(line) and not line.startswith(("> ", "Running stage"))]
    return "\n".join((told or lines or ["it said nothing"])[-15:])


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
