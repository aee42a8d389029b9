"""MLflow: a run for every stage. With registry.py, the versions of models, the only module that talks to MLflow.

A stage never fails because of tracking: `stage_run` warns once and goes on without.
Where things go: MLFLOW_TRACKING_URI, else mlflow.db and mlruns/ below the root. Everything works through MlflowClient, which keeps
no global state and costs no more time than the fluent functions; MLflow is imported when the first run starts.
"""

import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from blip_core.provenance import chain_id, flatten, git_state, inputs_md5s

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # metrics are sent together, at most this often
MAX_SHARE = 0.05  # of the stage's time, that sending may take
RETRY_SECONDS = 60.0  # pause after a failure, so that a dead server does not slow a training down
MAX_WAITING = 100_000  # metrics kept while the server is away
MAX_BATCH, MAX_METRICS = 100, 1000  # MLflow's limits on params or tags, and on metrics, in one call
# MLflow's own defaults wait four minutes for a server that is down
STAGE_HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


@contextmanager
def stage_run(name: str, *, stage: str, params: dict, inputs: list[Path], root: Path) -> Iterator["StageRun"]:
    """A run of MLflow around a stage. `name` is parent/child: r1/caption stands below the one run r1 of this params.yaml and data.

    The run ends as FINISHED, as FAILED with the message in its tag `error`, or as KILLED after Ctrl-C and SIGTERM.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"run {name!r}: expected parent/child of letters, digits, '_', '-' and '.', as in r1/caption")
    run = StageRun(name, stage, params, inputs, root)
    try:
        yield run
    except BaseException as e:
        killed = isinstance(e, KeyboardInterrupt | SystemExit)
        run.end("KILLED" if killed else "FAILED", error=f"{type(e).__name__}: {e}")
        raise
    run.end("FINISHED")


class StageRun:
    """What a stage may write to its run. No method raises because of MLflow."""

    def __init__(self, name: str, stage: str, params: dict, inputs: list[Path], root: Path):
        self.run_id: str | None = None  # None: MLflow could not be reached
        self._root = root
        self._waiting: deque[tuple[str, float, int, int]] = deque(maxlen=MAX_WAITING)
        self._flush_at = self._retry_at = 0.0  # by the monotonic clock
        self._reported: set[str] = set()
        if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, the first one tracks
            self._attempt("opening the run", lambda: self._open(name, stage, params, inputs))
        if self.run_id is None:
            self._retry_at = math.inf

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep metrics for the next flush. What is not a finite number is dropped with a warning."""
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            if math.isfinite(value := float(value)):
                self._waiting.append((safe_name(key), value, now, step or 0))
            else:
                self._warn(key, f"metric {key} is {value} at step {step}: not logged, nor are later ones that are not finite")
        if time.monotonic() >= self._flush_at:
            self._attempt("logging metrics", self._flush)

    def figure(self, fig: "Figure", path: str) -> None:
        """Keep a figure of matplotlib as the artifact `path`."""
        self._attempt("logging a figure", lambda: self._client.log_figure(self.run_id, fig, path))

    def artifact(self, path: Path) -> None:
        """Keep a file or a folder."""
        self._attempt("logging an artifact", lambda: self._client.log_artifact(self.run_id, str(path)))

    def tag(self, key: str, value: str) -> None:
        self._attempt("tagging", lambda: self._client.set_tag(self.run_id, safe_name(key), value))

    def end(self, status: str, error: str = "") -> None:
        """Send what is left and close the run; the parent shows the worst of its stages."""
        self._retry_at = 0.0 if self.run_id else math.inf
        self._attempt("ending the run", lambda: self._close(status, error))

    def _open(self, name: str, stage: str, params: dict, inputs: list[Path]) -> None:
        parent, child = name.split("/")
        rev = git_state(self._root)
        md5s = inputs_md5s(inputs, self._root)
        with lock(self._root):  # two first processes must make neither two schemas nor two parents
            self._client, self._experiment = connect(self._root)
            self._parent_id = _find_parent(self._client, self._experiment, parent, chain_id(self._root))
        tags = {"stage": stage, "round": parent, "chain": chain_id(self._root), "mlflow.parentRunId": self._parent_id, **rev}
        tags |= {safe_name(f"dvc.{path}"): md5 for path, md5 in md5s.items()}
        tags |= {"mlflow.source.git.commit": rev["git_rev"], "mlflow.source.name": f"blip_core/stages/{stage}.py"}
        tags["mlflow.user"] = os.environ.get("USER", "")
        self.run_id = self._client.create_run(self._experiment, tags=tags, run_name=child).info.run_id
        _log_params(self._client, self.run_id, flatten(params))
        folders = {p: m for p, m in md5s.items() if m.endswith(".dir") and not (self._root / p / "model.safetensors").exists()}
        _log_datasets(self._client, self.run_id, folders, stage)
        _settle(self._client, self._experiment, self._parent_id)

    def _flush(self) -> None:
        from mlflow.entities import Metric

        began = time.monotonic()
        while batch := list(islice(self._waiting, MAX_METRICS)):
            self._client.log_batch(self.run_id, metrics=[Metric(*m) for m in batch])
            for _ in batch:
                self._waiting.popleft()
        took = time.monotonic() - began
        self._flush_at = began + max(FLUSH_SECONDS, took / MAX_SHARE)

    def _close(self, status: str, error: str) -> None:
        self._flush()
        if error:
            self._client.set_tag(self.run_id, "error", error[:5000])
        self._client.set_terminated(self.run_id, status)
        _settle(self._client, self._experiment, self._parent_id)

    def _attempt(self, what: str, act: Callable[[], Any]) -> None:
        """Do it, unless MLflow failed a moment ago; warn when it fails for the first time."""
        if time.monotonic() < self._retry_at:
            return
        try:
            with environment(STAGE_HTTP | QUIET):
                act()
        except Exception as e:  # whatever MLflow, its database or the network may raise: the stage goes on
            self._retry_at = time.monotonic() + RETRY_SECONDS
            reason = f"{type(e).__name__}: {str(e)[:300]}"
            self._warn("MLflow", f"MLflow at {uri(self._root)}: {what} failed, the stage goes on without ({reason})")

    def _warn(self, about: str, message: str) -> None:
        if about not in self._reported:
            self._reported.add(about)
            log.warning(message)


