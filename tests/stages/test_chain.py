"""The whole chain on tiny data, through DVC as a user drives it: from raw files to a registered version.

Of its two rounds the second is not run: nothing that so small a model gains is beyond an interval so wide.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.compute as pc
import pytest
import yaml

from blip_core.tables.captions import read_tables
from tests.support.small import small_values
from tests.support.whole_chain import project_at, run, run_chain

ROOT = Path(__file__).parents[2]


def change(folder: Path, section: str, **values) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def ran(done: subprocess.CompletedProcess) -> list[str]:
    """Stages that DVC ran."""
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def project(tmp_path_factory, database) -> Path:
    """A copy of the project with small parameters, its chain run once."""
    folder = tmp_path_factory.mktemp("project")
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    del values["models"]["human"]
    values["rounds"]["r2"] = {"base": "g1", "model": "g1", "next": "g2", "labels": "labels/r2"}
    values["models"]["g2"] = {"generation": "g2", "sources": "human,web,synthetic", "round": "r2"}
    values |= {"challenger": "g2", "decide": values["decide"] | {"confidence": 0.9999}}
    project_at(folder, values | {"baselines": "g0"})
    with (folder / "blip_core/training/objectives.py").open("a") as code:
        code.write("\n# not committed\n")
    shutil.copy(database, folder)
    run_chain(folder)
    return folder


def test_a_second_run_has_nothing_to_do(project):
    done = run("dvc", "repro", cwd=project)
    assert done.returncode == 0 and not ran(done)


def test_rounds_stop_where_one_brought_nothing_and_the_chain_comes_to_its_end(project):
    """The stages of r2 leave placeholders, and the newest model that was trained is compared and registered."""
    artifacts = project / "artifacts"
    decision = json.loads((artifacts / "decisions/g1.json").read_text())
    assert decision["go_on"] is False and "99.99% intervals" in decision["stopped"]
    left = {"stopped": decision["stopped"]}
    for name in ("rounds/r2/captioner", "rounds/r2/captions", "rounds/r2/scores", "generations/g2", "models/g2", "evaluations/g2"):
        assert [p.name for p in (artifacts / name).iterdir()] == ["stopped.json"]
    for name in ("metrics/gate-r2.json", "gates/g2.json", "decisions/g2.json", "rounds/r2/calibration.json"):
        assert json.loads((artifacts / name).read_text()) == left
    verdict = json.loads((artifacts / "compare.json").read_text())
    assert (verdict["challenger"], verdict["asked"]) == ("g1", "g2") and decision["stopped"] in verdict["instead_because"]
    table = (artifacts / "report/table.txt").read_text()
    assert "so r2 did not follow." in table and "Not trained because of it: g2." in table and "g1 (challenger)" in table
    assert not (project / ".work/times/r2").exists()
    listed = run("python", "-m", "blip_core", "generations", cwd=project).stdout.splitlines()
    assert listed[-1].split()[0] == "g2" and "not run" in listed[-1]


def test_the_report_tells_what_the_stages_cost_and_is_not_stale_for_it(project):
    """Times are no output that DVC tracks, so a stage that ran anew at the same result makes no new report."""
    table = (project / "artifacts/report/table.txt").read_text()
    assert "WHERE THE TIME WENT" in table and all(f"\n{run} " in table for run in ("base/ingest", "base/pretrain-g0", "r1/score"))
    assert "base/report " in run("python", "-m", "blip_core", "times", cwd=project).stdout
    cost = project / ".work/times/r1/assemble.json"
    cost.write_text(cost.read_text().replace('"seconds": ', '"seconds": 9'))
    assert run("dvc", "status", cwd=project).stdout.startswith("Data and pipelines are up to date")


def test_the_next_generation_holds_every_candidate_with_its_decision(project):
    """No text is lost: human rows are kept as they were, every web text and one caption per image stand in g1 with a reason."""
    base, following = (read_tables(project / "artifacts/generations" / g) for g in ("g0", "g1"))

    def texts(table, source: str) -> list[tuple[str, str]]:
        chosen = table.filter(pc.equal(table["source"], source))
        return sorted(zip(chosen["key"].to_pylist(), chosen["text"].to_pylist(), strict=True))

    assert texts(base, "web") == texts(following, "web") and texts(base, "human") == texts(following, "human")
    assert [k for k, _ in texts(following, "synthetic")] == [k for k, _ in texts(base, "web")]
    synthetic = following.filter(pc.equal(following["source"], "synthetic"))
    assert all(synthetic["model"].to_pylist()) and not synthetic["match"].null_count
    assert set(synthetic["sampler"].to_pylist()) == {"nucleus p=0.9"} and set(synthetic["round"].to_pylist()) == {"r1"}
    assert set(following["reason"].to_pylist()) <= {
        "kept",
        "below_threshold",
        "missing_text",
        "duplicate",
        "empty",
        "marks",
        "loop",
        "truncated",
        "overused",
    }


def test_a_clone_that_pulls_has_nothing_to_do(project, tmp_path):
    clone, store = tmp_path / "clone", tmp_path / "store"
    for command in (("remote", "add", "--local", "store", store), ("push", "-q", "-r", "store"), ("remote", "remove", "--local", "store")):
        assert run("dvc", *command, cwd=project).returncode == 0
    assert run("git", "clone", "-q", project, clone, cwd=tmp_path).returncode == 0
    for name in ("dvc.lock", "data.dvc", "blip_core/training/objectives.py"):  # as if they were committed
        shutil.copy(project / name, clone / name)
    assert run("dvc", "remote", "add", "-d", "store", store, cwd=clone).returncode == 0
    assert run("dvc", "pull", "-q", cwd=clone).returncode == 0
    assert run("dvc", "status", cwd=clone).stdout.startswith("Data and pipelines are up to date")
    done = run("dvc", "repro", cwd=clone)
    assert done.returncode == 0 and not ran(done)


def test_metrics_and_plots_speak(project):
    shown = json.loads(run("dvc", "metrics", "show", "--json", cwd=project).stdout)[""]["data"]
    assert 0 <= shown["artifacts/summary/verdict.json"]["data"]["tr_r1"] <= 1
    assert {"rejected_by_filter", "coverage", "texts"} <= shown["artifacts/summary/r1.json"]["data"].keys()
    assert max(map(len, run("dvc", "metrics", "show", cwd=project).stdout.splitlines())) < 140
    plots = json.loads(run("dvc", "plots", "show", "--json", cwd=project).stdout)
    assert len(plots["data"]) == 4 and all(plots["data"].values())
    assert [e["source"] for e in plots["errors"]] == ["artifacts/history/pretrain-human.csv"]  # this project has no such model


def test_the_version_is_registered_and_captions_a_file(project):
    registration = json.loads((project / "artifacts/registration.json").read_text())
    code = (
        "# warm\nimport glob, json, mlflow, pandas; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        f"model = mlflow.pyfunc.load_model('models:/{registration['name']}@challenger');"
        "image = sorted(glob.glob('data/clean/images/*.jpg'))[0];"
        "print(json.dumps(list(model.predict(pandas.DataFrame({'image': [image]}))[0]['captions'])))"
    )
    done = run("python", "-c", code, cwd=project)
    assert done.returncode == 0, done.stderr[-2000:]
    (caption,) = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(caption, str) and len(caption.split()) >= 3


def test_a_version_says_what_made_it_and_a_text_which_models_saw_it(project):
    found = json.loads(run("python", "-m", "blip_core", "lineage", "blip/1", "--json", cwd=project).stdout)
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    md5s = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    revision = run("git", "rev-parse", "HEAD", cwd=project).stdout.strip()
    assert found["code"] == {"git_rev": revision, "dirty": True} and found["model"]["dvc_stage"] == "pretrain@g1"
    assert found["generation"]["dvc_md5"] == md5s["artifacts/generations/g1"] and found["shards"]["dvc_md5"] == md5s["artifacts/shards"]
    assert found["data"]["dvc_md5"] == yaml.safe_load((project / "data.dvc").read_text())["outs"][0]["md5"]
    scores = json.loads((project / "artifacts/rounds/r1/scores/manifest.json").read_text())
    captions = json.loads((project / "artifacts/rounds/r1/captions/manifest.json").read_text())
    assert (found["filter"], found["captioner"]) == (scores["filters"][0], captions["captioners"][0])
    assert found["params"] == yaml.safe_load((project / "params.yaml").read_text())
    assert found["gate"]["result"] == "passed" and len(found["gate"]["checks"]) > 20 and found["baseline_tests"]["g0"]["cider"]["low"]
    assert {"pretrain@g0", "pretrain@g1", "score@r1"} <= found["runs"].keys() and found["registered"]["by"] == "Ann <ann@example.org>"
    assert [step["stage"] for step in found["stages"]][-2:] == ["gate@r1", "pretrain@g1"]

    table = read_tables(project / "artifacts/generations/g1")
    dropped = table.filter(pc.and_(pc.equal(table["source"], "web"), pc.equal(table["reason"], "below_threshold"))).to_pylist()
    key = dropped[0]["key"] if dropped else "web-000000003"
    told = json.loads(run("python", "-m", "blip_core", "lineage", "--caption", key, "--json", cwd=project).stdout)
    first, second = told["generations"]
    assert first["texts"][0]["models"] == ["artifacts/models/g0"]
    for row in second["texts"]:
        assert [model.split()[0] for model in row["models"]] == (["artifacts/models/g1", "blip/1"] if row["reason"] == "kept" else [])


def test_a_version_is_rebuilt_bit_by_bit_with_the_command_that_lineage_prints(project, tmp_path):
    """Its code was never committed: the version itself keeps it."""
    told = run("python", "-m", "blip_core", "lineage", "blip/1", cwd=project).stdout
    command = told.splitlines()[-1].removeprefix("rebuild it: ").split()
    out = tmp_path / "rebuilt"
    done = run(*command[:-1], str(out), cwd=project)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "the weights are equal" in done.stdout and ran(done) == ["pretrain@g1"]
    weights = [(folder / "artifacts/models/g1/model.safetensors").read_bytes() for folder in (project, out)]
    assert weights[0] == weights[1]
    assert run("git", "status", "--porcelain", "--", "dvc.lock", cwd=project).stdout == "?? dvc.lock\n", "the project itself is left alone"


def test_a_rebuild_stops_before_training_when_the_revision_holds_other_code(project, tmp_path):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    client.set_model_version_tag("blip", "1", "git_dirty", "false")  # so the committed code is taken for that of the version
    try:
        done = run("python", "-m", "blip_core", "rebuild", "blip/1", "--out", str(tmp_path / "rebuilt"), cwd=project)
    finally:
        client.set_model_version_tag("blip", "1", "git_dirty", "true")
    assert done.returncode == 1 and "is not what made it: blip_core/training (modified)" in done.stderr and not ran(done)


def test_a_misspelt_key_stops_every_verb_with_its_place(project):
    params = (project / "params.yaml").read_text()
    try:
        (project / "params.yaml").write_text(params.replace("threshold:", "treshold:"))
        done = run("python", "-m", "blip_core", "params", cwd=project)
    finally:
        (project / "params.yaml").write_text(params)
    assert done.returncode == 1 and "assemble.treshold: unknown key; did you mean 'threshold'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_data_folder_is_said_plainly(project):
    os.rename(project / "data", project / "elsewhere")
    try:
        flags = [f"--out-{n}={n}" for n in ("shards", "generation", "heldout", "metadata", "vocab", "quarantine", "metrics")]
        done = run("python", "-m", "blip_core", "stage", "ingest", "--data", "data", *flags, cwd=project)
    finally:
        os.rename(project / "elsewhere", project / "data")
    assert done.returncode == 1 and "data" in done.stderr and "blip sample" in done.stderr and "Traceback" not in done.stderr


def test_a_new_threshold_scores_nothing_anew_and_an_impossible_gate_stops_before_training(project):
    """One run shows both: assemble and gate run, the slow stages do not; the gate fails, so nothing is trained or promoted on it."""
    registration = (project / "artifacts/registration.json").read_text()
    change(project, "assemble", threshold={"web": 0.35, "synthetic": 0.3})
    change(project, "gate", max_residual_noise=0.0)
    done = run("dvc", "repro", cwd=project)
    # describe decides nothing, so that it may run before the gate or not at all
    assert done.returncode != 0 and [stage for stage in ran(done) if stage != "describe@r1"] == ["assemble@r1", "gate@r1"]
    assert "residual_noise_web_upper" in done.stderr and "expected at most 0" in done.stderr and "Traceback" not in done.stderr
    assert not (project / "artifacts/gates/g1.json").exists()
    assert (project / "artifacts/registration.json").read_text() == registration
    assert (project / "artifacts/docs/gate-r1/index.html").exists()
    told = ("The page artifacts/interim/index.html shows", "blip review artifacts/generations/g1", "blip explain KEY --generation")
    assert all(words in done.stderr for words in told)
    table = (project / "artifacts/interim/table.txt").read_text()
    assert "FAILED: GATE@R1" in table and "residual_noise_web_upper" in table and "g0 (baseline)" in table
    assert "g1 (challenger)" not in table and "DID IT HELP?" not in table, "those are of the generation before"
    assert (project / "artifacts/report/review-r1.html").exists(), "what people judge on stays"
