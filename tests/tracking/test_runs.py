"""Runs in MLflow: what is kept, what happens when a stage or MLflow fails, and that two processes share a parent."""

import json
import logging
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blip_core.tracking import runs as tracking
from blip_core.tracking.passes import with_intervals
from blip_core.tracking.provenance import chain_id, dvc_md5s, flatten, git_state
from blip_core.tracking.runs import stage_run
from tests.support.processes import HANG

MD5 = "0123456789abcdef0123456789abcdef"
DIGITS = "12345678901234567890123456789012"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(empty, database):
    shutil.copy(database, empty)
    return empty


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A project's root with parameters, raw data and what DVC wrote; MLflow is not configured."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("BLIP_EXPERIMENT", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {MD5}.dir\n  path: data\n")
    lock = {
        "schema": "2.0",
        "stages": {
            "ingest": {"cmd": "x", "outs": [{"path": "artifacts/generations/g0", "hash": "md5", "md5": f"{DIGITS}.dir"}]},
            "evaluate@g0": {"cmd": "x", "outs": [{"path": "artifacts/evaluations/g0", "md5": f"{MD5}.dir"}]},
            "evaluate@g1": {"cmd": "x", "outs": [{"path": "artifacts/evaluations/g1", "md5": f"{DIGITS}.dir"}]},
            "validate": {"cmd": "x", "outs": [{"path": "artifacts/gates/g0.json", "md5": DIGITS}]},
        },
    }
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    return tmp_path


def client(root):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root, name):
    experiment = client(root).get_experiment_by_name("blip")
    return client(root).search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")


def passes(root):
    return client(root).search_runs(["1"], "tags.pass != ''", order_by=["attributes.start_time DESC"])


def track(root, name="base/ingest", inputs=(), params=None):
    return stage_run(name, stage=name.split("/")[1], params=params or {}, inputs=list(inputs), root=root)


