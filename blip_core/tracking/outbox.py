"""What a stage tells MLflow, kept in a file until MLflow has it: a run survives a server that is away and a process that is killed.

A journal is a file of JSON records, one a line, below .work/tracking: first what opens the run, then what was logged, and marks of how
much of it was sent. Its process holds it by a lock of the system, so a journal that nobody holds is of a process that is gone.
"""

import fcntl
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Journal:
    """The records of one run. It is removed when all of them are sent."""

    def __init__(self, path: Path):
        """Open, or begin, the journal at `path` and hold it; BlockingIOError while another process does."""
        self.path, self.files = path, path.with_suffix("")  # `files`: copies of artifacts that wait
        self._file = path.open("ab", buffering=0)  # each record is in the system's hands when `note` returns
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.header: dict[str, Any] = {}
        self.run_id: str | None = None
        self.ended = False
        self._sent = 0
        for entry, _ in self._read(0):
            self._take(entry)

    @property
    def name(self) -> str:
        return self.path.stem

    def note(self, **entry: Any) -> None:
        """Add a record. It begins with the line's end, so that one that a full disk cut off spoils no other."""
        record = b"\n" + json.dumps(entry).encode()
        if self._file.write(record) != len(record):
            raise OSError(f"{self.path}: the disk is full")
        self._take(entry)

    def unsent(self, most: int) -> Iterator[list[dict[str, Any]]]:
        """Records that are not marked as sent, in batches of at most about `most` metrics; each is marked when the next is asked for."""
        batch, count = [], 0
        for entry, end in self._read(self._sent):
            if not entry.keys() & {"metrics", "headline", "tag", "artifact", "end"}:
                continue
            batch.append(entry)
            count += len(entry.get("metrics", ()))
            if count >= most:
                yield batch
                self.note(sent=end)
                batch, count = [], 0
        if batch:
            yield batch
            self.note(sent=end)

    def begin_again(self) -> None:
        """MLflow does not know the run any more: it gets a new one, with everything."""
        self.note(run_id=None)
        self.note(sent=0)

    def keep_file(self, source: Path, to: str | None) -> None:
        """Copy a file or folder that is to be an artifact, below the artifact folder `to`."""
        kept = self.files / uuid.uuid4().hex / source.name
        kept.parent.mkdir(parents=True)
        shutil.copytree(source, kept) if source.is_dir() else shutil.copy(source, kept)
        self.note(artifact=[str(kept.relative_to(self.files)), to])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let go of it; what is in it stays."""
        self._file.close()

    def _take(self, entry: dict[str, Any]) -> None:
        self.header = entry.get("header", self.header)
        self.run_id = entry.get("run_id", self.run_id)
        self.ended = self.ended or "end" in entry
        self._sent = entry.get("sent", self._sent)

    def _read(self, start: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Each record behind `start`, and where it ends."""
        with self.path.open("rb") as f:
            f.seek(start)
            while line := f.readline():
                try:
                    entry = json.loads(line) if line.strip() else {}
                except ValueError:  # cut off
                    entry = {}
                yield entry, f.tell()


def folder(root: Path) -> Path:
    return root / ".work" / "tracking"


def begin(root: Path, header: dict[str, Any]) -> Journal:
    """A new journal."""
    folder(root).mkdir(parents=True, exist_ok=True)
    journal = Journal(folder(root) / f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl")
    journal.note(header=header)
    return journal


def left(root: Path) -> Iterator[Journal]:
    """The journals that no process holds, the oldest first. Each is held while it is looked at."""
    for path in sorted(folder(root).glob("*.jsonl")):
        try:
            journal = Journal(path)
        except (BlockingIOError, FileNotFoundError):  # of a stage that runs, or sent by another a moment ago
            continue
        if not path.exists() or not journal.header:  # likewise; or killed before its first record was whole
            journal.remove()
            continue
        yield journal
        journal.close()
