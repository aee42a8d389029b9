"""MLflow: a run for every stage. With delivery.py, which sends, and registry.py, the versions of models, the only module that talks to it.

A stage never fails because of tracking: `stage_run` warns once and goes on; what it logs is sent when MLflow is there again.
Where things go: MLFLOW_TRACKING_URI, else mlflow.db and mlruns/ below the root. Everything works through MlflowClient, which keeps
no global state and costs no more time than the fluent functions; MLflow is imported when the first run starts.
"""

import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from blip_core.tracking.delivery import deliver, deliver_late
from blip_core.tracking.outbox import Journal, begin, folder, left
from blip_core.tracking.passes import dress
from blip_core.tracking.provenance import chain_id, dvc_md5s, flatten, git_state, inputs_md5s

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # metrics are sent together, at most this often
MAX_SHARE = 0.05  # of the stage's time, that sending may take
RETRY_SECONDS = 60.0  # pause after a failure, so that a dead server does not slow a training down
# MLflow's own defaults wait four minutes for a server that is down
STAGE_HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


@contextmanager
def stage_run(name: str, *, stage: str, params: dict[str, Any], inputs: list[Path], root: Path) -> Iterator["StageRun"]:
    """A run of MLflow around a stage. `name` is round/stage: r1/caption. It stands below the one run of this params.yaml and data.

    The run ends as FINISHED, as FAILED with the message in its tag `error`, or as KILLED after Ctrl-C and SIGTERM.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"run {name!r}: expected round/stage of letters, digits, '_', '-' and '.', as in r1/caption")
    run = StageRun(name, stage, params, inputs, root)
    try:
        yield run
    except BaseException as e:
        killed = isinstance(e, KeyboardInterrupt | SystemExit)
        run.end("KILLED" if killed else "FAILED", error=f"{type(e).__name__}: {e}")
        raise
    run.end("FINISHED")


class StageRun:
    """What a stage may write to its run. No method raises because of MLflow.

    All goes to a journal first (outbox.py): what MLflow does not get while the stage runs, a later one or `send_kept` sends.
    """

    def __init__(self, name: str, stage: str, params: dict[str, Any], inputs: list[Path], root: Path):
        self._root = root
        self._journal: Journal | None = None
        self._client: MlflowClient | None = None  # None: MLflow could not be reached yet
        self._flush_at = self._retry_at = 0.0  # by the monotonic clock
        self._reported: set[str] = set()
        if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, the first one tracks
            self._attempt("opening the run", lambda: self._open(name, stage, params, inputs))
            if self.run_id:
                self._attempt("sending what earlier stages left", lambda: _send_left(self._root, self._client, self._experiment))

    @property
    def run_id(self) -> str | None:
        """None where MLflow does not know of the run yet."""
        return self._journal.run_id if self._journal else None

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep metrics for the next flush. What is not a finite number is dropped with a warning."""
        now, kept = int(time.time() * 1000), []
        for key, value in metrics.items():
            if math.isfinite(value := float(value)):
                kept.append((safe_name(key), value, now, step or 0))
            else:
                self._warn(key, f"metric {key} is {value} at step {step}: not logged, nor are later ones that are not finite")
        if self._note(metrics=kept) and time.monotonic() >= self._flush_at:
            self._attempt("logging metrics", self._flush)

    def headline(self, metrics: dict[str, float]) -> None:
        """Keep what people look for first, for the run of the whole pass."""
        now = int(time.time() * 1000)
        if self._note(headline=[(safe_name(key), float(value), now, 0) for key, value in metrics.items()]):
            self._attempt("logging metrics", self._flush)

    def figure(self, fig: "Figure", path: str) -> None:
        """Keep a figure of matplotlib as the artifact `path`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            fig.savefig(file)
            self._artifact(file, str(Path(path).parent))

    def artifact(self, path: Path) -> None:
        """Keep a file or a folder."""
        self._artifact(path, None)

    def tag(self, key: str, value: str) -> None:
        if self._note(tag=[safe_name(key), value]):
            self._attempt("tagging", self._flush)

    def end(self, status: str, error: str = "") -> None:
        """Send what is left and close the run; the parent shows the worst of its stages."""
        self._retry_at = 0.0
        done = self._note(end=[status, error[:5000], int(time.time() * 1000)]) and self._attempt("ending the run", self._flush)
        if self._journal:
            self._journal.remove() if done else self._journal.close()

    def _open(self, name: str, stage: str, params: dict[str, Any], inputs: list[Path]) -> None:
        self._journal = begin(self._root, _header(name, stage, params, inputs, self._root))
        self._flush()

    def _flush(self) -> None:
        assert self._journal
        began = time.monotonic()
        if self._client is None:
            with lock(self._root):  # two first processes must make neither two schemas nor two parents
                client, self._experiment = connect(self._root)
                deliver(self._journal, client, self._experiment)
            self._client = client
        else:
            _check_file(self._root)
            deliver(self._journal, self._client, self._experiment)
        took = time.monotonic() - began
        self._flush_at = began + max(FLUSH_SECONDS, took / MAX_SHARE)

    def _artifact(self, path: Path, to: str | None) -> None:
        """Sent as it is; copied only where MLflow is away."""
        if self._journal and not (self.run_id and self._attempt("logging an artifact", lambda: self._send_artifact(path, to))):
            try:
                self._journal.keep_file(path, to)
            except OSError as e:
                self._warn("journal", f"{path}: can't be kept for MLflow ({e})")

    def _send_artifact(self, path: Path, to: str | None) -> None:
        assert self._client  # MLflow knows of the run
        self._client.log_artifact(self.run_id, str(path), to)

    def _note(self, **entry: Any) -> bool:
        """Whether there is a journal that took the record."""
        if self._journal is None:
            return False
        try:
            self._journal.note(**entry)
        except OSError as e:
            self._warn("journal", f"what the stage logs can't be kept for MLflow ({e})")
            return False
        return True

    def _attempt(self, what: str, act: Callable[[], Any]) -> bool:
        """Do it, unless MLflow failed a moment ago; warn when it fails for the first time."""
        began = time.monotonic()
        if began < self._retry_at:
            return False
        try:
            with environment(STAGE_HTTP | QUIET):
                act()
        except Exception as e:  # noqa: BLE001  # whatever MLflow, its database or the network may raise: the stage goes on
            now = time.monotonic()
            self._retry_at = now + max(RETRY_SECONDS, (now - began) / MAX_SHARE)
            reason = f"{type(e).__name__}: {str(e)[:300]}"
            later = f"; what it logs is kept in {folder(self._root)} and sent later" if self._journal else ""
            self._warn("MLflow", f"MLflow at {uri(self._root)}: {what} failed, the stage goes on without ({reason}){later}")
            return False
        return True

    def _warn(self, about: str, message: str) -> None:
        if about not in self._reported:
            self._reported.add(about)
            log.warning(message)


def _header(name: str, stage: str, params: dict[str, Any], inputs: list[Path], root: Path) -> dict[str, Any]:
    """What opens the run, now or later."""
    rev, md5s, chain, values = git_state(root), inputs_md5s(inputs, root), chain_id(root), root / "params.yaml"
    tags = {"stage": stage, "round": name.partition("/")[0], "chain": chain, **rev} | {
        safe_name(f"dvc.{path}"): md5 for path, md5 in md5s.items()
    }
    tags |= {"mlflow.source.git.commit": rev["git_rev"], "mlflow.source.name": f"blip_core/stages/{stage}.py"}
    tags["mlflow.user"] = os.environ.get("USER", "")
    return {
        "uri": uri(root),
        "name": dvc_name(name),
        "chain": chain,
        "values": values.read_text() if values.exists() else "",
        "data": dvc_md5s(root).get("data", ""),
        "start": int(time.time() * 1000),
        "tags": tags,
        "params": {safe_name(k): v for k, v in flatten(params).items()},
        "datasets": {p: m for p, m in md5s.items() if m.endswith(".dir") and not (root / p / "model.safetensors").exists()},
    }


def dvc_name(name: str) -> str:
    """The stage's name in dvc.yaml: base/pretrain-g0 is pretrain@g0, r1/gate is gate@r1, base/ingest is ingest."""
    group, stage = name.split("/")
    if "-" in stage:
        return stage.replace("-", "@", 1)
    return stage if group == "base" else f"{stage}@{group}"


