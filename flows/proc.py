"""Run commands that never outlive the flow that asked for them.

A plain child of a killed flow goes on as an orphan: dvc and the stage below it, holding the GPU. So each command gets a
session of its own and a small guardian, this file run as a script, whose stdin is a pipe from the flow. However the flow
ends, even by kill -9, the pipe closes; the guardian then ends the command's whole process group.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE = 10.0  # seconds between SIGTERM and SIGKILL: time for a training to leave its checkpoint
STOPPED = 128 + signal.SIGTERM


class Children:
    """The commands of one flow run. After `stop` none runs and none starts."""

    def __init__(self) -> None:
        self._guardians: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(
        self, command: list[str], *, cwd: Path, env: dict[str, str], on_line: Callable[[str], None], locks: tuple[int, ...] = ()
    ) -> int:
        """Run to the end, stdout and stderr together to `on_line`. Returns the exit code, 128 + n for signal n.

        `locks` are descriptors of locked files: the guardian keeps them, so however the flow ends nobody else has the lock while the
        command is still there.
        """
        with self._lock:
            if self.stopped:
                return STOPPED
            guardian = _start(command, cwd=cwd, env=env, locks=locks)
            self._guardians.add(guardian)
        try:
            for line in guardian.stdout:
                on_line(line.rstrip())
            return guardian.wait()
        finally:
            self._end(guardian)
            with self._lock:
                self._guardians.discard(guardian)

    def stop(self) -> None:
        """End all that runs. Returns at once; each `run` returns when its command is gone."""
        with self._lock:
            self.stopped = True
            for guardian in self._guardians:
                guardian.stdin.close()

    @staticmethod
    def _end(guardian: subprocess.Popen) -> None:
        """Also when `on_line` raised: no command without a reader."""
        guardian.stdin.close()
        guardian.stdout.close()
        guardian.wait()


def _start(command: list[str], *, cwd: Path, env: dict[str, str], locks: tuple[int, ...]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-I", __file__, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=cwd,
        env=env,
        pass_fds=locks,
    )


def guard(command: list[str]) -> int:
    """The guardian: returns the command's exit code, or ends its group when stdin closes or a signal asks for it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def quit_(*_) -> None:
        _end_group(child.pid)
        os._exit(STOPPED)

    def watch() -> None:
        while os.read(0, 65536):
            pass
        quit_()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, quit_)
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _end_group(child.pid)  # what the command left behind, or what of it has not obeyed SIGTERM yet
    return code if code >= 0 else 128 - code


def _end_group(group: int) -> None:
    """SIGTERM, and SIGKILL for what is still there after GRACE seconds."""
    deadline = time.monotonic() + GRACE
    try:
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            _reap(group)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone; macOS says PermissionError of a group of zombies
        return


def _reap(pid: int) -> None:
    """A dead leader that nobody has waited for still counts as a group; a signal handler interrupts the one who waits."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
