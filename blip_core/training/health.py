"""Alarms of a training that learns nothing, each from the history alone: a resumed run sees what an unbroken one sees.

Every loss has a level that costs no learning, its chance:
itm   H(1/3) = 0.6365 nats: one of three pairs is true, and nothing tells which. Public BLIP trainings were left there for days.
itc   ln(candidates): all similarities are equal.
lm    the entropy of the words of a batch: their frequencies are known, and nothing else.
ncd   ln(copies + 1): a noisy copy of a caption is as probable as the caption (blip_core/training/optional.py).
Those of a teacher have none; they should fall from their first value, as LM should.
A loss rests where it lies at such a level and its slope says that it does not fall (`rests`).

A loss that is not finite is no alarm but the end of the training, before the optimizer moves (blip_core/training/loop.py).
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from blip_core.config.training import OptimConfig

log = logging.getLogger(__name__)

History = list[dict[str, float]]  # one row per logged step
Bounds = dict[str, tuple[float, float]]  # column -> where a learned value is clamped

ITM_CHANCE = math.log(3) - 2 / 3 * math.log(2)
MARGIN = 0.01  # a loss must be this share below its chance, and LM this share below its first value
FALL = 0.05  # of its value: a loss that falls less than this in a whole training does not fall
ERRORS = 3  # standard errors on either side of a slope
COLLAPSED = 0.98  # mean cosine of the features of different pairs
PARTING = (1 - COLLAPSED) / 10  # a fall of that cosine within the rows that tell of it: the features part
ADVICE = {
    "itc": "look at the learning rate, the temperature and whether texts belong to their images",
    "itm": "look at the learning rate, at hardness_ramp (easier negatives first) and whether texts belong to their images",
    "lm": "look at the learning rate, the vocabulary and max_tokens",
    "ncd": "look at the learning rate, and at replaced (more words to tell a copy by)",
}
FALLING = {
    "lm": ADVICE["lm"],
    **dict.fromkeys(
        ("distil_itc", "distil_itm", "distil_lm"), "look at the learning rate, the loss's weight and whether the teacher is a good one"
    ),
}
FIRST = 0.1  # share of the steps by whose end features must have begun to part, or ITC to fall
STALE_ADVICE = (
    "look at queue_size and momentum (the queue of a slow momentum encoder holds stale features: make it shorter, or momentum lower), "
    "lower the learning rate, or lengthen the warm-up"
)
SHORTCUT_ADVICE = (
    "yet ITC lies below its chance, which telling fresh features from the queue's stale ones is enough for: set contrast.queue_size to 0, "
    "and contrast.alpha to 0 where steps are few"
)
ALIKE_ADVICE = "they were so from the start: make model.init.weight larger (at a width of 128 0.1 to 0.15; BERT's 0.02 is for one of 768)"
COSTLY_ADVICE = (
    "at first the similarities of random features cost more than equal ones, and making all alike is the quickest way down: raise "
    "contrast.temperature (to 0.2), lower lr (by half), or lengthen the warm-up"
)


@dataclass(frozen=True)
class Alarm:
    name: str
    message: str


class Health:
    """Looks at the history of one training whenever it grows, and tells each alarm once."""

    def __init__(self, cfg: OptimConfig, bounds: Bounds, report: Callable[..., None] | None, history: History):
        """`history`: of a training that goes on. With `health: warn` its alarms come into the new log and the new run's tags again, but
        not again into the metrics."""
        self.mode, self.bounds, self.report, self.steps = cfg.health, bounds, report, cfg.steps
        self.warmup = round(cfg.warmup * cfg.steps)
        self.window = window_rows(cfg)
        self._told: set[str] = set()
        if self.mode == "warn":
            for end in range(1, len(history) + 1):
                for alarm, message in self._new(history[:end]):
                    self._say(alarm, message)

    def check(self, history: History) -> None:
        """With `health: stop`, ValueError at the first alarm; every process comes to it at the same step."""
        for alarm, message in [] if self.mode == "off" else self._new(history):
            if self.report is not None:
                self.report({f"alarm_{alarm.name}": 1.0}, step=int(history[-1]["step"]))
            self._say(alarm, message)

    def _new(self, history: History) -> Iterator[tuple[Alarm, str]]:
        """Alarms that the last row sets off for the first time, and what is to be said."""
        for alarm in alarms(history, steps=self.steps, warmup=self.warmup, window=self.window, bounds=self.bounds):
            if alarm.name not in self._told:
                self._told.add(alarm.name)
                yield alarm, f"step {history[-1]['step']:.0f}: {alarm.message}"

    def _say(self, alarm: Alarm, message: str) -> None:
        tag = getattr(getattr(self.report, "__self__", None), "tag", None)  # of the run that the report belongs to
        if tag is not None:
            tag(f"alarm_{alarm.name}", message)
        if self.mode == "stop":
            raise ValueError(f"{message}. Stopped because of `health: stop`; `health: warn` goes on from the last checkpoint")
        log.warning("%s", message)


def window_rows(cfg: OptimConfig) -> int:
    """Rows that an alarm must last for: a tenth of the training, at least 10 and at most 100 rows."""
    return min(100, max(10, round(cfg.steps / cfg.log_every / 10)))


def alarms(history: History, *, steps: int, warmup: int, window: int, bounds: Bounds) -> list[Alarm]:
    """What is wrong in the newest rows, behind the warm-up but for collapsed features. `steps`: of the whole training."""
    rows = history[bisect_right(history, float(warmup), key=lambda row: row["step"]) :]
    collapsed, last = _collapsed(history, rows, window, steps), rows[-window:]
    if len(last) < window:
        return collapsed
    span = f"in the steps {last[0]['step']:.0f} to {last[-1]['step']:.0f}"
    resting = [*_at_chance(rows, window, steps, span), *_not_falling(history, rows, window, steps)]
    return [*resting, *_at_bound(last, span, bounds), *collapsed]


def rests(step: np.ndarray, value: np.ndarray, *, level: float, window: int, steps: int) -> bool:
    """Whether a loss, or what it has above its chance, is shown not to fall by the last `window` values, or by a longer stretch of the
    newest ones. `level`: of the loss; `steps`: of the whole training.

    It is shown by the line of least squares, of which ERRORS standard errors on either side count: no fall stands out of the noise, and
    the noise is so small that it hides none of FALL of the level in as many steps as the training has. So a loss with more noise needs
    more values, and one that falls is not said to rest, however slowly it does.
    """
    length, limit = window, FALL * level / steps
    while length <= len(value):
        slope, error = _slope(step[-length:], value[-length:])
        error = max(error, MARGIN * limit)
        if slope < -error:
            return False
        if error + max(0.0, -slope) <= limit:
            return True
        length = length * 3 // 2
    return False


def _slope(step: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """Of the line of least squares, with ERRORS standard errors."""
    step = step - step.mean()
    slope = step @ value / (step @ step)
    noise = value - value.mean() - slope * step
    return slope, ERRORS * math.sqrt(noise @ noise / (len(value) - 2) / (step @ step))


def _at_chance(rows: History, window: int, steps: int, span: str) -> list[Alarm]:
    found = []
    for name, advice in ADVICE.items():
        if name not in rows[0]:
            continue
        last, chance = _mean(rows[-window:], name), ITM_CHANCE if name == "itm" else _mean(rows[-window:], f"{name}_chance")
        if last <= (1 - MARGIN) * chance:
            continue
        above = _column(rows, name) - (ITM_CHANCE if name == "itm" else _column(rows, f"{name}_chance"))
        if rests(_column(rows, "step"), above, level=last, window=window, steps=steps):
            text = f"{name.upper()} rests at {last:.4f} nats {span}; without learning anything it would be {chance:.4f}: {advice}"
            found.append(Alarm(name, text))
    return found


def _not_falling(history: History, rows: History, window: int, steps: int) -> list[Alarm]:
    found = []
    for name, advice in FALLING.items():
        first = history[0].get(name)
        if first is None or (last := _mean(rows[-window:], name)) < (1 - MARGIN) * first:
            continue
        if rests(_column(rows, "step"), _column(rows, name), level=last, window=window, steps=steps):
            values = f"{first:.4f} nats at step {history[0]['step']:.0f}, {last:.4f} before step {rows[-1]['step']:.0f}"
            found.append(Alarm(f"{name}_not_falling", f"{name.upper()} does not fall: {values}: {advice}"))
    return found


def _at_bound(rows: History, span: str, bounds: Bounds) -> list[Alarm]:
    found = []
    for name, ends in bounds.items():
        for end in ends:
            if all(math.isclose(row[name], end, rel_tol=1e-3) for row in rows):
                text = f"the {name} lies at its bound {end} {span}: it would go further; look at the learning rate and {name}_range"
                found.append(Alarm(name, text))
    return found


def _collapsed(history: History, rows: History, window: int, steps: int) -> list[Alarm]:
    """Behind the warm-up by a third of the window: features at which a training begins part within a few rows, and a cosine has little
    noise. And at the end of the first tenth of the steps by its second half, the warm-up or not."""
    few = rows[-(window // 3) :] if len(rows) >= window // 3 else _second_half_of_first(history, steps)
    found = []
    for name in ("image", "text"):
        values = [row.get(f"{name}_cosine", 0.0) for row in few]
        if values and min(values) > COLLAPSED and values[0] - values[-1] < PARTING:
            text = f"the {name} features have collapsed: a mean cosine of {sum(values) / len(values):.4f} between different pairs"
            where = f"in the steps {few[0]['step']:.0f} to {few[-1]['step']:.0f}"
            found.append(Alarm(f"{name}_collapse", f"{text} {where}: {_cause(history[0], few, name)}"))
    return found


def _second_half_of_first(history: History, steps: int) -> History:
    """Of the first tenth, once that has ended; empty before, and where it has too few rows to tell."""
    end = bisect_right(history, FIRST * steps, key=lambda row: row["step"])
    few = history[end // 2 : end]
    return few if len(few) >= 2 and history[-1]["step"] >= FIRST * steps else []


def _cause(first: dict[str, float], few: History, name: str) -> str:
    """The likely one, with the value to change. `first`: row of the history; `few`: those of the alarm."""
    if first.get(f"{name}_cosine", 0.0) > COLLAPSED:
        return ALIKE_ADVICE
    if "itc" not in first:
        return STALE_ADVICE
    if _mean(few, "itc") < (1 - MARGIN) * _mean(few, "itc_chance"):
        return SHORTCUT_ADVICE
    return COSTLY_ADVICE if first["itc"] > (1 + MARGIN) * first["itc_chance"] else STALE_ADVICE


def _column(rows: History, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def _mean(rows: History, column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)
