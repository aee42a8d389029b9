"""What came of a shard's rows so far, in a small database: each outcome is on the disk before the next is asked for, so that whatever
is killed, no row that was answered is asked again."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from blip_core.fetch.outcome import Outcome


class Spool:
    """By the row's number in its shard. ValueError where another process has it open."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file = path, sqlite3.connect(path, timeout=1.0)
        try:
            self.file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.file.execute("PRAGMA journal_mode = WAL")
            self.file.execute("CREATE TABLE IF NOT EXISTS outcomes (row INTEGER PRIMARY KEY, about TEXT NOT NULL, data BLOB)")
            self.file.commit()
        except sqlite3.OperationalError as e:
            raise ValueError(f"{path}: {e}: another `blip fetch` works on this shard; give each its own --shards") from None

    def add(self, row: int, outcome: Outcome) -> None:
        """On the disk when it returns."""
        self._insert(row, outcome)
        self.file.commit()

    def refill(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """All of them or none."""
        for row, outcome in outcomes:
            self._insert(row, outcome)
        self.file.commit()

    def _insert(self, row: int, outcome: Outcome) -> None:
        about = {name: value for name, value in asdict(outcome).items() if name != "data"}
        self.file.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (row, json.dumps(about), outcome.data))

    def known(self) -> dict[int, str]:
        """Rows that have an outcome, with its reason; empty for a picture."""
        return {row: json.loads(about)["reason"] for row, about in self.file.execute("SELECT row, about FROM outcomes")}

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """All of them in order, one in memory at a time."""
        for row, about, data in self.file.execute("SELECT row, about, data FROM outcomes ORDER BY row"):
            yield row, Outcome(data, **json.loads(about))

    def close(self) -> None:
        self.file.close()

    def remove(self) -> None:
        self.close()
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
