"""From a journal (outbox.py) to MLflow: opens the run and sends what MLflow does not have yet. What is sent twice counts once."""

import json
from typing import TYPE_CHECKING, Any

from blip_core.tracking.outbox import Journal
from blip_core.tracking.passes import find_pass, log_params, settle

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS = 1000  # MLflow's limit in one call


def deliver(journal: Journal, client: "MlflowClient", experiment: str) -> None:
    """Send all that waits in the journal. Raises what MLflow raises; what was sent until then is marked."""
    from mlflow.entities import Metric

    if journal.run_id is None:
        journal.note(run_id=_open(journal, client, experiment))
    for batch in journal.unsent(MAX_METRICS):
        metrics = [Metric(*m) for entry in batch for m in entry.get("metrics", ())]
        for start in range(0, len(metrics), MAX_METRICS):
            client.log_batch(journal.run_id, metrics=metrics[start : start + MAX_METRICS])
        for entry in batch:
            _send(entry, journal, client, experiment)


def deliver_late(journal: Journal, client: "MlflowClient", experiment: str) -> None:
    """The same for a run whose process is gone; it ends as KILLED where it did not say how."""
    if journal.run_id is not None and not _known(client, journal.run_id):
        journal.begin_again()
    if not journal.ended:
        seconds = journal.path.stat().st_mtime  # of the last sign of life
        journal.note(end=["KILLED", "the process ended without a word: killed, or the machine went down", int(seconds * 1000)])
    deliver(journal, client, experiment)


def _known(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as e:
        if e.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _open(journal: Journal, client: "MlflowClient", experiment: str) -> str:
    """The id of the journal's run: made, or found where an earlier try was cut off behind its making."""
    about = journal.header
    parent = find_pass(client, experiment, about)
    tags = about["tags"] | {"mlflow.parentRunId": parent, "journal": journal.name}
    found = client.search_runs([experiment], f"tags.journal = '{journal.name}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, start_time=about["start"], tags=tags, run_name=about["name"])
    log_params(client, run.info.run_id, about["params"])
    _log_datasets(client, run.info.run_id, about["datasets"], about["tags"]["stage"])
    origins = {path: md5 for path, md5 in about["datasets"].items() if path == "data" or path.startswith("artifacts/generations/")}
    _log_datasets(client, parent, origins, "pass")
    settle(client, experiment, parent)
    return run.info.run_id


def _send(entry: dict[str, Any], journal: Journal, client: "MlflowClient", experiment: str) -> None:
    from mlflow.entities import Metric

    if "headline" in entry:
        parent = client.get_run(journal.run_id).data.tags["mlflow.parentRunId"]
        client.log_batch(parent, metrics=[Metric(*m) for m in entry["headline"]])
    if "tag" in entry:
        client.set_tag(journal.run_id, *entry["tag"])
    if "artifact" in entry:
        name, to = entry["artifact"]
        client.log_artifact(journal.run_id, str(journal.files / name), to)
    if "end" in entry:
        status, error, ended = entry["end"]
        if error:
            client.set_tag(journal.run_id, "error", error)
        client.set_terminated(journal.run_id, status, ended)
        settle(client, experiment, client.get_run(journal.run_id).data.tags["mlflow.parentRunId"])


def _log_datasets(client: "MlflowClient", run_id: str, md5s: dict[str, str], context: str) -> None:
    """Generations, shards and other folders as inputs of the run, found again by `dataset.digest = '<md5>.dir'`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    named = {p.removeprefix("artifacts/").removeprefix("generations/"): (p, md5) for p, md5 in md5s.items()}
    datasets = [Dataset(name, md5[:36], "dvc", json.dumps({"path": path, "md5": md5})) for name, (path, md5) in named.items()]
    if datasets:
        client.log_inputs(run_id, [DatasetInput(d, [InputTag("mlflow.data.context", context)]) for d in datasets])