def test_run_says_what_went_in_and_what_came_out(root):
    gates, generation = Path("artifacts/gates/g0.json"), Path("artifacts/generations/g0")
    with track(root, "r1/caption", [generation, gates], {"sampler": {"name": "nucleus", "p": 0.9}, "sources": ("web", "human")}) as run:
        run.log({"loss": 2.0, "recall@1": 0.25}, step=1)
        run.log({"loss": 1.0}, step=2)
        run.tag("note", "yes")
        (root / "table.txt").write_text("table")
        run.artifact(root / "table.txt")
    [child], [parent] = runs(root, "caption@r1"), passes(root)
    assert child.data.params == {"sampler.name": "nucleus", "sampler.p": "0.9", "sources": '["web", "human"]'}
    assert [(m.step, m.value) for m in client(root).get_metric_history(child.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert child.data.metrics["recall_1"] == 0.25
    expected = {
        "stage": "caption",
        "round": "r1",
        "note": "yes",
        "chain": chain_id(root),
        "mlflow.parentRunId": parent.info.run_id,
        "dvc.artifacts/generations/g0": f"{DIGITS}.dir",
        "dvc.artifacts/gates/g0.json": DIGITS,
    }
    assert expected.items() <= child.data.tags.items()
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert [f.path for f in client(root).list_artifacts(child.info.run_id)] == ["table.txt"]
    assert (root / "mlruns").is_dir() and "mlflow.note.content" not in child.data.tags


def test_generation_is_a_dataset_found_by_its_md5(root):
    generation = root / "artifacts/generations/g0"  # an absolute path names the same input
    with track(root, inputs=[generation, Path("artifacts/gates/g0.json")]):
        pass
    run, parent = client(root).search_runs(["1"], f"dataset.digest = '{DIGITS}.dir'", order_by=["tags.stage DESC"])
    assert (run.info.run_name, parent.info.run_id) == ("ingest", run.data.tags["mlflow.parentRunId"])
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.source_type) == ("g0", "dvc")
    assert json.loads(dataset.dataset.source) == {"path": "artifacts/generations/g0", "md5": f"{DIGITS}.dir"}


def test_folder_of_several_outputs_is_known_by_each_of_them(root):
    with track(root, "base/compare", [Path("artifacts/evaluations")]):
        pass
    [run] = runs(root, "compare")
    assert {k for k in run.data.tags if k.startswith("dvc.")} == {"dvc.artifacts/evaluations/g0", "dvc.artifacts/evaluations/g1"}


def test_stages_of_a_pass_share_a_run_until_the_parameters_change(root):
    for name in ("base/ingest", "base/validate", "r1/caption"):
        with track(root, name):
            pass
    assert len(passes(root)) == 1 and passes(root)[0].info.run_name == "pass"
    (root / "params.yaml").write_text("seed: 1\n")
    with track(root, "base/ingest"):
        pass
    assert len(passes(root)) == 2
    assert len({r.data.tags["mlflow.parentRunId"] for r in runs(root, "ingest")}) == 2


def test_a_pass_says_which_values_and_data_are_others_than_before(root):
    """Every pass carries each value that ever changed, so a table of passes has no gaps; of the first ones what they had."""
    first = {"challenger": "g1", "seed": 0, "gate": {"max_noise": 0.5, "min": 1}}
    for values in (first, first | {"seed": 7}, first | {"seed": 7, "gate": {"max_noise": 0.4, "min": 1}}):
        (root / "params.yaml").write_text(json.dumps(values))
        with track(root):
            pass
    (root / "data.dvc").write_text(f"outs:\n- md5: {DIGITS}.dir\n  path: data\n")
    with track(root, inputs=[Path("data"), Path("artifacts/generations/g0")]):
        pass
    fourth, third, second, one = passes(root)
    assert [p.info.run_name for p in (one, second, third, fourth)] == ["g1", "g1: seed=7", "g1: gate.max_noise=0.4", "g1: new data"]
    assert [p.data.params for p in (one, second, third, fourth)] == [
        {"seed": "0", "gate.max_noise": "0.5"},
        {"seed": "7", "gate.max_noise": "0.5"},
        {"seed": "7", "gate.max_noise": "0.4"},
        {"seed": "7", "gate.max_noise": "0.4"},
    ]
    assert "`gate.max_noise` 0.5 → 0.4" in third.data.tags["mlflow.note.content"]
    assert {d.dataset.name: d.dataset.digest for d in fourth.inputs.dataset_inputs} == {"data": f"{DIGITS}.dir", "g0": f"{DIGITS}.dir"}


def test_a_pass_says_what_came_of_it_and_where_it_stopped(root):
    with track(root, "r1/gate") as run:
        run.headline({"rejected_by_filter": 0.7, "residual_noise": 0.25})
    with track(root, "base/compare") as run:
        run.headline({"better": True, "cider": 1.5})
        run.tag("outcome", "g1 is better than g0.")
    [only] = passes(root)
    assert only.data.metrics == {"rejected_by_filter": 0.7, "residual_noise": 0.25, "better": 1.0, "cider": 1.5}
    assert (
        only.data.tags["mlflow.note.content"].startswith("g1 is better than g0.\n")
        and "| cider | 1.5 |" in only.data.tags["mlflow.note.content"]
    )
    with pytest.raises(ValueError), track(root, "r1/gate"):
        raise ValueError("g1 does not pass its gate\nnoise_web: 0.9, at most 0.5")
    [only] = passes(root)
    assert only.data.tags["mlflow.note.content"].startswith("Stopped at gate@r1: g1 does not pass its gate\n")
    assert "noise_web: 0.9, at most 0.5" in only.data.tags["mlflow.note.content"]


def test_intervals_are_a_table_and_no_charts():
    points, table = with_intervals(
        {"cider": 1.0, "cider_low": 0.9, "cider_high": 1.1, "images": 7, "tr_r1": 0.5, "tr_r1_chance": 0.1, "x_low": 2.0}
        | {"x[c=a|\nb]": 3.0, "x[c=a|\nb]_low": 2.0, "x[c=a|\nb]_high": 4.0}
    )
    assert points == {"cider": 1.0, "images": 7.0, "tr_r1": 0.5, "x_low": 2.0, "x[c=a|\nb]": 3.0}
    assert table.splitlines()[2:] == ["| cider | 1 | 0.9 to 1.1 |  |", "| tr_r1 | 0.5 |  | 0.1 |", "| x[c=a\\| b] | 3 | 2 to 4 |  |"]


def test_pages_of_mlflow_open_on_the_passes_and_what_people_set_stays(root):
    with track(root):
        pass
    tags = client(root).get_experiment("1").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "metrics.`residual_noise`" in json.loads(tags["mlflow.sharedViewState.passes"])["selectedColumns"]
    client(root).set_experiment_tag("1", "mlflow.note.content", "ours")
    with track(root):
        pass
    assert client(root).get_experiment("1").tags["mlflow.note.content"] == "ours"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("noise 0.6 > 0.5"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")]
)
def test_run_of_a_stage_that_raises_says_why(root, error, status):
    with pytest.raises(type(error)), track(root, "r1/gate") as run:
        run.log({"noise": 0.6})
        raise error
    [child], [parent] = runs(root, "gate@r1"), passes(root)
    assert (child.info.status, parent.info.status, child.data.metrics) == (status, status, {"noise": 0.6})
    assert child.data.tags["error"] == f"{type(error).__name__}: {error}"


def test_pass_recovers_when_the_failed_stage_succeeds(root):
    with pytest.raises(ValueError), track(root, "r1/gate"):
        raise ValueError("no")
    with track(root, "r1/assemble"):
        assert passes(root)[0].info.status == "RUNNING"
    assert passes(root)[0].info.status == "FAILED"
    with track(root, "r1/gate"):
        pass
    assert passes(root)[0].info.status == "FINISHED"


def test_metrics_that_are_not_finite_are_dropped_with_one_warning(root, caplog):
    with track(root) as run:
        for step in range(3):
            run.log({"loss": float("nan"), "itm": float("inf"), "fine": 1.0}, step=step)
    [child] = runs(root, "ingest")
    assert child.data.metrics == {"fine": 1.0}
    assert [r.message.split(":")[0] for r in caplog.records] == ["metric loss is nan at step 0", "metric itm is inf at step 0"]


def test_a_slice_by_urls_or_paths_does_not_block_what_else_is_logged(root, caplog):
    """MLflow takes names for paths, and refuses a whole batch for one that it can't: every later stage would wait behind it."""
    values = ["https://a.example/b", "a/./b", "../a", "a//..//b", "/"]
    with track(root) as run:
        run.log({f"tr_r1[site={value}]": 0.5 for value in values} | {"/x": 1.0, "..y": 2.0, "loss": 3.0})
    [found] = runs(root, "ingest")
    assert len(found.data.metrics) == len(values) + 3 and found.data.metrics["loss"] == 3.0 and not caplog.text


def test_ten_thousand_steps_are_sent_in_few_requests_and_none_is_lost(root, monkeypatch):
    from mlflow import MlflowClient

    sent, log_batch = [], MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **kwargs: sent.append(kwargs) or log_batch(*args, **kwargs))
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 3600.0)
    with track(root) as run:
        run.log({"first": 0.0})
        begun = len(sent)
        for step in range(10_000):
            run.log({"loss": 1.0}, step=step)
        assert len(sent) == begun  # they wait for the next flush
    assert 10 <= len(sent) - begun <= 20  # MLflow takes a thousand at once
    [child] = runs(root, "ingest")
    assert len(client(root).get_metric_history(child.info.run_id, "loss")) == 10_000


