"""A shard while it is fetched: a tar that grows, and a ledger of what came of each row. Both are written before the next row's turn, so
that whatever is killed, no row that was answered is asked again."""

import fcntl
import json
import os
import threading
import zlib
from dataclasses import fields
from pathlib import Path

from blip_core.fetch.outcome import Outcome

_END = bytes(1024)  # of a tar
_KEPT = tuple(one.name for one in fields(Outcome) if one.name != "data")


class Spool:
    """`outcomes`: by the row's number in the shard, without their pictures. Threads share it. ValueError where another process has it."""

    def __init__(self, folder: Path, number: int, tar: Path):
        """`folder`: for the unfinished files. `tar`: what the finished one is called."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.part, self.tar = folder / f"{number:05d}.jsonl", folder / f"{number:05d}.part", tar
        self.ledger, self.lock = self.path.open("ab"), threading.Lock()
        try:
            fcntl.flock(self.ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path}: another `blip fetch` works on this shard; give each its own --shards") from None
        if self.path.stat().st_size and not self.part.exists() and tar.exists():  # killed as it finished
            os.replace(tar, self.part)
        self.members = self.part.open("ab")
        self.outcomes, self.end = self._read()

    def _read(self) -> tuple[dict[int, Outcome], int]:
        """What is whole, and where its members end; a line or member that was cut off goes, with all behind it."""
        found, end, lines_end = dict[int, Outcome](), 0, 0
        with self.path.open("rb") as lines, self.part.open("rb") as members:
            for line in lines:
                if not line.endswith(b"\n"):  # the next one would stand on it
                    break
                try:
                    about = json.loads(line)
                    row, length, checksum = (about.pop(name) for name in ("row", "length", "crc"))
                except ValueError:
                    break
                if zlib.crc32(members.read(length)) != checksum:  # the machine went down, and the disk has less than was written
                    break
                found[row] = Outcome(**about)
                end, lines_end = end + length, lines_end + len(line)
        os.truncate(self.path, lines_end)
        os.truncate(self.part, end)
        return found, end

    def add(self, row: int, outcome: Outcome, members: bytes = b"") -> None:
        """With the members of its sample in a tar, empty where no picture came. The system has both when it returns."""
        about = {name: getattr(outcome, name) for name in _KEPT}
        line = {"row": row, "length": len(members), "crc": zlib.crc32(members), **about}
        with self.lock:
            for file, data in ((self.members, members), (self.ledger, json.dumps(line).encode() + b"\n")):
                file.write(data)
                file.flush()
            self.outcomes[row] = Outcome(**about)
            self.end += len(members)

    def finish(self) -> None:
        """The tar takes its name. A call that is killed behind it begins with the ledger, and finishes again."""
        with self.lock:
            self.members.write(_END)
            self.members.flush()
            os.fsync(self.members.fileno())
            self.members.close()
            os.replace(self.part, self.tar)

    def close(self) -> None:
        with self.lock:
            self.members.close()
            self.ledger.close()

    def remove(self) -> None:
        self.path.unlink()
        self.close()
