"""What a program does while a fork of the warm process runs in its place. Imports little: it is there to start quickly."""

import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1)


def run_warm(folder: str, words: list[str]) -> None:
    """Ends the process, as the fork did: by the same exit code or by the same signal. Returns where the warm process has ended.

    `words`: a module, a script or code, and its arguments."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.path.join(folder, "socket"))
    except OSError:
        return
    ignored = [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    asked = {"argv": words, "cwd": os.getcwd(), "environ": dict(os.environ), "ignored": ignored}
    data = json.dumps(asked).encode()
    for number in set(FORWARDED) - set(ignored):
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    socket.send_fds(connection, [len(data).to_bytes(8)], [0, 1, 2])
    connection.sendall(data)
    answer = connection.recv(4)
    if not answer:
        sys.stderr.write("the warm process has ended\n")
        os._exit(70)
    _end(int.from_bytes(answer, signed=True))


def _end(code: int) -> None:
    """`code` as subprocess tells it, negative for a signal."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)
