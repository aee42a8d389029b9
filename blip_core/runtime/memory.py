"""Memory that is freed and soon asked for again."""

import contextlib
import ctypes

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


def reuse_memory() -> None:
    """Pictures' pixels take the place of those before: glibc would give them back to the system each time, and the system would clear
    every page anew, which costs as much as decoding. Nothing happens where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MAP, 32 << 20)
        libc.mallopt(_TRIM, 256 << 20)
