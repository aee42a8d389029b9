"""One process for the whole run of the tests that has the large libraries imported and forks for each program that a test starts.

A start of Python with torch, MLflow and DVC takes seconds of a core, a fork of this process a few hundredths. Of the project itself
nothing is imported here: a fork imports it from where it runs. `python -m blip_core …`, `dvc …`, the flows, `python -c` with code that
begins with `# warm`, and the processes that run the tests side by side start as ever, find sitecustomize.py on PYTHONPATH, and run here.
Not as in a process of its own are the parent, the process group, and descriptors other than stdin, stdout and stderr: tests about these
start programs without BLIP_WARM in the environment.

It ends when its stdin does, so with the run of the tests, however that ends, and its forks with it.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType

from sitecustomize import read_at_import

LIBRARIES = (
    "accelerate aiohttp alembic av coolname dvc.cli dvc.cli.parser dvc.commands.repro dvc.commands.status dvc.repo dvc.repo.datasets "
    "dvc.repo.reproduce dvc.scm fastapi great_expectations griffe httpx imagehash matplotlib.pyplot mlflow mlflow.pyfunc "
    "mlflow.store.tracking.sqlalchemy_store networkx numpy pandas pendulum phonenumbers prometheus_client py3langid pyarrow.compute "
    "pyarrow.dataset pyarrow.parquet pydantic pydantic_settings pytest rich.console ruamel.yaml safetensors.torch scipy.stats scmrepo.git "
    "selenium.webdriver simplejpeg sklearn.linear_model sklearn.metrics sqlalchemy.ext.asyncio tabulate tokenizers torch torch._dynamo "
    "torch.distributed torch.utils.data tqdm transformers.generation transformers.models.auto typer uvicorn websockets yaml"
).split()


class Forked(Exception):
    """In a fork: leaves the loop with what is to be run."""


class Program:
    """A fork that runs, and the connection to the process that stands for it."""

    def __init__(self, pid: int, connection: socket.socket, events: selectors.BaseSelector):
        self.pid, self.connection, self.events = pid, connection, events
        self.ended = os.pidfd_open(pid)
        events.register(self.ended, selectors.EVENT_READ, self.end)
        events.register(connection, selectors.EVENT_READ, self.hear)

    def hear(self) -> None:
        """A signal to be passed on; a process that is gone without a word was killed."""
        if self.connection.fileno() < 0:  # both at once
            return
        try:
            signals = self.connection.recv(16)
        except OSError:
            signals = b""
        for number in signals or [signal.SIGKILL]:
            self.signal(number)
        if not signals:
            self.events.unregister(self.connection)
            self.connection.close()

    def signal(self, number: int) -> None:
        """To its whole group, as a terminal and a guardian do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        self.events.unregister(self.ended)
        os.close(self.ended)
        _, status = os.waitpid(self.pid, 0)
        if self.connection.fileno() >= 0:
            self.events.unregister(self.connection)
            with contextlib.suppress(OSError), self.connection:
                self.connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))


def serve(listener: socket.socket) -> None:
    """Until stdin ends. Raises Forked in a fork."""
    events, going = selectors.DefaultSelector(), True

    def stop() -> None:
        nonlocal going
        going = False

    events.register(0, selectors.EVENT_READ, stop)
    events.register(listener, selectors.EVENT_READ, lambda: _accept(listener, events))
    while going:
        for key, _ in events.select():
            key.data()
    for key in events.get_map().values():
        if isinstance(program := getattr(key.data, "__self__", None), Program):
            program.signal(signal.SIGKILL)


def _accept(listener: socket.socket, events: selectors.BaseSelector) -> None:
    connection, _ = listener.accept()
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
        asked = json.loads(_receive(connection, int.from_bytes(header)))
    except (OSError, ValueError):  # who asked was killed meanwhile
        connection.close()
        return
    for name in LIBRARIES:  # imported when the first program is to run
        importlib.import_module(name)
    gc.freeze()
    pid = os.fork()
    if not pid:
        for key in list(events.get_map().values()):
            os.close(key.fileobj) if isinstance(key.fileobj, int) else key.fileobj.close()
        events.close()
        connection.close()
        _become(asked, descriptors)
        raise Forked(asked["argv"])
    with contextlib.suppress(OSError):  # the fork may have done it, or have ended
        os.setpgid(pid, pid)
    for descriptor in descriptors:
        os.close(descriptor)
    Program(pid, connection, events)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += (part := connection.recv(size - len(data)))
        if not part:
            raise ValueError("the request is cut")
    return data


def _become(asked: dict, descriptors: list[int]) -> None:
    """All but what it runs of the process that was asked for."""
    os.setpgid(0, 0)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["cwd"])
    sys.orig_argv = [sys.executable, *asked["argv"]]
    kind, *argv = asked["argv"]
    sys.argv = argv if kind == "-m" else ["-c", *argv[1:]] if kind == "-c" else [kind, *argv]
    first = asked["cwd"] if kind.startswith("-") else str(Path(kind).resolve().parent)
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *named, *sys.path]
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(line_buffering=True)


def run(argv: list[str]) -> int:
    """The exit code, negative for a signal, of a module, a script or code as the interpreter runs it."""
    try:
        if argv[0] == "-c":
            sys.modules["__main__"] = ModuleType("__main__")  # what it spawns would import this file else
            exec(argv[1], vars(sys.modules["__main__"]))
        elif argv[0] == "-m":
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:  # noqa: BLE001  # as the interpreter itself: it says what it was, and the exit code is 1
        traceback.print_exc()
        return 1
    return 0


def end(code: int) -> None:
    """As the interpreter ends, but without taking all modules apart: that would copy all the memory that a fork shares."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(128)
        (folder / "environment.json").write_text(json.dumps({"prefix": sys.prefix, **read_at_import(os.environ)}))
        here = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
        sys.path[:] = [path for path in sys.path if path not in here]
        serve(listener)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Forked as forked:
        (program,) = forked.args
    else:
        sys.exit()
    end(run(program))
