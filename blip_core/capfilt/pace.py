"""How items are handed to a model: in batches to one that works here, many at once to one that a server has."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

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
    with chat.of(table):
        for batch, made in read_ahead(lambda item: work([item], [prepare(item)]), _cut(items, 2 * at_once), threads=at_once):
            yield batch, [one for own in made for one in own]


def _cut(items: list[Item], size: int) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
