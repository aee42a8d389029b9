"""A pass through the chain as MLflow shows it: a parent run that says what was changed, what came of it, and why it stopped.

A pass is one params.yaml and one state of the raw data (`chain_id`). Its stages are the runs below it.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from blip_core.tracking.provenance import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

NOTE = "mlflow.note.content"  # MLflow's pages show it as the description
HEADLINES = ("better", "tr_r1", "ir_r1", "cider", "rejected_by_filter", "residual_noise", "coverage", "texts")
MAX_BATCH = 100  # MLflow's limit on params or tags in one call
# MLflow's pages open on traces of language models else; the view is the one that docs/tracking.md links
_COLUMNS = ["attributes.`Description`", *(f"metrics.`{name}`" for name in HEADLINES[:6])]
_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.sharedViewState.passes": json.dumps({"selectedColumns": _COLUMNS}),
    NOTE: "Each row is a pass through the chain; its stages unfold below it. Its description says what came of it and what was changed.",
}


def dress(client: "MlflowClient", experiment: "Experiment") -> None:
    """Let MLflow's pages show the experiment's passes; what people have set themselves stays."""
    for key in _EXPERIMENT.keys() - experiment.tags.keys():
        client.set_experiment_tag(experiment.experiment_id, key, _EXPERIMENT[key])


def find_pass(client: "MlflowClient", experiment: str, about: dict[str, Any]) -> str:
    """The run of the pass that a journal's header is `about`; made when there is none. Of two, made by two machines at once, the older."""
    found = client.search_runs([experiment], f"tags.pass = '{about['chain']}'", order_by=["attributes.start_time ASC"], max_results=1)
    return found[0].info.run_id if found else _begin(client, experiment, about)


def _begin(client: "MlflowClient", experiment: str, about: dict[str, Any]) -> str:
    earlier = client.search_runs([experiment], "tags.pass != ''", order_by=["attributes.start_time DESC"])
    values, before = _flat(about["values"]), _values_of(client, earlier[0]) if earlier else {}
    changed = {
        key: (before.get(key), values.get(key)) for key in sorted({*before, *values}) if before and before.get(key) != values.get(key)
    }
    new_data = bool(earlier) and earlier[0].data.tags.get("data", "") != about["data"]
    told = [f"{key}={new}" for key, (_, new) in changed.items()] + ["new data"] * new_data
    name = ": ".join([values.get("challenger", "pass"), *([", ".join(told) if len(told) < 3 else f"{len(told)} changes"] if told else [])])
    tags = {"pass": about["chain"], "chain": about["chain"], "data": about["data"], "changed": _changed_words(changed, new_data)}
    tags |= {key: about["tags"][key] for key in ("git_rev", "git_dirty", "mlflow.source.git.commit", "mlflow.user")}
    run_id = client.create_run(experiment, start_time=about["start"], tags=tags, run_name=name[:250]).info.run_id
    client.log_text(run_id, about["values"], "params.yaml")
    _keep_comparable(client, earlier, run_id, values, changed)
    return run_id


def _keep_comparable(
    client: "MlflowClient", earlier: list["Run"], run_id: str, values: dict[str, str], changed: dict[str, tuple[str | None, str | None]]
) -> None:
    """Every pass carries each value that ever changed, so that a table of passes has no gaps: the earlier ones get what they had."""
    varied = changed.keys() | (earlier[0].data.params.keys() if earlier else set())
    log_params(client, run_id, {key: values[key] for key in sorted(varied & values.keys())})
    had = {key: old for key, (old, _) in changed.items() if old is not None}
    for run in earlier:
        log_params(client, run.info.run_id, {key: old for key, old in had.items() if key not in run.data.params})


