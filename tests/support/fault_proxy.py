"""A proxy before a real server that breaks the transfers it is told to break, in the ways that networks and gateways do."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Rule:
    """Break the requests that match, one in `every`, at most `count` of them.

    503, 500, 429: that answer. reset: hang up before an answer. lost: pass the request on, then hang up. cut: hang up after `after`
    bytes of the body. short: the same, but the Content-Length says so. stall: after as many bytes nothing comes until other rules
    hold. flip: one bit."""

    kind: str
    match: str = "GET .*"
    every: int = 1
    count: int = 10**9
    after: int = 1000
    matched: int = 0
    hits: int = 0


@dataclass
class FaultProxy:
    """Between a client and the server at `backend`. `requests`: of each its method, its path, its Range, and whether it was unsigned."""

    backend: int
    port: int = 0
    rules: list[Rule] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def breaks(self, *rules: Rule) -> None:
        """From now on these rules hold, and nothing has been requested yet."""
        self.rules, self.requests = list(rules), []

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        ready, done = threading.Event(), asyncio.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready, done)), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(done.set)
            thread.join()

    async def _serve(self, ready: threading.Event, done: asyncio.Event) -> None:
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 20)
        self.port, self.loop = server.sockets[0].getsockname()[1], asyncio.get_running_loop()
        ready.set()
        await done.wait()

    def _rule(self, line: str) -> Rule | None:
        for rule in self.rules:
            if re.match(rule.match, line):
                rule.matched += 1
                if rule.matched % rule.every == 0 and rule.hits < rule.count:
                    rule.hits += 1
                    return rule
        return None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request: the client is told to close."""
        rule = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            line = head.split(b"\r\n", 1)[0].decode("latin1")
            wanted = re.search(rb"(?im)^range: *(.*?)\r$", head)
            signed = "" if re.search(rb"(?im)^authorization:", head) else " unsigned"
            self.requests.append(line.rpartition(" ")[0] + (f" {wanted[1].decode()}" if wanted else "") + signed)
            if re.search(rb"(?im)^expect: *100-continue", head):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await _body(reader, head)
            rule = self._rule(line)
            if rule and rule.kind.isdigit():
                writer.write(_error(int(rule.kind)))
            elif not rule or rule.kind != "reset":
                await self._pass_on(head, body, line, rule, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            if rule and rule.kind in ("reset", "lost", "cut"):
                writer.transport.abort()
            writer.close()

    async def _pass_on(self, head: bytes, body: bytes, line: str, rule: Rule | None, writer: asyncio.StreamWriter) -> None:
        reader, server = await asyncio.open_connection("127.0.0.1", self.backend)
        head = re.sub(rb"(?im)^(connection|expect):.*\r\n", b"", head)
        server.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
        answer, _, data = (await reader.read()).partition(b"\r\n\r\n")
        server.close()
        if rule and rule.kind == "lost":
            return
        if rule and rule.kind in ("cut", "short", "stall"):
            data = data[: rule.after]
        if rule and rule.kind == "short":
            answer = re.sub(rb"(?im)^content-length: *\d+", b"Content-Length: %d" % len(data), answer)
        if rule and rule.kind == "flip":
            data = data[: rule.after] + bytes([data[rule.after] ^ 1]) + data[rule.after + 1 :]
        writer.write(answer + b"\r\n\r\n" + data)
        await writer.drain()
        if rule and rule.kind == "cut":
            await asyncio.sleep(0.02)
        while rule and rule.kind == "stall" and any(rule is one for one in self.rules):
            await asyncio.sleep(0.02)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The request's body as it came, chunks and all."""
    if length := re.search(rb"(?im)^content-length: *(\d+)", head):
        return await reader.readexactly(int(length[1]))
    body, size = b"", -1
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        while size:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            body += line + (await reader.readexactly(size + 2) if size else await _trailer(reader))
    return body


async def _trailer(reader: asyncio.StreamReader) -> bytes:
    """Header lines after the last chunk, up to the empty one."""
    lines = b""
    while not lines.endswith(b"\r\n\r\n") and lines != b"\r\n":
        lines += await reader.readline()
    return lines


def _error(status: int) -> bytes:
    body = b"<Error><Code>SlowDown</Code><Message>on purpose</Message></Error>" if status == 503 else b""  # gateways send a bare 429
    return b"HTTP/1.1 %d X\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )
