"""prefect.yaml: its deployments are runs of the flow as it is, and of the stages that they promise."""

import asyncio
import importlib
import inspect
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import networkx as nx
import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule

from flows.graph import Choice, read_graph

ROOT = Path(__file__).resolve().parents[2]
MADE = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
DEPLOYMENTS = {d["name"]: d for d in MADE if "flows/approve.py" not in d["entrypoint"]}


@pytest.fixture(scope="module")
def graph():
    return read_graph(ROOT)


@pytest.mark.parametrize("name", [name for name in DEPLOYMENTS if name != "gpu"])
def test_parameters_are_those_of_the_flow(name):
    path, function = DEPLOYMENTS[name]["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
    parameters = DEPLOYMENTS[name]["parameters"]
    assert list(parameters) == list(inspect.signature(flow.fn).parameters)
    assert flow.validate_parameters(parameters) == parameters


def test_the_deployment_that_waits_for_a_person_is_where_the_flow_looks_for_it():
    from flows import approve

    (made,) = [d for d in MADE if "flows/approve.py" in d["entrypoint"]]
    assert f"{approve.approve.name}/{made['name']}" == approve.DEPLOYMENT
    assert list(made["parameters"]) == list(inspect.signature(approve.approve.fn).parameters)


def test_the_deployment_for_workers_is_where_the_flow_looks_for_it():
    from flows.remote import DEPLOYMENT
    from flows.watch import SILENCE

    made = DEPLOYMENTS["gpu"]
    module, function = made["entrypoint"].rsplit(".", 1)
    flow = getattr(importlib.import_module(module), function)
    assert f"{flow.name}/{made['name']}" == DEPLOYMENT and made["pull"] == []
    assert SILENCE > 3 * int(made["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


def test_rounds_are_a_parameter(tmp_path):
    """As docs/orchestration.md has it: another round is a value like any other."""
    from blip_core.config.params import load_params
    from flows.worktree import override

    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    values = {
        "rounds.r2": {"base": "g1", "model": "g1", "next": "g2", "labels": "labels/r1"},
        "models.g2": {"generation": "g2", "sources": "human,web,synthetic", "round": "r2"},
        "challenger": "g2",
    }
    override(tmp_path / "params.yaml", values)
    assert set(load_params(tmp_path / "params.yaml").rounds) == {"r1", "r2"}
    graph = read_graph(tmp_path)
    assert {"pretrain@g1", "gate@r1", "decide@r1", "gate@r2"} <= nx.ancestors(graph, "pretrain@g2") and "evaluate@g2" in nx.ancestors(
        graph, "compare"
    )


def looked_at(graph, name: str) -> tuple[set[str], set[str]]:
    parameters = DEPLOYMENTS[name]["parameters"]
    names, kept = Choice(*(parameters[key] for key in ("stages", "from_stage", "keep", "force"))).nodes(graph)
    return names - kept, kept


def test_the_chain_is_whole_where_nothing_else_is_said(graph):
    assert looked_at(graph, "local") == looked_at(graph, "retrain") == (set(graph), set())


def test_capfilt_takes_new_data_to_the_gate_with_the_models_that_are_there(graph):
    run, kept = looked_at(graph, "capfilt")
    assert run == {"data.dvc", "ingest", "validate", "calibrate@r1", "caption@r1", "score@r1", "assemble@r1", "gate@r1"}
    assert kept == {"tune_captioner@r1", "tune_filter@r1"}


def test_evaluate_measures_what_is_there(graph):
    run, kept = looked_at(graph, "evaluate")
    assert run == {"evaluate@g0", "evaluate@human", "evaluate@g1", "compare"}
    assert {name.split("@")[0] for name in kept} == {"pretrain", "ingest"}


def repository(folder: Path) -> Path:
    (folder / "data.dvc").write_text("outs:\n- md5: 30cc.dir\n  size: 9\n  nfiles: 2\n  path: data\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=Ann", "-c", "user.email=ann@localhost", "commit", "-qm", "data"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_what_is_announced_starts_a_run_of_that_commit(tmp_path):
    """By Prefect's own schemas: the trigger parses, covers the event, and nothing else in it is left to chance."""
    from prefect.cli.deploy._triggers import _initialize_deployment_triggers
    from prefect.events import Event
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    from flows.announce import EVENT, RESOURCE, new_data

    payload = new_data(repository(tmp_path))
    assert (len(payload["revision"]), payload["md5"], payload["nfiles"]) == (40, "30cc.dir", 2)
    (trigger,) = _initialize_deployment_triggers("retrain", DEPLOYMENTS["retrain"]["triggers"])
    trigger.set_deployment_id(uuid4())
    made = EventTrigger.model_validate(trigger.as_automation().trigger.model_dump())
    sent = Event(event=EVENT, resource={"prefect.resource.id": RESOURCE}, payload=payload)
    other = Event(event="blip.data.read", resource={"prefect.resource.id": RESOURCE})
    covered = [made.covers(ReceivedEvent.model_validate(e.model_dump())) for e in (sent, other)]
    assert covered == [True, False]
    assert trigger.parameters == {"revision": "{{ event.payload.revision }}"} and trigger.enabled


def test_the_schedule_is_paused_and_means_what_the_docs_say():
    from prefect.cli.deploy._schedules import _construct_schedules

    (made,) = _construct_schedules(DEPLOYMENTS["retrain"], {}, console=None, is_interactive=lambda: False)
    assert made["active"] is False and made["slug"]
    (due,) = asyncio.run(CronSchedule.model_validate(made["schedule"].model_dump()).get_dates(n=1))
    assert (due.strftime("%A"), due.hour, due.minute, due.utcoffset()) == ("Sunday", 3, 0, timedelta())


def test_data_is_announced_when_it_is_committed(tmp_path):
    from flows.announce import new_data

    with pytest.raises(ValueError, match="no commit holds data.dvc"):
        new_data(tmp_path)
    repository(tmp_path)
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 41dd.dir\n  path: data\n")
    with pytest.raises(ValueError, match="differs from the last commit"):
        new_data(tmp_path)
    (tmp_path / "data.dvc").unlink()
    with pytest.raises(ValueError, match="differs from the last commit"):
        new_data(tmp_path)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (None, "PREFECT_API_URL is not set"),
        (
            "http://127.0.0.1:1/api",
            "PREFECT_API_URL=http://127.0.0.1:1/api: no server answers there .*`prefect server start`",
        ),
    ],
)
def test_an_announcement_that_nobody_gets_is_an_error(url, told):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.announce import announce

    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ValueError, match=told):
        announce({"revision": "1"})


def test_who_waits_in_ci_is_told_that_no_worker_is_there(capsys):
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Completed, Late, Pending, Running

    from flows.ask import ask

    states = iter([Late(), Late(), Pending(), Running(), Completed()])

    class Server:
        def read_deployment_by_name(self, name):
            return FlowRun(flow_id=uuid4())

        def create_flow_run_from_deployment(self, deployment, *, parameters, name):
            return FlowRun(flow_id=uuid4(), name=name)

        def read_flow_run(self, run_id):
            return FlowRun(flow_id=uuid4(), name="fox", state=next(states))

    assert ask(Server(), "bootstrap/retrain", {}, timeout=60, pause=0).state.is_completed()
    asked, *told = capsys.readouterr().out.splitlines()
    assert asked.startswith("bootstrap/retrain: retrain, id ")  # it is called so before it runs
    assert [line.split(":")[1].strip() for line in told] == ["Late", "Pending", "Running", "Completed"]
    assert "no worker has taken it" in told[0]


@pytest.mark.parametrize("door", ["flows.bootstrap gate", "flows.ask bootstrap/retrain --revision HEAD"])
def test_a_server_that_is_not_there_is_said_in_one_line(door):
    env = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = subprocess.run([sys.executable, "-m", *door.split()], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert "http://127.0.0.1:1/api" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrain.optim.lr", 1e-5),
        ("ingest.screens.language", "off"),
        ("ingest.screens.languages", ["en", "no"]),
        ("seed", 7),
        ("assemble.threshold.web", math.nan),  # which the check of all values refuses by name
    ],
)
def test_values_are_set_as_they_are_read_and_comments_stay(tmp_path, key, value):
    """YAML 1.1, which the project reads, and 1.2, which the editor writes, differ in what off, no and 1e-05 are."""
    from flows.worktree import override

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    expected = yaml.safe_load(path.read_text())
    section = expected
    for name in key.split(".")[:-1]:
        section = section[name]
    section[key.split(".")[-1]] = value
    override(path, {key: value})
    assert yaml.safe_dump(yaml.safe_load(path.read_text())) == yaml.safe_dump(expected)  # .nan is equal to nothing
    before, after = (ROOT / "params.yaml").read_text().splitlines(), path.read_text().splitlines()
    assert len(before) == len(after) and [line for line in before if "#" in line] == [line for line in after if "#" in line]
