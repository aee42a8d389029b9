"""Reading ahead: threads read and decode the next items while the model works on the last ones; both let go of Python's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from blip_core.runtime.cores import available_cores

_MOST_THREADS = 4  # decode some thousand pictures a second, more than a model takes

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(
    read: Callable[[Item], Read], batches: Iterable[list[Item]], *, threads: int | None = None, ahead: int = 1
) -> Iterator[tuple[list[Item], list[Read]]]:
    """Each batch with what `read` makes of its items, in order; the batch behind it, or so many as `ahead`, are being read meanwhile.

    What `read` raises is raised here, that of the first item in order, when its batch is due. `threads` suit decoding unless they are set.
    """
    waiting: deque[tuple[list[Item], list[Future[Read]]]] = deque()
    pool = ThreadPoolExecutor(threads or min(_MOST_THREADS, available_cores()), thread_name_prefix="read-ahead")
    try:
        for batch in batches:
            waiting.append((batch, [pool.submit(read, item) for item in batch]))
            if len(waiting) > ahead:
                yield _done(*waiting.popleft())
        while waiting:
            yield _done(*waiting.popleft())
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)


def _done(batch: list[Item], futures: list[Future[Read]]) -> tuple[list[Item], list[Read]]:
    return batch, [future.result() for future in futures]