def settle(client: "MlflowClient", experiment: str, run_id: str) -> None:
    """A pass is RUNNING while a stage of it is, then FAILED or KILLED if the last try of any stage is, else FINISHED; it says why."""
    below = f"tags.`mlflow.parentRunId` = '{run_id}'"
    latest: dict[str, Run] = {}
    for child in client.search_runs([experiment], below, order_by=["attributes.start_time DESC"]):
        latest.setdefault(child.info.run_name, child)
    states = {child.info.status for child in latest.values()}
    status = next((s for s in ("RUNNING", "FAILED", "KILLED") if s in states), "FINISHED")
    client.set_tag(run_id, NOTE, "\n\n".join(_description(client.get_run(run_id), status, list(latest.values()))))
    if status == "RUNNING":
        client.update_run(run_id, status)
    else:
        client.set_terminated(run_id, status)


def _description(run: "Run", status: str, stages: list["Run"]) -> Iterable[str]:
    """Of a pass in Markdown. The first paragraph is all that a table of runs shows."""
    ended = [stage for stage in stages if stage.info.status == status]
    first = ended[0] if ended else None
    error = first.data.tags.get("error", "") if first else ""
    said = {stage.info.run_name: stage.data.tags["outcome"] for stage in reversed(stages) if "outcome" in stage.data.tags}
    if status == "RUNNING":
        yield f"Running: {', '.join(stage.info.run_name for stage in ended)}."
    elif error and first:
        yield f"Stopped at {first.info.run_name}: {(error.partition(': ')[2] or error).splitlines()[0]}"
    else:
        yield said["compare"].splitlines()[0] if "compare" in said else f"Ran up to {stages[0].info.run_name}."
    yield f"Changed since the pass before: {run.data.tags['changed']}"
    if rows := [f"| {name} | {run.data.metrics[name]:.4g} |" for name in HEADLINES if name in run.data.metrics]:
        yield "\n".join(["| | |", "|---|---|", *rows])
    if said:
        yield "\n".join(f"- {outcome}" for outcome in said.values())
    if error:
        yield f"```\n{error}\n```"
    yield f"Raw data {run.data.tags['data'] or 'unknown to DVC'}, code {run.data.tags['git_rev'] or 'not in git'}."


def _changed_words(changed: dict[str, tuple[str | None, str | None]], new_data: bool) -> str:
    words = [f"`{key}` {'none' if old is None else old} → {'none' if new is None else new}" for key, (old, new) in changed.items()]
    return ("; ".join([*words, *["the raw data"] * new_data]) or "nothing that is known")[:4000]


def _values_of(client: "MlflowClient", run: "Run") -> dict[str, str]:
    """The values of an earlier pass; empty where its file is gone."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return _flat(Path(client.download_artifacts(run.info.run_id, "params.yaml", folder)).read_text())
        except (MlflowException, OSError):
            return {}


def _flat(text: str) -> dict[str, str]:
    return flatten(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {})


def log_params(client: "MlflowClient", run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(k, v[:6000]) for k, v in params.items()]
    for start in range(0, len(entries), MAX_BATCH):
        client.log_batch(run_id, params=entries[start : start + MAX_BATCH])


def with_intervals(metrics: dict[str, Any]) -> tuple[dict[str, float], str]:
    """The numbers that are worth a chart of their own, and a table in Markdown of those that have an interval or a level of chance."""
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    beside = {key for key in numbers for end in ("_low", "_high", "_chance") if key.removesuffix(end) in numbers.keys() - {key}}
    rows = [
        f"| {cell(key)} | {numbers[key]:.4g} | {_bounds(numbers, key)} | {_number(numbers.get(f'{key}_chance'))} |"
        for key in numbers
        if {f"{key}_low", f"{key}_chance"} & beside
    ]
    head = ["| metric | value | interval | chance |", "|---|---|---|---|"]
    return {key: value for key, value in numbers.items() if key not in beside}, "\n".join([*head, *rows]) if rows else ""


def cell(text: str) -> str:
    """Of a table in Markdown, whoever wrote the text, as the value of a slice: it makes no cell or row of its own."""
    return " ".join(text.split()).replace("|", r"\|")


def _bounds(numbers: dict[str, float], key: str) -> str:
    ends = [numbers.get(f"{key}_{end}") for end in ("low", "high")]
    return "" if None in ends else f"{_number(ends[0])} to {_number(ends[1])}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
