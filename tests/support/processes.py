"""Children that are sent signals, and waiting for what they do."""

import contextlib
import signal
import time


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


def wait_until(condition, *, seconds: float = 60):
    """Its first value that is true; fails where there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert value
    return value