def send_kept(root: Path) -> str:
    """Send what stages of this folder could not; says what came of it. ValueError when MLflow cannot be reached."""
    with environment(STAGE_HTTP | QUIET):
        try:
            with lock(root):
                client, experiment = connect(root)
            num, elsewhere = _send_left(root, client, experiment)
        except Exception as e:  # MLflow wraps some errors of the network or the database and passes others on
            raise ValueError(f"MLflow at {uri(root)}: {type(e).__name__}: {e}; what is kept stays in {folder(root)}") from e
    more = "".join(f"; more is kept for {other}: set MLFLOW_TRACKING_URI to it" for other in elsewhere)
    return f"{num} run{'' if num == 1 else 's'} sent to MLflow at {uri(root)}{more}"


def _send_left(root: Path, client: "MlflowClient", experiment: str) -> tuple[int, list[str]]:
    """How many runs were sent, and of which other servers some are kept."""
    num, elsewhere = 0, set()
    for journal in left(root):
        if journal.header["uri"] != uri(root):
            elsewhere.add(journal.header["uri"])
            continue
        deliver_late(journal, client, experiment)
        journal.remove()
        num += 1
    return num, sorted(elsewhere)


def safe_name(key: str) -> str:
    """MLflow refuses other characters in keys, and what as a path would be another or lead away: a//b, a/../b, /a."""
    return re.sub(r"/(?=[/.]|$)|^[/.]", "_", re.sub(r"[^\w\-. :/]", "_", key)[:250])


def uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def _check_file(root: Path) -> None:
    """SQLite goes on writing to a database that was deleted; nobody would find what it says."""
    path = uri(root).removeprefix("sqlite:///")
    if path != uri(root) and not Path(path).exists():
        raise FileNotFoundError(f"{path} is gone")


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
    if found is None:
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else (root.resolve() / "mlruns").as_uri()
        found = client.get_experiment(client.create_experiment(name, artifact_location=local))
    dress(client, found)
    return client, found.experiment_id
