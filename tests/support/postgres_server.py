"""A real PostgreSQL server for the tests, in a folder of its own; it listens on 127.0.0.1 alone, with a password."""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import HANG, wait_until

PASSWORD = "testing"
_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": "60"}


class NoServer(Exception):
    """Why PostgreSQL can't run here."""


@dataclass
class Postgres:
    """A running server: `stop` it in the middle, as a crash does, and `start` it again on the same data."""

    folder: Path
    port: int
    user: str
    programs: Path
    process: subprocess.Popen | None = None

    def start(self) -> None:
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        command = [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *settings]
        with (self.folder / "log").open("ab") as log:
            out = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": self.folder}
            self.process = subprocess.Popen(command, **out, preexec_fn=lambda: _become(self.user))
        ready = ("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        wait_until(lambda: self.process.poll() is not None or _run(self, *ready, check=False) == 0)
        if self.process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-1000:]}")

    def stop(self) -> None:
        """At once, as `pg_ctl stop -m immediate`: no client is waited for, and the next start recovers."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(HANG)

    def database(self, name: str, driver: str = "psycopg2") -> str:
        """The URL of a new database."""
        _run(self, "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+{driver}://postgres:{PASSWORD}@127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server with no database but its own. Its folder is a temporary one that its user may enter, as pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = Postgres(folder, _free_port(), _user(), _programs())
        shutil.chown(folder, server.user)
        password = folder / "password"
        password.write_text(PASSWORD)
        shutil.chown(password, server.user)
        made = [
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--pwfile",
            password,
            "-E",
            "UTF8",
            "--no-sync",
            "--locale",
            "C",
        ]
        _run(server, "initdb", *made)
        server.start()
        yield server
        if server.process.poll() is None:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """The newest version that Debian or Homebrew has installed, or what PATH has."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt/homebrew/opt").glob("postgresql@*/bin")]
    folders = sorted((f for f in folders if (f / "postgres").exists()), key=lambda f: int("".join(filter(str.isdigit, str(f))) or 0))
    if not folders and not shutil.which("postgres"):
        raise NoServer("PostgreSQL's server is not installed (Debian: the package postgresql)")
    return folders[-1] if folders else Path(shutil.which("postgres")).parent


def _user() -> str:
    """Who runs it: PostgreSQL refuses root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid()).pw_name
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    raise NoServer("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _become(user: str) -> None:
    """In the child: that user, and gone when the test run is (prctl PR_SET_PDEATHSIG, which a change of user would clear)."""
    if not os.getuid():
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _run(server: Postgres, program: str, *arguments: object, check: bool = True) -> int:
    env = {"PATH": os.defpath, "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
    command = [server.programs / program, *map(str, arguments)]
    done = subprocess.run(
        command, env=env, cwd=server.folder, capture_output=True, text=True, preexec_fn=lambda: _become(server.user), timeout=HANG
    )
    if check and done.returncode:
        raise RuntimeError(f"{program}: {done.stderr}")
    return done.returncode


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return unused.getsockname()[1]
