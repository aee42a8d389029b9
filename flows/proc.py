"""Run commands that never outlive the flow that asked for them: each below a guardian (blip_core/runtime/guardian.py).

Nor does a deployment's run outlive its worker: nobody could cancel it any more.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from blip_core.runtime.guardian import STOPPED, guarded

_LOOK = 2.0  # seconds


def end_with_worker() -> None:
    """From now on the death of the worker that started this process is a SIGTERM to it. Without this a run would notice when it next has
    something to print, and a stage can be silent for minutes."""
    worker = os.getppid()

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="worker-watch", daemon=True).start()


class Children:
    """The commands of one flow run. After `stop` none runs and none starts."""

    def __init__(self) -> None:
        self._guardians: set[subprocess.Popen[str]] = set()
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
            assert guardian.stdout
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
                assert guardian.stdin
                guardian.stdin.close()

    @staticmethod
    def _end(guardian: subprocess.Popen[str]) -> None:
        """Also when `on_line` raised: no command without a reader."""
        assert guardian.stdin and guardian.stdout
        guardian.stdin.close()
        guardian.stdout.close()
        guardian.wait()


def _start(command: list[str], *, cwd: Path, env: dict[str, str], locks: tuple[int, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        guarded(command),
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
