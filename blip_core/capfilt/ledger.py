"""What servers have answered, kept as it comes, so that nothing is paid for twice; and how much may still be asked."""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from blip_core.compute.work import Halt
from blip_core.config.capfilt import EndpointConfig

log = logging.getLogger(__name__)


class Ledger:
    """The answers of one table: lines of JSON, each on the disk before its answer is used. Threads share it.

    A line is what one question brought: the answers by the hashes of their requests, the run that paid for it, the tokens it cost.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run, self.lock = path, run, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.answers = {request: answer for line in read_lines(path) for request, answer in line["answers"].items()}
        self.file = path.open("a", encoding="utf-8")
        if path.stat().st_size and path.read_bytes()[-1:] != b"\n":  # the end of a line was lost with the process that wrote it
            self.file.write("\n")

    def add(self, answers: dict[str, str], tokens: int) -> None:
        """What one question brought: answers by request."""
        line = json.dumps({"run": self.run, "tokens": tokens, "answers": answers}, ensure_ascii=False)
        with self.lock:
            self.file.write(line + "\n")
            self.file.flush()
            self.answers.update(answers)
        os.fsync(self.file.fileno())  # outside of the lock: the file system does those of several threads at once

    def close(self) -> None:
        self.file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Those of a ledger that are whole; none where there is no file yet."""
    found, broken = [], 0
    # by line feeds alone: what Unicode calls an end of a line may stand in an answer
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            broken += bool(line)
    if broken:
        log.warning("%s: %d answers were cut off as they were written; they are asked for again", path, broken)
    return found


class Budget:
    """What a run may still ask of a server. Requests count that were answered, those of the run's earlier attempts too."""

    def __init__(self, limits: EndpointConfig, answers: Path, run: str, *, workers: int):
        self.lock, self.requests, self.tokens = threading.Lock(), 0, 0
        spent = [0, 0]
        if limits.max_requests or limits.max_tokens_total:
            paid = [line["tokens"] for path in sorted(answers.glob("*/*.jsonl")) for line in read_lines(path) if line["run"] == run]
            spent = [len(paid), sum(paid)]
        self.most = {"max_requests": limits.max_requests, "max_tokens_total": limits.max_tokens_total}
        # several workers share what is left, for none sees what the others spend
        rest = zip(self.most.items(), spent, strict=True)
        self.left = {limit: (most - used) // workers for (limit, most), used in rest if most}

    def take(self) -> None:
        """Before a request. Halt where none is left."""
        with self.lock:
            for limit, used in (("max_requests", self.requests), ("max_tokens_total", self.tokens)):
                if limit in self.left and used >= self.left[limit]:
                    raise Halt(f"endpoint.{limit}: {self.most[limit]} is spent; raise it and run again: what was answered is kept")
            self.requests += 1

    def give_back(self) -> None:
        """A request that was not answered costs nothing."""
        with self.lock:
            self.requests -= 1

    def spend(self, tokens: int) -> None:
        """What an answer took, as the server says."""
        with self.lock:
            self.tokens += tokens

    def require_told(self, tokens: int | None) -> None:
        """Halt where tokens are to be counted, and the server does not say how many an answer took."""
        if tokens is None and "max_tokens_total" in self.left:
            raise Halt("endpoint.max_tokens_total: the server says of no answer how many tokens it took; set endpoint.max_requests instead")
