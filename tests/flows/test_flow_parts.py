"""What the flow is made of: the dirty set, the state of a stage, its output, its process."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import psutil
import pytest
import yaml

from flows.graph import Choice, Node, changed, out_of_date, read_graph, up_to
from flows.proc import STOPPED, Children
from flows.progress import Narrator, parse_step
from flows.worker import project
from tests.support.processes import HANG, gone, wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_what_depends_on_a_change_is_out_of_date_and_nothing_else():
    graph = nx.DiGraph([("ingest", "g0"), ("ingest", "human"), ("g0", "gate"), ("gate", "retrain")])
    assert out_of_date(graph, {"g0", "a stage that was removed"}) == {"g0", "gate", "retrain"}
    assert out_of_date(graph, set()) == set()


def test_stages_are_chosen_by_name_or_group_with_what_they_need():
    graph = nx.DiGraph([("ingest", "pretrain@g0"), ("ingest", "pretrain@g1"), ("pretrain@g0", "gate")])
    assert up_to(graph, ["gate"]) == {"ingest", "pretrain@g0", "gate"}
    assert up_to(graph, ["pretrain"]) == {"ingest", "pretrain@g0", "pretrain@g1"}
    with pytest.raises(ValueError, match=r"'pretrian@g0' is not in dvc.yaml; did you mean pretrain@g0"):
        up_to(graph, ["pretrian@g0"])


CHAIN = nx.DiGraph(
    [("ingest", "train@a"), ("ingest", "train@b"), ("ingest", "score"), ("train@a", "score"), ("score", "gate"), ("gate", "end")]
)


@pytest.mark.parametrize(
    ("choice", "run", "kept"),
    [
        (Choice(), {"ingest", "train@a", "train@b", "score", "gate", "end"}, set()),
        (Choice(stages=["gate"], keep=["train"]), {"ingest", "score", "gate"}, {"train@a"}),
        (Choice(keep=["train"]), {"ingest", "score", "gate", "end"}, {"train@a"}),
        (Choice(keep=["score"]), {"ingest", "train@a", "train@b", "gate", "end"}, {"score"}),
        (Choice(from_stage="score"), {"score", "gate", "end"}, {"ingest", "train@a"}),
        (Choice(stages=["gate"], from_stage="score"), {"score", "gate"}, {"ingest", "train@a"}),
        (Choice(stages=["end"], keep=["gate"]), {"end"}, {"gate"}),
    ],
)
def test_what_is_kept_is_looked_at_no_further(choice, run, kept):
    names, held = choice.nodes(CHAIN)
    assert (names - held, held) == (run, kept)


def test_a_stage_is_not_both_wanted_and_kept():
    with pytest.raises(ValueError, match="stages: train@a would have to run, but from_stage or keep"):
        Choice(stages=["train@a"], from_stage="score").nodes(CHAIN)
    with pytest.raises(ValueError, match="'scores' is not in dvc.yaml; did you mean score"):
        Choice(from_stage="scores").nodes(CHAIN)


def test_nothing_trains_on_a_generation_before_its_gate():
    graph = read_graph(ROOT)
    assert "gate@r1" in nx.ancestors(graph, "pretrain@g1")
    assert all("validate" in nx.ancestors(graph, name) for name in ("pretrain@g0", "pretrain@human", "tune_filter@r1", "caption@r1"))


DIED = "ERROR: failed to reproduce 'pretrain@g0': failed to run: python -m blip_core pretrain, exited with"


@pytest.mark.parametrize(
    ("code", "lines", "name", "message"),
    [
        (0, ["Running stage 'x':"], "Completed", None),
        (0, ["Stage 'x' is cached - skipping run, checking out outputs"], "Restored", "cache"),
        (0, ["Stage 'x' didn't change, skipping"], "Unchanged", "same"),
        (255, ["ERROR: Unable to acquire lock. Most likely another DVC process is running"], "Locked", "another DVC"),
        (255, ["ERROR: Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted"], "Locked", "killed"),
        (255, ["Running stage 'x':", f"{DIED} -9"], "Killed", "SIGKILL"),
        (255, [f"{DIED} 143"], "Killed", "SIGTERM"),
        (137, [], "Killed", "SIGKILL"),  # dvc itself
        (255, ["Running stage 'x':", "> python -m …", "disk is full", f"{DIED} 1"], "Failed", "disk is full"),
    ],
)
def test_state_of_a_stage_by_what_dvc_said(tmp_path, code, lines, name, message):
    from flows.repro import verdict
    from flows.stage import may_recover

    state = verdict(code, lines, tmp_path / "none.json")
    assert state.name == name and (message is None or message in state.message)
    assert may_recover(None, None, state) == (name in ("Killed", "Locked"))


def test_what_dvc_says_of_its_locks_is_no_part_of_the_failure(tmp_path):
    from flows.repro import verdict

    left = "WARNING: Process 'dvc' with (Pid 9999), in RWLock-file 'artifacts/g0' had been killed. Auto removed it from the lock file."
    lines = [left, "Running stage 'x':", "> python -m …", "disk is full", f"{DIED} 1"]
    assert verdict(255, lines, tmp_path / "none.json").message == "disk is full"


def test_the_stages_own_message_is_the_failure(tmp_path):
    from flows.repro import verdict

    error = tmp_path / "gate.json"
    error.write_text(json.dumps({"kind": "input", "message": "noise 0.7 > 0.5"}))
    state = verdict(255, ["noise 0.7 > 0.5", f"{DIED} 1"], error)
    assert (state.name, state.message) == ("Failed", "noise 0.7 > 0.5")


def test_progress_lines_are_thinned_and_the_rest_kept():
    seen, percents, now = [], [], iter(range(0, 1000, 3))
    narrator = Narrator(seen.append, percents.append, interval=10, clock=lambda: next(now))
    for line in ["Running stage 'x':", *(f"pretrain g0  {i}/10  loss 1.0" for i in range(1, 11)), "", "\tgit add dvc.lock", "saved"]:
        narrator(line)
    assert seen[0] == "Running stage 'x':" and seen[-2:] == ["pretrain g0  10/10  loss 1.0", "saved"]
    assert 4 <= len(seen) <= 7 and percents[-1] == 100.0
    assert list(narrator.lines) == ["Running stage 'x':", "saved"]


@pytest.mark.parametrize(("name", "total"), [("ingest", 7), ("pretrain g0", 500), ("evaluate human", 3), ("caption r1", 12)])
def test_a_line_of_progress_is_known_whatever_the_stage_calls_itself(name, total, capsys):
    """By the lines that the stages write, not by a copy of their form."""
    from blip_core.runtime.progress import Progress

    Progress(name, total, unit="images").update(total, loss=0.25)
    assert parse_step(capsys.readouterr().err.rstrip()) == (total, total)
    for other in ("shard  3/0", "read 3/4 of it", "ratio  0.3/4", f"{name}: 3/4", "https://x/1/2"):
        assert parse_step(other) is None, other


def test_commands_report_their_exit_code_and_output(tmp_path):
    lines = []
    run = lambda script: Children().run(["sh", "-c", script], cwd=tmp_path, env=dict(os.environ), on_line=lines.append)  # noqa: E731
    assert run("echo out; echo err >&2; exit 3") == 3 and sorted(lines) == ["err", "out"]
    assert run("kill -9 $$") == 128 + 9


def test_stop_ends_what_runs_and_lets_nothing_start(tmp_path):
    children, lines = Children(), []

    def on_line(line: str) -> None:
        lines.append(line)
        children.stop()

    assert children.run(["sh", "-c", "sleep 60 & echo $!; wait"], cwd=tmp_path, env=dict(os.environ), on_line=on_line) == STOPPED
    sleeper = int(lines[0])
    assert not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE
    assert children.run(["sh", "-c", "echo never"], cwd=tmp_path, env=dict(os.environ), on_line=lines.append) == STOPPED and len(lines) == 1


RUN = "import os, time; from flows.proc import end_with_worker; end_with_worker(); print(os.getpid(), flush=True); time.sleep(3600)"


def test_a_run_that_says_nothing_ends_with_its_worker():
    """Prefect alone leaves it there until it next prints something: 193 s were seen."""
    worker = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RUN!r}])"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(worker, env=env, stdout=subprocess.PIPE, text=True) as started:
        run = int(started.stdout.readline())
        assert psutil.pid_exists(run)
        started.kill()
        assert wait_until(lambda: gone(run))


def test_gpus_are_those_that_a_stage_would_see(tmp_path, monkeypatch):
    from flows.gpus import visible_gpus

    for named, expected in (("1, 0", ["0", "1"]), ("", []), ("-1", []), ("MIG-3a", ["MIG-3a"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    driver.write_text("#!/bin/sh\necho 0\necho 1\n")
    driver.chmod(0o755)
    assert visible_gpus() == ["0", "1"]


HOLDER = """
import os, sys
from pathlib import Path
from flows.gpus import locked
from flows.proc import Children

