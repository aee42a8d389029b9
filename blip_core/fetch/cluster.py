"""Shards by the workers of a Ray cluster. A worker has a few shards at once, as this process would; one that dies begins anew, on another
machine where its own is lost, and the shards it had go on by their ledgers."""

import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip_core.capfilt.engine import join, plainly
from blip_core.config.capfilt import RayConfig
from blip_core.fetch.client import Client
from blip_core.fetch.fill import UNFINISHED, FetchShard, fetch_shard
from blip_core.fetch.rows import Wanted
from blip_core.fetch.settings import FetchConfig
from blip_core.runtime.memory import reuse_memory

log = logging.getLogger(__name__)


class _Worker:
    """An actor of Ray, whose methods run in one event loop."""

    def __init__(self, out: Path, cfg: FetchConfig, user_agent: str):
        if not (out / UNFINISHED).exists():
            raise ValueError(f"{socket.gethostname()}: sees no {out}; all machines of the cluster must share that folder under this path")
        reuse_memory()
        self.out, self.cfg, self.user_agent = out, cfg, user_agent
        self.client: Client | None = None

    async def fetch(self, number: int, wanted: list[Wanted]) -> Counter[str]:
        self.client = self.client or Client(self.cfg, self.user_agent)  # what it learns of hosts serves the next shard
        return await fetch_shard(self.client, self.out, number, wanted)


@contextmanager
def workers(out: Path, cfg: FetchConfig, user_agent: str, *, at_once: int) -> Iterator[list[FetchShard]]:
    """What fetches a shard, for each worker; as many as were asked for, or as the cluster has room for. A host's requests are divided
    among them. ValueError where there are not enough for all."""
    join(RayConfig(workers=cfg.ray_workers, cpus=1, gpus=0))
    import ray

    try:
        number = max(1, min(cfg.ray_workers, int(ray.available_resources().get("CPU", 0))))
        if cfg.per_host < number:
            raise ValueError(f"--per-host {cfg.per_host}: {number} workers share it, and each needs 1; raise it, or lower --ray-workers")
        share = cfg.model_copy(update={"per_host": cfg.per_host // number})
        log.info("%d workers, each with %d requests to a host and %d in all", number, share.per_host, share.in_flight)
        again = {"max_restarts": -1, "max_task_retries": -1}
        actor = ray.remote(num_cpus=1, max_concurrency=at_once, **again)(_Worker)
        found = [actor.remote(out.resolve(), share, user_agent) for _ in range(number)]
        yield [_of(one) for one in found]
    finally:
        ray.shutdown()


def _of(worker: Any) -> FetchShard:
    async def fetch(number: int, wanted: list[Wanted]) -> Counter[str]:
        import ray

        try:
            counts: Counter[str] = await worker.fetch.remote(number, wanted)
        except ray.exceptions.RayTaskError as e:
            raise e.cause from None
        except ray.exceptions.RayError as e:
            raise plainly(e) from None
        log.info("shard %05d: %d of %d rows gave a picture", number, counts[""], len(wanted))
        return counts

    return fetch
