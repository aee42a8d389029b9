"""Reading ahead changes when something is read, not what comes of it."""

import threading
import time

import pytest

from blip_core.compute.ahead import read_ahead
from tests.support.processes import wait_until


def test_batches_come_whole_and_in_order_whichever_item_is_read_first():
    def slow_first(item: int) -> int:
        time.sleep(0.002 * (5 - item % 5))
        return 10 * item

    batches = [[0, 1, 2], [3, 4], [], [5, 6, 7]]
    assert list(read_ahead(slow_first, batches)) == [(b, [10 * i for i in b]) for b in batches]
    assert list(read_ahead(slow_first, [])) == []


def test_one_batch_is_read_ahead_and_no_more():
    """Memory is bounded by two batches, however fast the reading and however slow the work."""
    read = set()
    ahead = read_ahead(lambda item: read.add(item), ([i, 100 + i] for i in range(50)))
    for number in range(4):
        next(ahead)
        assert read <= {i + h for i in range(number + 2) for h in (0, 100)}
    wait_until(lambda: 4 in read, pause=0.001)  # nobody has asked for it yet
    assert 4 in read and 5 not in read


def test_a_fault_comes_up_when_its_batch_is_due():
    def read(item: int) -> int:
        if item >= 2:
            raise ValueError(f"item {item}")
        return item

    ahead = read_ahead(read, [[0, 1], [2, 3]])
    assert next(ahead) == ([0, 1], [0, 1])
    with pytest.raises(ValueError, match="item 2"):
        next(ahead)


def test_who_stops_early_leaves_no_thread_behind():
    for _, _ in read_ahead(lambda item: item, ([i] for i in range(1000))):
        break
    wait_until(lambda: not any(t.name.startswith("read-ahead") for t in threading.enumerate()), pause=0.001)
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
