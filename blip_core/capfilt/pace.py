"""How items are handed to a model: in batches to one that works here, many at once to one that a server has."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from blip_core.capfilt.chat import Chat, Terms
from blip_core.capfilt.ledger import Budget
from blip_core.compute.ahead import read_ahead

Item = TypeVar("Item")
Made = TypeVar("Made")


@runtime_checkable
class Remote(Protocol):
    """A captioner or filter that asks a server."""

    def begin(self, terms: Terms, budget: Budget) -> None:
        """Before the first of its questions."""

    def chat(self) -> Chat:
        """ValueError before it has begun."""


@dataclass(frozen=True)
class Maker:
    """What makes the table of a name, with the models that it asks."""

    make: Callable[[str, Callable[[int], None]], pa.Table]
    models: list[Any]

    def __call__(self, name: str, seen: Callable[[int], None]) -> pa.Table:
        return self.make(name, seen)

    @property
    def at_once(self) -> int:
        """Tables: a server has the next one's questions while the last answers of this one come in."""
        return 2 if all(isinstance(model, Remote) for model in self.models) else 1

    def stop(self) -> None:
        for model in self.models:
            if isinstance(model, Remote):
                model.chat().stop()


def begin(models: Iterable[Any], terms: Terms) -> None:
    """Let those of the models that ask servers do so on these terms; they share one budget."""
    if remote := [model for model in models if isinstance(model, Remote)]:
        budget = Budget(terms.limits, terms.folder, terms.run, workers=terms.workers)
        for model in remote:
            model.begin(terms, budget)


def paced(
    model: Any,
    prepare: Callable[[Item], Any],
    work: Callable[[list[Item], list[Any]], list[Made]],
    items: list[Item],
    *,
    batch_size: int,
    table: str,
) -> Iterator[tuple[list[Item], list[Made]]]:
    """A few of the items at a time, in order, and what `work` makes of them and their prepared pictures; `table` holds them all."""
    if not isinstance(model, Remote):
        for batch, pictures in read_ahead(prepare, _cut(items, batch_size)):
            yield batch, work(batch, pictures)
        return
    chat = model.chat()
    at_once = chat.limits.in_flight
    # more threads than questions: while some read pictures or keep answers, others have theirs ready; and many items, so that a slow
    # answer holds none of the others up. One question at a time is asked in order
    paces = {"threads": at_once + at_once // 4, "ahead": 8 * at_once}

    def ask(item: Item) -> list[Made]:
        chat.keep_in(ledger)
        return work([item], [prepare(item)])

    with chat.of(table) as ledger, closing(_in_turn(chat, items)) as each:
        for batch, [made] in read_ahead(ask, each, **paces):
            yield batch, made


def _in_turn(chat: Chat, items: list[Item]) -> Generator[list[Item]]:
    """One at a time. The table behind this one begins when the last of them was handed out."""
    with chat.turn:
        yield from _cut(items, 1)


def _cut(items: list[Item], size: int) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