def _log_datasets(client: "MlflowClient", run_id: str, md5s: dict[str, str], context: str) -> None:
    """Generations, shards and other folders as inputs of the run, found again by `dataset.digest = '<md5>.dir'`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    named = {p.removeprefix("artifacts/").removeprefix("generations/"): (p, md5) for p, md5 in md5s.items()}
    datasets = [Dataset(name, md5[:36], "dvc", json.dumps({"path": path, "md5": md5})) for name, (path, md5) in named.items()]
    if datasets:
        client.log_inputs(run_id, [DatasetInput(d, [InputTag("mlflow.data.context", context)]) for d in datasets])


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(safe_name(k), v[:6000]) for k, v in params.items()]
    for start in range(0, len(entries), MAX_BATCH):
        client.log_batch(run_id, params=entries[start : start + MAX_BATCH])


def _find_parent(client: "MlflowClient", experiment: str, name: str, chain: str) -> str:
    """The run of this round and chain; made when there is none. Of two, made by two machines at once, the older."""
    found = client.search_runs([experiment], f"tags.parent_of = '{name}@{chain}'", order_by=["attributes.start_time ASC"], max_results=1)
    if found:
        return found[0].info.run_id
    return client.create_run(experiment, tags={"parent_of": f"{name}@{chain}", "round": name, "chain": chain}, run_name=name).info.run_id


def _settle(client: "MlflowClient", experiment: str, parent_id: str) -> None:
    """A parent is RUNNING while a stage of it is, then FAILED or KILLED if the last try of any stage is, else FINISHED."""
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent_id}'", order_by=["attributes.start_time DESC"])
    latest: dict[str, str] = {}
    for child in children:
        latest.setdefault(child.info.run_name, child.info.status)
    status = next((s for s in ("RUNNING", "FAILED", "KILLED") if s in latest.values()), "FINISHED")
    if status == "RUNNING":
        client.update_run(parent_id, status)
    else:
        client.set_terminated(parent_id, status)


def safe_name(key: str) -> str:
    """MLflow refuses other characters in keys."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def lock(root: Path, name: str = "mlflow.lock") -> FileLock:
    folder = root / ".work"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name, timeout=120)


@contextmanager
def environment(defaults: dict[str, str]) -> Iterator[None]:
    """Environment variables that MLflow reads, where the user has set none; gone afterwards."""
    ours = {k: v for k, v in defaults.items() if k not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


def connect(root: Path) -> tuple["MlflowClient", str]:
    """A client and the experiment's id, both made when missing. Call it under the lock."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import; DO_NOT_TRACK=1 alone is not heeded
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri(root), registry_uri=uri(root))
    name = os.environ.get("BLIP_EXPERIMENT", "blip")
    found = client.get_experiment_by_name(name)
    if found:
        return client, found.experiment_id
    local = None if os.environ.get("MLFLOW_TRACKING_URI") else (root.resolve() / "mlruns").as_uri()
    return client, client.create_experiment(name, artifact_location=local)
