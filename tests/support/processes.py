"""Children of the tests: the warm process that runs most of them, those that are sent signals, and waiting for what they do."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HANG = 1200.0  # seconds; only what hangs takes so long, however busy the machine is
WARM = Path(__file__).parent / "warm"


@contextlib.contextmanager
def warm_process() -> Iterator[None]:
    """Programs that are started meanwhile run in forks of one process (warm/server.py), where the system can do it."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    path = [str(WARM), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, WARM / "server.py", folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
            os.environ["BLIP_WARM"] = folder
            yield


def cold(environ: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for a program that must be a process of its own."""
    return {name: value for name, value in (os.environ if environ is None else environ).items() if name != "BLIP_WARM"}


def heed_interrupts() -> None:
    """As `preexec_fn` of a child that is to be sent Ctrl-C: what a shell starts in the background, as a run of the tests, ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_tree(pid: int) -> None:
    """A process and all below it at once, as when the power fails."""
    import psutil

    root = psutil.Process(pid)
    for process in [*root.children(recursive=True), root]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            process.kill()


def gone(pid: int) -> bool:
    """Whether a process has ended; its parent need not have noticed."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition, *, pause: float = 0.05):
    """Its first value that is true; it is asked for every `pause` seconds. Fails where it never comes."""
    deadline = time.monotonic() + HANG
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    assert value
    return value
