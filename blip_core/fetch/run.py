"""Fetch the pictures of lists, shard by shard. Each row is asked for once, whatever is killed; those that failed for a reason that may
pass are asked again by the next call."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from blip_core.fetch.client import AGAIN, REASONS, Client
from blip_core.fetch.fill import UNFINISHED, FetchShard, fetch_shard
from blip_core.fetch.rows import UrlList, Wanted, open_lists
from blip_core.fetch.settings import FetchConfig
from blip_core.files.content import sha256_file, write_json
from blip_core.runtime.memory import reuse_memory

log = logging.getLogger(__name__)
AT_ONCE = 4  # shards, so that the slow rows at the end of one keep nobody waiting


def fetch(lists: list[Path], out: Path, *, cfg: FetchConfig, shards: range | None, user_agent: str) -> Counter[str]:
    """Rows by reason, empty for a picture, of all shards that were asked for. ValueError where too few came, or the folder is another
    list's."""
    if unknown := [reason for reason in cfg.again if reason not in REASONS]:
        raise ValueError(f"--again {unknown[0]}: no reason; there are {', '.join(REASONS)}")
    reuse_memory()
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
    """By this process, or by the workers of a cluster."""
    if cfg.ray_workers:
        from blip_core.fetch.cluster import workers

        with workers(out, cfg, user_agent, at_once=AT_ONCE) as fetchers:
            return await _share(shards, fetchers * AT_ONCE)
    async with Client(cfg, user_agent) as client:
        return await _share(shards, [partial(fetch_shard, client, out)] * AT_ONCE)


async def _share(shards: Iterator[tuple[int, list[Wanted]]], fetchers: list[FetchShard]) -> Counter[str]:
    """Whoever is free takes the next."""
    counts, reading = Counter[str](), asyncio.Lock()

    async def following() -> tuple[int, list[Wanted]] | None:
        async with reading:
            return await asyncio.to_thread(next, shards, None)  # the network need not wait for the list

    async def take(fetcher: FetchShard) -> None:
        while shard := await following():
            counts.update(await fetcher(*shard))

    tasks = [asyncio.create_task(take(fetcher)) for fetcher in fetchers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return counts