def test_figure_is_kept(root):
    from matplotlib.figure import Figure

    with track(root) as run:
        run.figure(Figure(), "plots/empty.png")
    [child] = runs(root, "ingest")
    assert [f.path for f in client(root).list_artifacts(child.info.run_id, "plots")] == ["plots/empty.png"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nonsense://x"])
def test_stage_goes_on_when_mlflow_cannot_be_reached(root, monkeypatch, caplog, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    caplog.set_level(logging.WARNING, "blip_core")
    done = False
    with track(root) as run:
        for step in range(100):
            run.log({"loss": 1.0}, step=step)
        run.tag("a", "b")
        run.artifact(root / "params.yaml")
        done = True
    assert done
    [warning] = [r.message for r in caplog.records if r.name == "blip_core.tracking.runs"]
    assert uri in warning and "goes on without" in warning


def test_metrics_wait_while_mlflow_is_away(root, monkeypatch, caplog):
    """A database that fails for a while in the middle of a training costs one warning and no metric."""
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "MAX_SHARE", 1e9)

    def rename(old, new):
        with closing(sqlite3.connect(root / "mlflow.db")) as database:
            database.execute(f"ALTER TABLE {old} RENAME TO {new}")

    with track(root) as run:
        run.log({"loss": 3.0}, step=0)
        rename("metrics", "away")
        run.log({"loss": 2.0}, step=1)
        run.log({"loss": 1.5}, step=2)
        rename("away", "metrics")
        run.log({"loss": 1.0}, step=3)
    [child] = runs(root, "ingest")
    assert [m.value for m in client(root).get_metric_history(child.info.run_id, "loss")] == [3.0, 2.0, 1.5, 1.0]
    assert len([r for r in caplog.records if r.name == "blip_core.tracking.runs"]) == 1


@contextmanager
def damaged(root):
    """MLflow can't be read meanwhile, as when its server is down."""
    whole = (root / "mlflow.db").read_bytes()
    (root / "mlflow.db").write_bytes(b"not a database" * 100)
    yield
    (root / "mlflow.db").write_bytes(whole)


def journals(root):
    return list((root / ".work/tracking").glob("*"))


def test_run_that_mlflow_never_saw_is_sent_by_the_next_stage(root):
    """Runs and metrics of a stage were lost for good when MLflow was away from its start to its end."""
    from matplotlib.figure import Figure

    before = int(time.time() * 1000)
    with damaged(root), pytest.raises(ValueError), track(root, "r1/caption", [Path("artifacts/generations/g0")], {"p": 0.9}) as run:
        for step in range(2500):
            run.log({"loss": 1.0 / (1 + step), "recall@1": 0.5}, step=step)
        run.tag("note", "yes")
        run.figure(Figure(), "plots/empty.png")
        run.artifact(root / "params.yaml")
        (root / "report").mkdir()
        (root / "report/page.html").write_text("page")
        run.artifact(root / "report")
        raise ValueError("no")
    after = int(time.time() * 1000)
    assert run.run_id is None and journals(root)
    with track(root, "r1/score"):
        pass
    [child], [parent] = runs(root, "caption@r1"), passes(root)
    history = client(root).get_metric_history(child.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 1.0 / (1 + step)) for step in range(2500)]
    assert all(before <= t <= after for t in (child.info.start_time, child.info.end_time, *(m.timestamp for m in history)))
    assert (child.info.status, parent.info.status, child.data.params) == ("FAILED", "FAILED", {"p": "0.9"})
    assert child.data.tags["note"] == "yes" and child.data.tags["error"] == "ValueError: no"
    assert {f.path for f in client(root).list_artifacts(child.info.run_id)} == {"plots", "params.yaml", "report"}
    assert child.inputs.dataset_inputs[0].dataset.digest == f"{DIGITS}.dir"
    assert journals(root) == []


