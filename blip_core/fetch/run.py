"""Fetch the pictures of lists, shard by shard. Each row is asked for once, whatever is killed; those that failed for a reason that may
pass are asked again by the next call."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from blip_core.fetch.client import AGAIN, REASONS, Client, Failed
from blip_core.fetch.outcome import Outcome, stored
from blip_core.fetch.rows import UrlList, Wanted, open_lists
from blip_core.fetch.settings import FetchConfig
from blip_core.fetch.shard import SUCCESS, members_of, outcomes, paths, statuses, write_shard
from blip_core.fetch.spool import Spool
from blip_core.files.content import sha256_file, write_json
from blip_core.runtime.progress import Progress

log = logging.getLogger(__name__)
AT_ONCE = 4  # shards
UNFINISHED = ".fetch"  # in the output folder: which list it is of, and the spools of unfinished shards


def fetch(lists: list[Path], out: Path, *, cfg: FetchConfig, shards: range | None, user_agent: str) -> Counter[str]:
    """Rows by reason, empty for a picture, of all shards that were asked for. ValueError where too few came, or the folder is another
    list's."""
    if unknown := [reason for reason in cfg.again if reason not in REASONS]:
        raise ValueError(f"--again {unknown[0]}: no reason; there are {', '.join(REASONS)}")
    found = open_lists(lists, cfg)
    _require_same_list(found, out, cfg)
    counts = asyncio.run(_fetch_all(_shards(found, cfg.rows_per_shard, shards), out, cfg, user_agent))
    total = counts.total()
    if total and counts[""] < cfg.min_yield * total:
        share = f"{counts[''] / total:.1%} of {total:,} rows gave a picture"
        raise ValueError(f"{out}: {share}, at least {cfg.min_yield:.0%} were asked for by --min-yield:\n{as_lines(counts)}")
    return counts


def as_lines(counts: Counter[str]) -> str:
    """What came, and why the rest did not."""
    passing = sum(counts[reason] for reason in AGAIN)
    lines = [f"{counts['']:,} of {counts.total():,} rows gave a picture"]
    lines += [f"  {n:,} {reason}: {REASONS[reason]}" for reason, n in counts.most_common() if reason]
    return "\n".join([*lines, *([f"{passing:,} of them may pass: run it again"] if passing else [])])


def _shards(lists: list[UrlList], size: int, chosen: range | None) -> Iterator[tuple[int, list[Wanted]]]:
    rows, number = (row for one in lists for row in one.rows()), 0
    while wanted := list(islice(rows, size)):
        if chosen is None or number in chosen:
            yield number, wanted
        number += 1
        if chosen is not None and number == chosen.stop:
            return
    if chosen is not None and chosen.start >= number:
        raise ValueError(f"--shards {chosen.start}-{chosen.stop - 1}: the list has {number} shards of {size} rows, 0 to {number - 1}")


def _require_same_list(lists: list[UrlList], out: Path, cfg: FetchConfig) -> None:
    """A folder holds one list: its shards are counted off by rows."""
    files = [[one.file.name, sha256_file(one.file)] for one in lists]
    now = {"lists": files, "columns": [[one.url, one.text] for one in lists], "rows_per_shard": cfg.rows_per_shard}
    note = out / UNFINISHED / "list.json"
    if not note.exists():
        if any(out.glob("*.tar")):
            raise ValueError(f"{out}: holds tars that were not fetched into it; name another folder")
        write_json(now, note)
    elif json.loads(note.read_text()) != json.loads(json.dumps(now)):
        raise ValueError(f"{out}: was fetched of another list, other columns or another --rows-per-shard ({note}); name another folder")


async def _fetch_all(shards: Iterator[tuple[int, list[Wanted]]], out: Path, cfg: FetchConfig, user_agent: str) -> Counter[str]:
    """A few shards at a time, so that the slow rows at the end of one keep nobody waiting."""
    counts, running = Counter[str](), set[asyncio.Task[Counter[str]]]()
    async with Client(cfg, user_agent) as client:
        try:
            for number, wanted in shards:
                running.add(asyncio.create_task(_fetch_shard(client, number, wanted, out)))
                while len(running) == AT_ONCE:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    counts += sum((task.result() for task in done), Counter[str]())
            for task in running:
                counts += await task
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return counts


async def _fetch_shard(client: Client, number: int, wanted: list[Wanted], out: Path) -> Counter[str]:
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
    """Every row that has no outcome yet gets one; a URL that stands in several rows is asked for once."""
    alike: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(wanted):
        if at not in spool.outcomes:
            alike.setdefault((row.url, row.fault), []).append(at)
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

    tasks = [asyncio.create_task(one(rows)) for rows in alike.values()]  # none of which holds a picture when it is done
    try:
        for done in asyncio.as_completed(tasks):
            await done
    finally:
        for task in tasks:
            task.cancel()
        progress.close()
