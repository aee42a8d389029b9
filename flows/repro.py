"""`dvc repro -s` of one stage, which never outlives the flow, and how it ended, in plain words. No task of Prefect's is in it."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.progress import Narrator
from flows.workspace import Workspace

_EXIT = re.compile(r"ERROR: failed to reproduce .*exited with (-?\d+)$")
_BESIDE = ("> ", "Running stage", "WARNING: Process ")  # DVC of what it runs, and of locks that a killed run left
_LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by|Unable to read RWLock-file")


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
    on_line = but_the_reason(narrator, stage, error_file)
    code = run_dvc(["repro", "-s", *options, stage], workspace=workspace, on_line=on_line, env=env, locks=locks)
    if workspace.children.stopped:
        return Failed(name="Stopped", message="stopped before its end")
    return verdict(code, list(narrator.lines), error_file)


def but_the_reason(narrator: Narrator, stage: str, error_file: Path) -> Callable[[str], None]:
    """Passes on what is printed, but for the reason of a failure, which stands in the file already: the flow tells it at its end."""

    def on_line(line: str) -> None:
        if error_file.exists():
            error = json.loads(error_file.read_text())
            told = error["message"].splitlines() if error["kind"] == "input" else []
            if line.removeprefix(f"{stage.split('@')[0]}: ") in told or line in told or _EXIT.search(line):
                return
        narrator(line)

    return on_line


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
    told = [line for line in lines if not _EXIT.search(line) and not line.startswith(_BESIDE)]
    return "\n".join((told or lines or ["it said nothing"])[-15:])
