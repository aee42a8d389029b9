"""Versions of generations in a real repository with a real DVC remote: listed, fetched, compared and brought back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blip_core.tables.captions import kept, read_tables
from blip_core.tables.manifest import content_hash
from blip_core.versions.generations import FOLDER, commits, known, resolve
from tests.support.processes import HANG, wait_until
from tests.support.team import NUM, change, commit, copy_team, done, refused, run, verb


@pytest.fixture
def project(team, tmp_path):
    """A copy to be changed; DVC's remote is shared."""
    return copy_team(team, tmp_path)


def kept_web(folder) -> list[str]:
    """Keys of the web texts that a model may train on, by pandas rather than by the code under test."""
    table = kept(read_tables(folder)).to_pandas()
    return sorted(table[table["source"] == "web"]["key"])


def test_every_version_is_listed_with_what_it_keeps(team):
    rows = {row["version"]: row for row in json.loads(verb("generations", "--json", cwd=team))}
    second = done("git", "rev-parse", "HEAD", cwd=team).strip()
    assert set(rows) == {"g0@ds/g1", "g1@ds/g1", f"g1@{second[:9]}"}
    first = rows["g1@ds/g1"]
    assert first["kept"] == {"web": 5, "human": 1, "synthetic": 3, "fused": 0} and first["gate"] == "passed" and not first["workspace"]
    now = rows[f"g1@{second[:9]}"]
    assert now["kept"] == {"web": 3, "human": 1, "synthetic": 3, "fused": 0} and now["rev"] == second and now["workspace"]
    assert rows["g0@ds/g1"]["kept"] == {"web": NUM, "human": 1, "synthetic": 0, "fused": 0} and rows["g0@ds/g1"]["gate"] == ""
    size = sum(p.stat().st_size for p in (team / "artifacts/generations/g1").iterdir())
    assert now["bytes"] == size
    table = verb("generations", cwd=team).splitlines()
    assert table[0].split()[:5] == ["version", "date", "web", "human", "synthetic"] and len(table) == 4


def test_a_version_that_no_commit_has_is_the_workspace_alone(project):
    change(project, web=0.9)
    done("dvc", "repro", "-q", "assemble", cwd=project)  # its gate has not been asked yet
    last = [v for v in known(project) if v.name == "g1"][-1]
    assert str(last) == "g1" and last.gate == ""
    assert json.loads(verb("generations", "--json", cwd=project))[-1]["kept"]["web"] == 0
    shutil.rmtree(project / ".git")
    assert [v.rev for v in known(project)] == ["", ""]


def test_history_counts_each_lock_once_and_walks_side_branches(project):
    done("git", "switch", "-qc", "side", "ds/g1", cwd=project)
    change(project, web=0.7)
    commit(project, "a try")
    done("git", "commit", "-q", "--allow-empty", "-m", "nothing", cwd=project)
    done("git", "switch", "-q", "main", cwd=project)
    assert len(commits(project)) == 3 and len([v for v in known(project) if v.name == "g1"]) == 3


def test_get_writes_the_very_version(team, tmp_path):
    told = verb("generations", "get", "g1@ds/g1", "--out", str(tmp_path / "old"), cwd=team)
    assert "g1@ds/g1" in told and kept_web(tmp_path / "old") == [f"web-{n}" for n in range(1, NUM)]
    gate = resolve("g1@ds/g1", team)
    assert gate.gate and sorted(p.name for p in (tmp_path / "old").iterdir()) == [
        "manifest.json",
        "train-0.parquet",
        "web-0.parquet",
        "web-1.parquet",
    ]
    assert "exists already" in refused("generations", "get", "g1@ds/g1", "--out", str(tmp_path / "old"), cwd=team)


