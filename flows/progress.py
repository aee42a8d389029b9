"""What a stage prints, at a pace that people can read."""

import re
import time
from collections import deque
from collections.abc import Callable

# `pretrain g0  120/500  loss 3.21 …  eta 1:05` (blip_core/runtime/progress.py): two blanks stand between the parts
_STEP = re.compile(r"^\s*\w[^/]*?  (\d+)/(\d+)(?:  |$)")
# DVC's advice after each stage: once, at the end, would be enough
_CHATTER = re.compile(
    r"^\s*$|^(Updating|Generating) lock file|^To (track the changes|enable auto staging)|^\t(git add|dvc config)|^Use `dvc push`"
)


def parse_step(line: str) -> tuple[int, int] | None:
    """(step, total) of a progress line; None for any other."""
    found = _STEP.match(line)
    if found is None or int(found[2]) == 0:
        return None
    return int(found[1]), int(found[2])


class Narrator:
    """Takes each line of a stage. Passes progress lines on every `interval` seconds and the last of them, others all."""

    def __init__(
        self,
        log: Callable[[str], None],
        publish: Callable[[float], None],  # percent done
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._publish, self._interval, self._clock = log, publish, interval, clock
        self._next = -float("inf")
        self.lines: deque[str] = deque(maxlen=200)  # the last ones, without progress and chatter

    def __call__(self, line: str) -> None:
        step = parse_step(line)
        if step is None:
            self._say(line)
        elif step[0] >= step[1] or self._clock() >= self._next:
            self._next = self._clock() + self._interval
            self._log(line)
            self._publish(100.0 * step[0] / step[1])

    def _say(self, line: str) -> None:
        if _CHATTER.match(line):
            return
        self.lines.append(line)
        self._log(line)
