"""Progress of a long stage: a bar on a terminal, else a line every ten seconds that a log can hold."""

import sys
import time
from typing import SupportsFloat

from tqdm import tqdm

LINE_SECONDS = 10.0


class Progress:
    """`update` with the number done so far. Lines read `name  120/500  loss 3.21  340 images/s  eta 1:05`."""

    def __init__(self, name: str, total: int, *, start: int = 0, unit_size: int = 1, unit: str = ""):
        self.name, self.total, self.start, self.done = name, total, start, start
        self.unit_size, self.unit = unit_size, unit
        self._began = self._said = time.monotonic()
        self._bar = tqdm(total=total, initial=start, desc=name, file=sys.stderr, leave=True) if sys.stderr.isatty() else None

    def update(self, done: int, **values: SupportsFloat) -> None:
        """Values (such as a loss tensor) are only read when something is shown."""
        if self._bar is not None:
            self._bar.update(done - self.done)
            if time.monotonic() - self._said > 1 and values:
                self._said = time.monotonic()
                self._bar.set_postfix({k: f"{float(v):.3g}" for k, v in values.items()})
        elif time.monotonic() - self._said > LINE_SECONDS or done == self.total:
            self._said = time.monotonic()
            print(self._line(done, values), file=sys.stderr, flush=True)
        self.done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int, values: dict[str, SupportsFloat]) -> str:
        seconds = max(1e-9, time.monotonic() - self._began)
        rate = (done - self.start) / seconds
        eta = int((self.total - done) / rate) if rate else 0
        parts = [self.name, f"{done}/{self.total}", *(f"{k} {float(v):.3g}" for k, v in values.items())]
        if self.unit:
            parts.append(f"{rate * self.unit_size:.3g} {self.unit}/s")
        return "  ".join([*parts, f"eta {eta // 60}:{eta % 60:02d}"])
