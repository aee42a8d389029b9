"""What one image may cost at most, and what comes of an image that kills whoever decodes it.

images.py judges an image by its header and bounds what is known to grow; this is the fence behind it, for the fault in a decoder that
nobody knows yet. A decoder is C: one that hangs or tramples on memory heeds no exception, only the kernel can stop it, and the whole
process with it. So a process that decodes must be one whose death can be borne.
"""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blip_core.config.intake import ImageLimits
from blip_core.files.rejected import Rejected
from blip_core.pictures.images import MOST_PIXELS

_MOST_SECONDS = 60  # of processor time; the slowest that was found within the default limits takes 4
_BYTES_PER_PIXEL = 24  # measured: 16, for WebP and for PNG with transparency
_SPARE_BYTES = 256 << 20


@contextmanager
def bounded(limits: ImageLimits) -> Iterator[None]:
    """Within, memory beyond what any image takes is refused to the process (MemoryError; on Linux), and a minute of processor time
    ends it (SIGPROF)."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    if (used := _used_bytes()) is not None:
        most = used + _SPARE_BYTES + _BYTES_PER_PIXEL * min(limits.max_pixels, MOST_PIXELS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, _MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _used_bytes() -> int | None:
    """Address space of this process; None where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return None


def survive(act: Callable[[], object]) -> None:
    """Do it in a child process. Rejected when a signal ends that; what else it comes to, the caller will see when it does the same."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise Rejected("decoder_crash", f"the decoder ended its process by {signal.Signals(-code).name}")