def test_get_fetches_from_the_remote_and_says_when_nobody_has_it(project, tmp_path):
    md5 = resolve("g1@ds/g1", project).md5
    shutil.rmtree(project / ".dvc/cache")
    listed = json.loads(verb("generations", "--json", cwd=project))
    assert [row["kept"] for row in listed if row["md5"] == md5] == [None]
    assert "files are not on this machine" in verb("generations", cwd=project)
    verb("generations", "get", "g1@ds/g1", "--out", str(tmp_path / "old"), cwd=project)
    assert len(kept_web(tmp_path / "old")) == 5
    store = copy_store(project, tmp_path)
    shutil.rmtree(project / ".dvc/cache")
    for part in (store / "files/md5").iterdir():
        if not (part / f"{md5[2:]}").exists():
            shutil.rmtree(part)  # all but the list of its files
    message = refused("generations", "get", "g1@ds/g1", "--out", str(tmp_path / "lost"), cwd=project)
    assert "neither in DVC's cache" in message and "nor in its remote" in message and "dvc push" in message
    assert not (tmp_path / "lost").exists() and not list(tmp_path.glob("_tmp.*"))
    done("dvc", "remote", "remove", "store", cwd=project)
    assert "no remote is set" in refused("generations", "get", "g1@ds/g1", "--out", str(tmp_path / "lost"), cwd=project)


def copy_store(project, folder):
    """A remote of its own for this project."""
    url = done("dvc", "remote", "list", cwd=project).split()[1]
    store = shutil.copytree(url, folder / "store")
    done("dvc", "remote", "modify", "store", "url", str(store), cwd=project)
    return store


def test_a_damaged_cache_is_not_passed_on(project, tmp_path):
    from blip_core.versions.cache import open_cache

    with open_cache(project) as cache:
        path = cache.files(resolve("g1@ds/g1", project).md5)["web-0.parquet"]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert "is damaged" in refused("generations", "get", "g1@ds/g1", "--out", str(tmp_path / "old"), cwd=project)
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize(
    "spec,told",
    [("g1@nowhere", "git knows no revision 'nowhere'"), ("g7@ds/g1", "has no generation 'g7'; it has g0, g1"), ("g1@bare", "no dvc.lock")],
)
def test_what_is_not_there_is_said_plainly(project, spec, told):
    done("git", "switch", "-q", "--orphan", "bare", cwd=project)
    done("git", "commit", "-q", "--allow-empty", "-m", "x", cwd=project)
    assert told in refused("generations", "get", spec, "--out", "out", cwd=project)


def test_diff_names_the_texts(team):
    found = json.loads(verb("generations", "diff", "g1@ds/g1", "g1", "--json", cwd=team))
    none = {"added": 0, "dropped": 0, "changed": 0}
    assert found["sources"]["web"] == {**none, "before": 5, "after": 3, "dropped": 2, "unchanged": 3}
    assert found["sources"]["synthetic"] == {**none, "before": 3, "after": 3, "unchanged": 3}
    assert {"source": "web", "before": "kept", "after": "below_threshold", "texts": 2} in found["decisions"]
    assert sorted(row["key"] for row in found["examples"]["dropped"]) == ["web-1", "web-2"]
    told = verb("generations", "diff", "artifacts/generations/g0", "g1", "--examples", "1", cwd=team)
    assert told.count("a drawing of") == 1 and "kept -> below_threshold" in told and "added, for example:" in told


def test_rollback_brings_everything_back_and_its_undo_works(project):
    now = content_hash(project / "artifacts/generations/g1")
    told = verb("generations", "rollback", "g1@ds/g1", cwd=project)
    assert kept_web(project / "artifacts/generations/g1") == [f"web-{n}" for n in range(1, NUM)]
    assert run("dvc", "repro", "--dry", cwd=project).stdout.count("Running stage") == 0, "nothing is to be made anew"
    assert done("git", "diff", "--cached", "--name-only", cwd=project).split() == ["dvc.lock", "params.yaml"]
    undo = next(line.removeprefix("undo it:").strip() for line in told.splitlines() if line.startswith("undo it:"))
    done("bash", "-c", undo, cwd=project)
    assert content_hash(project / "artifacts/generations/g1") == now
    assert done("git", "status", "--porcelain", cwd=project) == ""