def process(root, name, end):
    """A stage of a process of its own: it logs 100 steps, then does `end`."""
    code = (
        "# warm\nimport os, sys; from pathlib import Path; from blip_core.tracking.runs import stage_run\n"
        "with stage_run(sys.argv[1], stage='s', params={}, inputs=[], root=Path.cwd()) as run:\n"
        "    for step in range(100): run.log({'loss': 1.0}, step=step)\n"
        f"    {end}"
    )
    return subprocess.run([sys.executable, "-c", code, name]).returncode


def killed(root, name):
    assert process(root, name, "os.kill(os.getpid(), 9)") == -9


def test_run_of_a_killed_stage_is_closed_and_keeps_its_last_metrics(root):
    """It stood as RUNNING for ever, without what waited for the next flush."""
    killed(root, "r1/caption")
    assert runs(root, "caption@r1")[0].info.status == "RUNNING"
    with track(root, "r1/caption"):
        assert len(runs(root, "caption@r1")) == 2
    again, first = runs(root, "caption@r1")
    assert (first.info.status, again.info.status, passes(root)[0].info.status) == ("KILLED", "FINISHED", "FINISHED")
    assert [m.step for m in client(root).get_metric_history(first.info.run_id, "loss")] == list(range(100))


def test_what_is_kept_is_sent_by_a_command_too_even_to_a_new_database(root, database, monkeypatch, capsys):
    from blip_core.__main__ import main

    killed(root, "r1/caption")
    with damaged(root):
        assert main(["outbox"]) == 1 and "stays in" in capsys.readouterr().err
    shutil.copy(database, root / "mlflow.db")  # all that was in it is lost; what was not finished is not
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/other.db")
        assert main(["outbox"]) == 0 and f"0 runs sent to MLflow at sqlite:///{root}/other.db; more is kept for" in capsys.readouterr().out
    assert main(["outbox"]) == 0 and capsys.readouterr().out.startswith("1 run sent")
    [child] = runs(root, "caption@r1")
    assert (child.info.status, len(client(root).get_metric_history(child.info.run_id, "loss"))) == ("KILLED", 100)


