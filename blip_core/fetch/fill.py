"""One shard, from what is known of its rows to its files."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Set
from dataclasses import replace
from pathlib import Path

from blip_core.fetch.addresses import place_of
from blip_core.fetch.client import AGAIN, Client, Failed
from blip_core.fetch.outcome import Outcome, stored
from blip_core.fetch.rows import Wanted
from blip_core.fetch.shard import SUCCESS, members_of, outcomes, paths, statuses, write_shard
from blip_core.fetch.spool import Spool
from blip_core.runtime.progress import Progress

UNFINISHED = ".fetch"  # in the output folder: which list it is of, and the spools of unfinished shards
_WAITING = 4  # rows of a host that have begun, for each that is asked for: those that wait to be tried again hold up no other
FetchShard = Callable[[int, list[Wanted]], Awaitable[Counter[str]]]  # rows by reason of a shard, by its number and rows


async def fetch_shard(client: Client, out: Path, number: int, wanted: list[Wanted]) -> Counter[str]:
    """One shard, finished before or now."""
    files, again = paths(out, number), {*AGAIN, *client.cfg.again}

    def done() -> list[tuple[str, str]]:
        return statuses(files["table"]) if files["table"].exists() else []

    def to_try(done: list[tuple[str, str]]) -> set[int]:
        return {at for at, (status, reason) in enumerate(done) if status != SUCCESS and reason in again}

    if (before := done()) and not to_try(before) and not any((out / UNFINISHED).glob(f"{number:05d}.*")):
        return Counter(reason for _, reason in before)
    spool = Spool(out / UNFINISHED, number, files["tar"])
    try:
        if before := done():  # again: another process may have finished it meanwhile
            missing = set(range(len(before))) - to_try(before) - spool.outcomes.keys()
            await asyncio.to_thread(_refill, spool, missing, wanted, out, number)
        await _fill(client, spool, number, wanted)
        counts = await asyncio.to_thread(write_shard, spool, wanted, out, number)
        spool.remove()
    finally:
        spool.close()
    return counts


def _refill(spool: Spool, missing: set[int], wanted: list[Wanted], out: Path, number: int) -> None:
    """What a finished shard has of these rows."""
    for at, outcome in outcomes(out, number) if missing else ():
        if at in missing:
            spool.add(at, outcome, members_of(wanted[at], outcome, number, at))


async def _fill(client: Client, spool: Spool, number: int, wanted: list[Wanted]) -> None:
    """Every row that has no outcome yet gets one."""
    came = Counter(outcome.reason for outcome in spool.outcomes.values())
    progress = Progress(f"shard {number:05d}", len(wanted), start=came.total(), unit="rows")

    def keep(outcome: Outcome, rows: list[int]) -> Outcome:
        for at in rows:
            spool.add(at, outcome, members_of(wanted[at], outcome, number, at))
        return replace(outcome, data=None)

    async def one(rows: list[int]) -> None:
        row = wanted[rows[0]]
        try:
            if row.fault:
                raise Failed("bad_row", row.fault)
            outcome = await client.fetch(row.url, lambda data: keep(stored(data, client.cfg), rows))
        except Failed as e:
            outcome = keep(Outcome(reason=e.reason, detail=e.detail), rows)
        came[outcome.reason] += len(rows)
        progress.update(came.total(), pictures=came[""])

    async def take(alike: Iterator[list[int]]) -> None:
        for rows in alike:
            await one(rows)
            await asyncio.sleep(0)  # a host that is left alone has no other wait, and the rest must have their turn

    tasks = []
    for alike in _by_host(wanted, spool.outcomes.keys()):
        shared = iter(alike)
        tasks += [asyncio.create_task(take(shared)) for _ in range(min(len(alike), _WAITING * client.cfg.per_host))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        progress.close()


def _by_host(wanted: list[Wanted], known: Set[int]) -> list[list[list[int]]]:
    """The rows that are to be asked for: of each host, the rows of each URL, which is asked for once."""
    hosts: dict[str, dict[tuple[str, str], list[int]]] = {}
    for at, row in enumerate(wanted):
        if at not in known:
            hosts.setdefault(_host_of(row.url), {}).setdefault((row.url, row.fault), []).append(at)
    return [list(urls.values()) for urls in hosts.values()]


def _host_of(url: str) -> str:
    try:
        return place_of(url)
    except ValueError:  # which is told when it is asked for
        return ""