with locked([Path("gpu.lock")], stopped=lambda: False, say=print) as locks:
    script = "import os, signal, time; signal.signal(15, lambda *_: (time.sleep(2), os._exit(0))); print(os.getpid()); time.sleep(3600)"
    command = [sys.executable, "-uc", script]
    Children().run(command, cwd=Path("."), env=dict(os.environ), on_line=lambda line: print(line, flush=True), locks=locks)
"""


def test_a_gpu_is_free_when_the_stage_is_gone_and_not_when_its_flow_is(tmp_path):
    from flows.gpus import locked

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    stage = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    assert psutil.pid_exists(stage)
    said = []
    with locked([tmp_path / "gpu.lock"], stopped=lambda: False, say=said.append) as locks:
        assert len(locks) == 1 and said == ["waits for gpu, which another stage has"]
        assert not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE
        with locked([tmp_path / "gpu.lock"], stopped=lambda: len(said) > 1, say=said.append):
            assert len(said) == 2  # told to stop, it waits no longer


def check(name: str, passed: bool, observed: object) -> dict:
    return {"name": name, "passed": passed, "observed": observed, "limit": "at most 0.5", "says": "noise | that is left"}


def test_failed_checks_come_first_in_words_and_each_check_once(tmp_path):
    """A gate that passed has its verdict in two files, one that failed beside its Data Docs alone."""
    from flows.publish import as_page, gate_checks

    passed, failed = (
        {"generation": g, "checks": c} for g, c in (("a", [check("b", True, 3.0)]), ("c", [check("d", True, 0), check("e", False, 0.61)]))
    )
    for name, verdict in (("gates/g0", passed), ("docs/validate/results", passed), ("docs/gate-r1/results", failed)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(verdict))
    lines = as_page(gate_checks(tmp_path)).splitlines()
    assert lines[0] == "**1 of 3 checks failed.**"
    assert lines[2] == "- **e** of gate-r1: found 0.61, expected at most 0.5 (noise \\| that is left)"
    table = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    assert table[0] == ["", "gate", "check", "found", "expected", "what it is"]
    assert [row[:4] for row in table[2:]] == [
        ["**failed**", "gate-r1", "e", "0.61"],
        ["passed", "gate-r1", "d", "0"],
        ["passed", "validate", "b", "3"],
    ]


def test_the_summary_is_a_list_and_tables_stay_as_they_are():
    from flows.publish import results

    table = "WHAT IT DID\n===========\n\nIN SHORT\n--------\nr1: 61% -> 6%\n![x](http://a/b)\n\n"
    table += "3. THE MODELS\n-------------\nmodel  R@1\n-----  ---\ng0      3%\n"
    assert results(table).split("\n\n") == [
        "## In short",
        "- r1: 61% -\\> 6%\n- \\!\\[x\\](http://a/b)",
        "## 3. The models",
        "```\nmodel  R@1\n-----  ---\ng0      3%\n```\n",
    ]
    failed = "FAR\n===\n\nFAILED: GATE@R1\n---------------\ncheck     value\n--------  -----\ncoverage  0.625\n\ncoverage: too few\n\n"
    failed += "IN SHORT\n--------\nNot there yet: pretrain@g1,\n  report\nr1: nothing\n"
    assert results(failed).split("\n\n## ") == [
        "## Failed: gate@r1\n\n```\ncheck     value\n--------  -----\ncoverage  0.625\n\ncoverage: too few\n```",
        "In short\n\n- Not there yet: pretrain@g1, report\n- r1: nothing\n",
    ]
    assert results("no headings") == "```\nno headings\n```"


@pytest.mark.parametrize("run", ["", ".work/runs/1a2b"])
def test_pages_are_named_by_the_address_at_which_they_are_served(tmp_path, monkeypatch, run):
    """Also those of a run beside the folder; no link leads to a file."""
    from flows.publish import where_to_look

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    root = tmp_path / run
    assert "blip show" not in where_to_look(root, tmp_path)
    for name in ("report/index.html", "docs/gate-r1/index.html", "report/figures/x.png"):
        (root / "artifacts" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "artifacts" / name).touch()
    text = where_to_look(root, tmp_path)
    base = f"http://127.0.0.1:8765/{run + '/' if run else ''}artifacts"
    assert re.findall(r"\[(.*?)\]\((.*?)\)", text) == [
        ("report", f"{base}/report/index.html"),
        ("docs/gate-r1", f"{base}/docs/gate-r1/index.html"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ]
    assert f"`blip show` runs in `{tmp_path}`" in text and "file:" not in text


def test_the_verdict_is_a_table_with_its_reasons():
    from flows.publish import comparison

    test = {"challenger": 0.5, "baseline": 0.4, "difference": 0.1, "low": -0.02, "high": 0.2, "passed": False}
    verdict = {"challenger": "g1", "better": False, "baselines": {"g0": {"cider": test}}, "reasons": ["against g0: cider …"]}
    lines = comparison(verdict).splitlines()
    assert lines[0] == "**g1 is not shown to be better than g0.**" and lines[-1] == "- against g0: cider …"
    assert "| g0 | cider | 0.5000 | 0.4000 | +0.1000 | [-0.0200, +0.2000] | **failed** |" in lines
    assert comparison(verdict | {"baselines": {}}).startswith("**g1 is not shown to be better than any baseline.**")


def test_the_end_says_that_the_rounds_stopped_and_why(tmp_path):
    """Of a decision to stop nothing is left out yet: the stages behind it are."""
    from prefect.states import Completed

    from blip_core.tables.stopped import write_stopped
    from flows.bootstrap import left_out, summary
    from flows.graph import Node

    for name in ("decision.json", "model", "metrics.json", "history.csv"):
        write_stopped("no gain", tmp_path / name)
    (tmp_path / "numbers.json").write_text('{"go_on": false}')
    decide = Node("decide@r1", "cpu", (), True, outs=("decision.json", "numbers.json"))
    train = Node("pretrain@g2", "gpu", (), True, outs=("model", "metrics.json", "history.csv"))
    told = {node.name: reason for node in (decide, train) if (reason := left_out(node, tmp_path))}
    assert told == {"pretrain@g2": "no gain"}
    state = summary({"decide@r1": Completed(), "pretrain@g2": Completed()}, told)
    assert state.message.splitlines()[1] == "the rounds stopped: no gain; of these stages nothing was to be done: pretrain@g2"
    assert "rounds" not in summary({"decide@r1": Completed()}, {}).message


@pytest.mark.parametrize(
    ("wanted", "cores", "expected"),
    [(None, 16, (2, 8)), (None, 2, (2, 1)), (None, 1, (1, 1)), (4, 2, (4, 1)), (1, 6, (1, 6)), (3, 8, (3, 2))],
)
def test_stages_side_by_side_share_the_cores(tmp_path, wanted, cores, expected):
    from flows.bootstrap import side_by_side
    from flows.slots import Slots
    from flows.workspace import Workspace

    slots, each = side_by_side(wanted, cores)
    assert (slots, each) == expected
    assert Workspace(tmp_path, slots=Slots(slots), cores=each).env["BLIP_CORES"] == str(each)


@pytest.mark.parametrize("count", [1, 2])
def test_the_stage_with_the_longest_way_behind_it_goes_first(count, monkeypatch):
    """Whichever came first; and no more run at a time than there are slots."""
    import threading

    from flows import slots as module

    slots, began, running, together = module.Slots(count), [], [], []
    settled = threading.Barrier(4, timeout=HANG)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: settled.wait()))  # all four have come

    def stage(behind: int) -> None:
        with slots.one(behind):
            began.append(behind)
            running.append(behind)
            together.append(len(running))
            wait_until(lambda: len(began) >= count)
            running.remove(behind)

    threads = [threading.Thread(target=stage, args=(behind,)) for behind in (1, 5, 0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(together) == count and {*began[:2]} == {5, 3} and {*began[2:]} == {1, 0}
    assert count > 1 or began == [5, 3, 1, 0]


def test_what_dvc_runs_each_time_is_changed_when_it_wrote_something_else(tmp_path):
    """DVC says of such a stage alone that it always changed; for the flow nothing changed until its output did."""
    (tmp_path / "code").write_text("1")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    stages = {"version": {"cmd": "cp code noted", "outs": ["noted"], "always_changed": True}}
    stages["ingest"] = {"cmd": "cp noted made", "deps": ["noted"], "outs": ["made"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    tools = {"dvc": Path(sys.executable).parent / "dvc", "env": {**os.environ, "DVC_NO_ANALYTICS": "1"}}
    assert changed(tmp_path, **tools) == {"version", "ingest"}
    subprocess.run([tools["dvc"], "repro", "-q"], cwd=tmp_path, env=tools["env"], check=True)
    assert changed(tmp_path, **tools) == set()
    (tmp_path / "code").write_text("2")
    assert changed(tmp_path, **tools) == {"ingest"} and (tmp_path / "noted").read_text() == "2"


def test_a_worker_without_a_clone_says_what_it_needs(tmp_path, monkeypatch):
    """As where the flow comes from a wheel: its code lies in no project."""
    monkeypatch.setenv("BLIP_PROJECT", str(tmp_path))
    with pytest.raises(ValueError, match="no dvc.yaml; start the worker with BLIP_PROJECT set"):
        project()
    (tmp_path / "dvc.yaml").touch()
    assert project() == tmp_path


def test_a_change_behind_a_link_is_told_though_dvc_calls_ingest_up_to_date(tmp_path, monkeypatch):
    from flows.bootstrap import check_links

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("elsewhere").mkdir()
    Path("data/web").mkdir(parents=True)
    Path("data/clean").symlink_to(tmp_path / "elsewhere")
    Path("data/clean.files.json").write_text("{}")  # of before
    idle = Node("ingest", "cpu", (), dirty=False)
    with pytest.raises(ValueError, match=r"data/clean is a link.*`blip list`"):
        check_links([idle], tmp_path)
    check_links([replace(idle, kept=True)], tmp_path)
    check_links([replace(idle, dirty=True)], tmp_path)
    check_links([idle], tmp_path / "worktree")
