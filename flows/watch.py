"""What a run on a worker says, and whether anybody is still there: Prefect shows a run as Running for ever whose machine has died."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

STAGE_LOG = "stage"  # the logger, below that of the run, of what a stage prints
SILENCE = 180.0  # seconds: a run on a worker gives a sign every 30 (prefect.yaml)
_BATCH = 200  # the most that the server gives at a time


class Watch:
    """Follows one run. Times are of this machine's clock alone."""

    def __init__(self, pool: str, wait: float) -> None:
        self._pool, self._wait = pool, wait
        self._read = 0
        self._beat: str | None = None
        self._beat_at = self._online_at = time.monotonic()
        self._seen: dict[str, tuple[str, float]] = {}  # of each worker its last sign, and when it was new here

    def lines(self, client: "SyncPrefectClient", run: "FlowRun") -> Iterator[str]:
        """What the stage has printed since the last call."""
        own = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        while logs := client.read_logs(own, limit=_BATCH, offset=self._read, sort=LogSort.TIMESTAMP_ASC):
            self._read += len(logs)
            yield from (log.message for log in logs if log.name.endswith(f".{STAGE_LOG}"))

    def lost(self, client: "SyncPrefectClient", run: "FlowRun") -> str | None:
        """Why there is nothing to wait for any more; None while there is."""
        now = time.monotonic()
        if run.state and run.state.is_running() and self._alive(client, run, now):
            if now - self._beat_at < SILENCE:
                return None
            return f"the worker has given no sign for {now - self._beat_at:.0f} s: see what became of it, and run the same command again"
        if self._online(client, now) or now - self._online_at < self._wait:
            return None
        advice = f"`prefect worker start --pool {self._pool}` where the GPU is, and run the same command again"
        return f"no worker of the pool {self._pool} has been online for {self._wait:g} s: {advice}"

    def _online(self, client: "SyncPrefectClient", now: float) -> bool:
        """Whether any worker of the pool gives signs: the server notices only after a while that one no longer does."""
        for worker in client.request("POST", f"/work_pools/{self._pool}/workers/filter", json={}).json():
            name, sign = worker["name"], worker["last_heartbeat_time"]
            if worker["status"] == "ONLINE" and sign:
                if self._seen.get(name, ("", now))[0] != sign:
                    self._seen[name] = (sign, now)
                if now - self._seen[name][1] <= 3 * (worker["heartbeat_interval_seconds"] or 30):
                    self._online_at = now
        return self._online_at == now

    def _alive(self, client: "SyncPrefectClient", run: "FlowRun", now: float) -> bool:
        """Note the newest heartbeat. False when there has been none: they may not get through from there."""
        today = datetime.now(UTC)  # a wide window: the worker's clock may be wrong
        occurred = {"since": (today - timedelta(days=30)).isoformat(), "until": (today + timedelta(days=30)).isoformat()}
        wanted = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            "occurred": occurred,
        }
        events = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1}).json()["events"]
        newest = events[0]["id"] if events else None
        if newest != self._beat:
            self._beat, self._beat_at = newest, now
        return newest is not None
