"""How many stages run at a time, and which of those that wait is next."""

import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SETTLE = 0.3  # seconds: stages that the same end set free come one by one


class Slots:
    """So many at a time. Whoever has the longest way behind it goes first, since the run takes at least as long as that way."""

    def __init__(self, count: int) -> None:
        self._free, self._number = count, itertools.count()
        self._waiting: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    @contextmanager
    def one(self, behind: int) -> Iterator[None]:
        """A slot for a stage with so many stages behind it, one after the other; waits for it."""
        place = (-behind, next(self._number))
        with self._changed:
            heapq.heappush(self._waiting, place)
        time.sleep(SETTLE)
        with self._changed:
            self._changed.wait_for(lambda: self._free and self._waiting[0] == place)
            heapq.heappop(self._waiting)
            self._free -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