@pytest.mark.slow
def test_rollback_says_what_other_code_would_run_again_and_takes_the_code_back_on_request(project):
    (project / "team_stages.py").write_text((project / "team_stages.py").read_text() + "# newer\n")
    commit(project, "newer code")
    told = verb("generations", "rollback", "g1@ds/g1", cwd=project)
    assert "would run 1 stages anew: ingest" in told and "--code" in told
    done("git", "reset", "-q", "--hard", cwd=project)
    done("dvc", "checkout", "-q", cwd=project)
    assert "anew" not in verb("generations", "rollback", "g1@ds/g1", "--code", cwd=project)
    assert "# newer" not in (project / "team_stages.py").read_text() and len(kept_web(project / "artifacts/generations/g1")) == 5


@pytest.mark.slow
def test_rollback_goes_behind_the_day_from_which_dvc_keeps_an_output(project):
    """registration.json was `cache: false` once, so neither cache nor remote has that of then."""
    from blip_core.versions.cache import open_cache

    path = project / "dvc.yaml"
    path.write_text(path.read_text().replace("{cache: false}", "{persist: true}"))
    commit(project, "DVC keeps the registration")
    with open_cache(project) as cache:
        cache.path(resolve("g1@ds/g1", project).lock["register"].outs["artifacts/registration.json"]).unlink(missing_ok=True)
    verb("generations", "rollback", "g1@ds/g1", cwd=project)
    assert kept_web(project / "artifacts/generations/g1") == [f"web-{n}" for n in range(1, NUM)]


@pytest.mark.slow
def test_rollback_refuses_what_would_lose_work(project):
    lock = (project / "dvc.lock").read_text()
    change(project, web=0.9)
    done("dvc", "repro", "-q", cwd=project)
    message = refused("generations", "rollback", "g1@ds/g1", cwd=project)
    assert "not committed" in message and "dvc.lock" in message
    done("git", "restore", ".", cwd=project)
    done("dvc", "checkout", "-q", cwd=project)
    note = project / "artifacts/generations/g1/note.txt"
    note.write_text("mine")
    message = refused("generations", "rollback", "g1@ds/g1", cwd=project)
    assert "the workspace is as it was" in message and note.read_text() == "mine" and (project / "dvc.lock").read_text() == lock
    assert done("git", "status", "--porcelain", cwd=project) == ""
    note.unlink()
    copy_store(project, project.parent)
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(project.parent / "store")
    message = refused("generations", "rollback", "g1@ds/g1", cwd=project)
    assert "neither in DVC's cache nor in its remote" in message and (project / "dvc.lock").read_text() == lock
    assert "name a revision" in refused("generations", "rollback", "g1", cwd=project)


def test_rollback_waits_for_no_running_stage_but_refuses(project):
    """`dvc checkout` alone would change the data under it."""
    code = (project / "team_stages.py").read_text()
    (project / "team_stages.py").write_text(code.replace("def gate():", "def gate():\n    Path('began').touch(); sys.stdin.read()"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["dvc", "repro", "-q", "-f", "-s", "gate"]
    running = subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PATH": path})
    try:
        wait_until(lambda: (project / "began").exists() or running.poll() is not None)
        assert "is busy" in refused("generations", "rollback", "g1@ds/g1", cwd=project)
        assert done("git", "status", "--porcelain", "--", "dvc.lock", cwd=project) == "" and len(kept_web(project / FOLDER / "g1")) == 3
    finally:
        running.stdin.close()
        assert running.wait(HANG) == 0


def test_values_that_no_longer_fit_the_code_need_the_code(project):
    done("git", "switch", "-qc", "old", "ds/g1", cwd=project)
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "gone: 1\n")
    done("git", "commit", "-qam", "an old key", cwd=project)
    done("git", "switch", "-q", "main", cwd=project)
    message = refused("generations", "rollback", "g1@old", cwd=project)
    assert "gone: unknown key" in message and "--code" in message
    assert done("git", "status", "--porcelain", cwd=project) == ""
