"""Commands that never outlive who asked for them: the guardian, this file run as a script.

A plain child of a killed process goes on as an orphan: dvc and the stage below it, holding the GPU. So a command gets a session of its
own and a small guardian, whose stdin is a pipe from the asker. However that one ends, even by kill -9, the pipe closes; the guardian
then ends the command's whole process group.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 10.0  # seconds between SIGTERM and SIGKILL: time for a training to leave its checkpoint
STOPPED = 128 + signal.SIGTERM


def guarded(command: list[str]) -> list[str]:
    """The command below a guardian: to be started with a pipe for its stdin. Its exit code is the command's, 128 + n for signal n."""
    return [sys.executable, "-I", __file__, *command]


def guard(command: list[str]) -> int:
    """The guardian: returns the command's exit code, or ends its group when stdin closes or a signal asks for it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def quit_(*_: object) -> None:
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