def test_a_database_that_is_deleted_under_a_stage_is_noticed(root, database):
    """SQLite went on writing to the deleted file, and the run was gone with it."""
    assert process(root, "r1/caption", "os.remove('mlflow.db')") == 0
    assert len(journals(root)) == 1
    shutil.copy(database, root / "mlflow.db")
    with track(root, "r1/score"):
        pass
    [child] = runs(root, "caption@r1")
    assert (child.info.status, len(client(root).get_metric_history(child.info.run_id, "loss"))) == ("FINISHED", 100)


def test_what_was_cut_off_while_it_was_sent_counts_once(root):
    """Killed behind the sending and before it was marked, a journal is sent again."""
    with damaged(root), track(root, "r1/caption") as run:
        run.log({"loss": 1.0}, step=1)
    [path] = journals(root)
    text = path.read_bytes()
    for _ in range(2):
        path.write_bytes(text + b'\n{"metr')  # as a full disk cuts a record off
        with track(root, "r1/score"):
            pass
    [child] = runs(root, "caption@r1")
    assert len(client(root).get_metric_history(child.info.run_id, "loss")) == 1


def test_error_of_the_stage_is_not_hidden_by_one_of_mlflow(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="noise"), track(root, "r1/gate"):
        raise ValueError("noise")


def test_two_first_processes_make_one_schema_and_one_parent(empty):
    code = (
        "# warm\nimport sys; from pathlib import Path; from blip_core.tracking.runs import stage_run\n"
        "with stage_run(sys.argv[1], stage='s', params={}, inputs=[], root=Path.cwd()) as run: run.log({'x': 1.0})"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, f"r1/{n}"]) for n in ("a", "b")]
    assert [p.wait(HANG) for p in started] == [0, 0]
    [parent] = passes(empty)
    assert parent.info.status == "FINISHED"
    for name in ("a", "b"):
        [child] = runs(empty, f"{name}@r1")
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id and child.data.metrics == {"x": 1.0}


def test_of_several_training_processes_the_first_tracks(root, monkeypatch):
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with track(root) as run:
            run.log({"rank": float(rank)})
    [child] = runs(root, "ingest")
    assert child.data.metrics == {"rank": 0.0}


def test_name_without_a_parent_is_refused(root):
    with pytest.raises(ValueError, match="r1/caption"), track(root, "ingest/"):
        pass


def test_settings_are_flat_text():
    assert flatten({"a": {"b": {"c": 1.0e-3}}, "d": None, "e": True, "f": "x", "g": {}, "h": [0.9, 0.98]}) == {
        "a.b.c": "0.001",
        "d": "null",
        "e": "true",
        "f": "x",
        "g": "{}",
        "h": "[0.9, 0.98]",
    }


def test_md5s_come_from_both_files_of_dvc(root):
    assert dvc_md5s(root) == {
        "data": f"{MD5}.dir",
        "artifacts/generations/g0": f"{DIGITS}.dir",
        "artifacts/evaluations/g0": f"{MD5}.dir",
        "artifacts/evaluations/g1": f"{DIGITS}.dir",
        "artifacts/gates/g0.json": DIGITS,
    }


def test_without_dvc_and_git_nothing_is_known(tmp_path):
    assert dvc_md5s(tmp_path) == {}
    assert git_state(tmp_path) == {"git_rev": "", "git_dirty": ""}


def test_revision_is_dirty_by_code_and_not_by_dvc_lock(tmp_path):
    def git(*args):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "blip_core").mkdir()
    for name in ("blip_core/x.py", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "m")
    (tmp_path / "dvc.lock").write_text("2")
    clean = git_state(tmp_path)
    (tmp_path / "blip_core/new.py").write_text("untracked code decides results too")
    assert (len(clean["git_rev"]), clean["git_dirty"], git_state(tmp_path)["git_dirty"]) == (40, "false", "true")


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, blip_core.tracking.runs; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
