"""What a task is: its data contract, its network, its measurement, and where it is tuned its objective.

A new task is a module with a class that fits `Task`, or `TunedTask`, or `ZeroShotTask`, its settings in config/tasks.py, and a line in
kinds.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from blip_core.compute.pixels import load_pixels
from blip_core.files.rejected import Rejected
from blip_core.model.blip import Blip
from blip_core.model.network import Network
from blip_core.tables.slices import by_value
from blip_core.tasks.embedded import Embedded
from blip_core.tasks.pictures import read_pixels
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.step import Objective


@dataclass(frozen=True)
class Example:
    """One thing to learn from or to be measured on. `facts`: the other columns of its row."""

    id: str
    pictures: tuple[Path | Embedded, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """What stands beside its answer, and slices go by."""
        return self.facts


E = TypeVar("E", bound=Example)


@dataclass(frozen=True)
class SetAside:
    """A row that can't be used. `where`: its file, and its place there."""

    where: str
    reason: str  # a word for counting
    detail: str


@dataclass(frozen=True)
class Result:
    """What was measured of one example: `values` by metric; `answer`: what the model said, for the table of predictions."""

    id: str
    image: str  # the unit that the bootstrap draws: the picture, or what several examples have in common
    values: dict[str, float]
    answer: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Measured(Generic[E]):
    """The examples of a measurement; walked through, batches of them with the pixels of all their pictures, picture by picture, as an
    evaluation sees them, on this process's device."""

    examples: Sequence[E]
    image_size: int
    batch_size: int

    def __iter__(self) -> Iterator[tuple[list[E], Tensor]]:
        for start in range(0, len(self.examples), self.batch_size):
            batch = list(self.examples[start : start + self.batch_size])
            yield batch, load_pixels([read_pixels(path) for e in batch for path in e.pictures], self.image_size)


Statistic = Callable[[np.ndarray], float]  # how often each result counts -> the metric


class Task(Protocol[E]):
    """What any task has. `cfg` is always the task's own settings (config/tasks.py)."""

    def read(self, folder: Path, split: str, cfg: Any) -> tuple[list[E], list[SetAside]]:
        """The usable examples of train, val or test, and what can't be used. ValueError when there is no such file."""

    def network(self, base: Blip, cfg: Any) -> Network:
        """The model with what the task adds to it."""

    def measure(self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[E], cfg: Any) -> list[Result]: ...

    def overall(self, results: Sequence[Any]) -> dict[str, Statistic]:
        """Metrics of these results that are no mean of `values`. `results`: of those that `measure` made."""


@runtime_checkable
class TunedTask(Task[E], Protocol[E]):
    """One that a model is tuned for; its settings are a TunedConfig."""

    def objective(self, network: Any, cfg: Any) -> Objective:
        """Turns a batch of `tensors` into losses. `network`: as `network` made it, for what an objective copies of it."""

    def tensors(self, examples: Sequence[E], tokenizer: Tokenizer, cfg: Any) -> dict[str, Tensor]:
        """What the objective needs of a batch besides its pixels."""


@runtime_checkable
class ZeroShotTask(TunedTask[E], Protocol[E]):
    """One that a pretrained model does untuned too, so that it is measured before and after."""

    def untuned(self, cfg: Any, about: dict[str, Any]) -> Any:
        """The settings for a model as it was pretrained. `about`: the config.json of its folder."""


@runtime_checkable
class KeepingTask(TunedTask[E], Protocol[E]):
    """One whose measurement needs more of train than the tuned network."""

    def kept(self, folder: Path, examples: Sequence[E]) -> dict[str, Any]:
        """It stands in the tuned model's config.json, and is `kept` of the network."""


def require_slices(examples: Sequence[Example], columns: Sequence[str]) -> None:
    """ValueError where a column is none of the task's files, or has too many values; said before hours of work."""
    known = sorted({name for e in examples for name in e.told})
    for column in columns:
        if column not in known:
            raise ValueError(f"measure.slices: no column {column!r} in the task's files; expected of {', '.join(known) or 'none'}")
        by_value(column, [e.told.get(column) for e in examples])


def checked(examples: list[E], aside: list[SetAside]) -> tuple[list[E], list[SetAside]]:
    """Without the examples whose pictures can't be decoded; each picture is looked at once."""
    faults: dict[Path | Embedded, Rejected] = {}
    for picture in dict.fromkeys(p for e in examples for p in e.pictures):  # in order, for those of a table
        if fault := _fault(picture):
            faults[picture] = fault
    kept = []
    for example in examples:
        bad = next((p for p in example.pictures if p in faults), None)
        if bad is None:
            kept.append(example)
        else:
            aside.append(SetAside(str(bad), faults[bad].reason, f"of example {example.id}: {faults[bad].detail}"))
    return kept, aside


def _fault(picture: Path | Embedded) -> Rejected | None:
    try:
        read_pixels(picture)
    except Rejected as e:
        return e
    return None


def counted(aside: list[SetAside]) -> str:
    """Reasons with their counts and the first place of each."""
    first = {a.reason: a for a in reversed(aside)}
    counts = Counter(a.reason for a in aside)
    return "; ".join(f"{n} {reason} (as {first[reason].where}: {first[reason].detail})" for reason, n in counts.most_common()) or "nothing"
