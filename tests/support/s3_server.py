"""A real S3 server for the tests: OpenStack Swift with its S3 API, behind a proxy that breaks what it is told to break."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.fault_proxy import FaultProxy
from tests.support.processes import wait_until

ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
_BIN = Path(sys.executable).parent
_KINDS = ("account", "container", "object")
_ENV = {**os.environ, "EVENTLET_NO_GREENDNS": "yes"}  # its own resolver imports trio where that is installed, and breaks
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in zip(("account", "container", "object"), sys.argv[1:]):
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1.0,
                     "replication_ip": "127.0.0.1", "replication_port": int(port)})
    builder.rebalance()
    builder.get_ring().save(f"{kind}.ring.gz")
"""
_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = ERROR
log_udp_host = 127.0.0.1
log_udp_port = 9
"""
_STORE = "[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\nrecon_cache_path = {folder}\n"
_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "cache", "listing_formats", "bulk", "s3api", "tempauth")
_FILTERS += ("copy", "slo", "dlo", "versioned_writes", "symlink")
_SETTINGS = {
    "cache": {"use": "egg:swift#memcache", "memcache_servers": "127.0.0.1:1", "error_suppression_limit": 1},
    "s3api": {"location": "us-east-1", "force_swift_request_proxy_log": "false"},
    "tempauth": {"user_test_tester": "testing .admin"},
    "versioned_writes": {"allow_object_versioning": "true"},
}


class NoServer(Exception):
    """Why Swift can't run here."""


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[int]:
    """The port of a server of its own, with everything it keeps below `folder`."""
    if not (_BIN / "swift-proxy-server").exists():
        raise NoServer("OpenStack Swift is not installed (it is part of the extra `test`, on Linux)")
    try:
        os.setxattr(folder, "user.swift", b"1")
    except OSError as e:
        raise NoServer(f"{folder} keeps no extended attributes, which Swift needs: {e}") from None
    *stores, proxy = ports = _free_ports(4)
    (folder / "devices/disk").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = s\n[storage-policy:0]\nname = gold\ndefault = yes\n")
    subprocess.run([sys.executable, "-c", _RINGS, *map(str, stores)], cwd=folder, env=_ENV, check=True)
    processes = [_start(folder, kind, port) for kind, port in zip((*_KINDS, "proxy"), ports, strict=True)]
    try:
        for process, port in zip(processes, ports, strict=True):
            _wait(process, port, folder)
        yield proxy
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


def _start(folder: Path, kind: str, port: int) -> subprocess.Popen:
    text = _COMMON.format(port=port, user=_user(), folder=folder)
    text += _proxy_settings() if kind == "proxy" else _STORE.format(kind=kind, folder=folder)
    conf = folder / f"{kind}.conf"
    conf.write_text(text)
    with (folder / f"{kind}.log").open("wb") as log:
        command = [_BIN / f"swift-{kind}-server", conf]
        return subprocess.Popen(command, env=_ENV, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)


def _die_with_parent() -> None:
    """A test run that is killed leaves no server (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _proxy_settings() -> str:
    lines = [f"[pipeline:main]\npipeline = {' '.join(_FILTERS)} proxy-server", "[app:proxy-server]", "use = egg:swift#proxy"]
    lines += ["account_autocreate = true", "allow_account_management = true"]
    for name in _FILTERS:
        settings = {"use": f"egg:swift#{name}"} | _SETTINGS.get(name, {})
        lines += [f"[filter:{name}]", *(f"{key} = {value}" for key, value in settings.items())]
    return "\n".join(lines) + "\n"


def _wait(process: subprocess.Popen, port: int, folder: Path) -> None:
    wait_until(lambda: process.poll() is not None or _answers(port))
    if process.poll() is not None:
        raise RuntimeError("Swift did not start: " + " ".join(p.read_text()[-500:] for p in folder.glob("*.log")))


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@dataclass
class S3:
    """The server behind the proxy, and a client of its own that does not go through it."""

    proxy: FaultProxy
    client: object
    buckets: int = 0

    def bucket(self) -> str:
        """A new one."""
        self.buckets += 1
        name = f"bucket-{self.buckets}"
        self.client.create_bucket(Bucket=name)
        return name

    def put(self, url: str, data: bytes) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def put_folder(self, url: str, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    @property
    def env(self) -> dict[str, str]:
        """What a user sets; nothing of this machine's own settings is left."""
        names = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true"}
        nothing = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
        return names | nothing | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.proxy.port}", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    import boto3

    with swift(folder) as port, FaultProxy(port).running() as proxy:
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
        yield S3(proxy, boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys))
