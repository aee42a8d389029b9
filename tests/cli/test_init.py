"""A project without a clone: what `blip init` writes, and that the wheel of this repository runs its chain."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from blip_core.cli.init import project_files
from blip_core.cli.main import main
from blip_core.preview.regime import MAP
from blip_core.runtime import installed
from blip_core.stages import STAGES
from flows.graph import read_graph
from tests.support.small import small_values

ROOT = Path(__file__).parents[2]
NOTED = "artifacts/version.json"
TOP_FILES = "pyproject.toml setup.py README.md LICENSE dvc.yaml params.yaml prefect.yaml .dvcignore .gitignore".split()


def is_code(dep: str) -> bool:
    return dep.startswith(("blip_core/", "mlflow/"))


def test_the_chain_is_that_of_the_repository_but_for_its_code():
    """Where a stage watches code here, it watches the package there; nothing else differs."""
    theirs = yaml.safe_load(project_files()["dvc.yaml"])["stages"]
    assert theirs.pop("version")["outs"] == [NOTED]
    ours = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ours.values():
        body = stage.get("do", stage)
        assert any(map(is_code, body["deps"]))
        body["deps"] = [NOTED, *(dep for dep in body["deps"] if not is_code(dep))]
    assert theirs == ours and list(theirs) == list(ours)


def test_deployments_are_of_flows_that_can_be_imported():
    from prefect.flows import load_flow_from_entrypoint

    made = yaml.safe_load(project_files()["prefect.yaml"])["deployments"]
    assert {load_flow_from_entrypoint(each["entrypoint"]).name for each in made} == {"bootstrap", "approve", "stage"}


def test_each_folder_that_people_fill_is_there():
    files = project_files()
    wanted = {each["labels"] for each in yaml.safe_load(files["params.yaml"])["rounds"].values()}
    assert wanted | {"columns", "frozen"} == {str(Path(name).parent) for name in files if name.endswith(".gitkeep")} and wanted


def test_a_project_is_begun_once_and_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "crawl"]) == 0
    told = capsys.readouterr().out
    assert all(step in told for step in ("cd crawl", "git init", "blip sample --out data", "dvc repro"))
    written = {str(p.relative_to("crawl")): p.read_text() for p in Path("crawl").rglob("*") if p.is_file()}
    assert written == project_files()
    shutil.rmtree("crawl/.dvc")
    Path("crawl/params.yaml").write_text("mine")
    assert main(["init", "crawl"]) == 1
    told = capsys.readouterr().err
    assert "dvc.yaml" in told and "labels" in told and ".dvc," not in told
    assert Path("crawl/params.yaml").read_text() == "mine" and not Path("crawl/.dvc").exists()
    assert main(["init", "crawl/params.yaml"]) == 1 and "no folder" in capsys.readouterr().err


def test_a_folder_with_other_things_becomes_a_project(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "README.md").write_text("mine")
    told = subprocess.run(
        [sys.executable, "-m", "blip_core", "init", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "git init" not in told and (tmp_path / "README.md").read_text() == "mine"
    stages = set(STAGES) - {"tune_task", "evaluate_task", "register_task"} | {"version"}
    assert stages == {name.split("@")[0] for name in read_graph(tmp_path)}
    assert not list(tmp_path.glob("_tmp.*"))


def test_another_version_and_other_code_are_told_apart(monkeypatch, tmp_path):
    first = installed.installed()
    package = tmp_path / "blip_core"
    shutil.copytree(installed.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(installed, "PACKAGE", package)
    monkeypatch.setattr(installed, "PACKED", ROOT)  # the served script, as a wheel has it within
    assert installed.installed() == first
    (package / "training/loop.py").write_text("# other code\n")
    assert installed.installed()["code"] != first["code"]
    monkeypatch.setattr(installed, "version_of", lambda name: "9.9")
    assert installed.installed()["version"] == "9.9" != first["version"]


def test_a_stage_does_not_run_with_another_package_than_the_chain_has_noted(tmp_path, monkeypatch, capsys):
    """`dvc repro -s`, a worker elsewhere or a rebuild would pass its outputs off as those of the noted one."""
    monkeypatch.chdir(tmp_path)
    needed = (f"--{name}=x" for name in ("evaluation", "base", "measured", "base-measured", "out", "out-metrics"))
    flags = ["stage", "decide", *needed, f"--params={ROOT / 'params.yaml'}"]
    assert main(["version", "--out", NOTED]) == 0
    assert main(flags) == 1 and "is installed" not in capsys.readouterr().err  # but that x is missing
    noted = json.loads(Path(NOTED).read_text())
    Path(NOTED).write_text(json.dumps(noted | {"version": "9.9"}))
    assert main(flags) == 1
    told = capsys.readouterr().err
    assert "blip-bootstrap 9.9" in told and f"blip-bootstrap {noted['version']}" in told and "dvc repro version" in told


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a source distribution of this repository, as an index would have it: each must hold what the next one needs."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("blip_core", "flows", "mlflow", ".dvc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache", "*.local"))
    for name in TOP_FILES:
        shutil.copy(ROOT / name, source)
    (source / MAP).parent.mkdir(parents=True)
    shutil.copy(ROOT / MAP, source / MAP)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    subprocess.run([sys.executable, "-c", build, "build_sdist", str(folder)], cwd=source, check=True, capture_output=True)
    shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run([sys.executable, "-c", build, "build_wheel", str(folder)], cwd=unpacked, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs a command with the wheel in an environment of its own, which sees the packages here, but not this checkout."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "those_here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = home / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}

    def run_(*command: str, cwd: Path) -> str:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    return run_


@pytest.mark.slow
def test_the_wheel_runs_the_chain_in_a_project_of_its_own(run, tmp_path):
    run("blip", "init", "crawl", cwd=tmp_path)
    project = tmp_path / "crawl"
    served = "from blip_core.runtime.installed import *; print(PACKAGE, repository_file(SERVED))"
    assert all("site-packages/blip_core" in path for path in run("python", "-c", served, cwd=project).split())
    find = "from importlib.util import find_spec; print(find_spec('mlflow').origin)"
    assert run("python", "-c", find, cwd=project).strip() == find_spec("mlflow").origin  # the library, not a folder of ours
    values = small_values(yaml.safe_load((project / "params.yaml").read_text()))
    values["sample"] |= {"num_web": 30, "num_train": 10, "num_val": 6, "num_test": 6}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    run("git", "init", "-q", cwd=project)
    run("blip", "sample", "--out", "data", cwd=project)
    assert "Running stage 'ingest'" in run("python", "-m", "dvc", "repro", "ingest", cwd=project)
    noted = json.loads((project / NOTED).read_text())
    assert noted == installed.installed()  # the same code is the same in a wheel and in a checkout
    again = run("python", "-m", "dvc", "repro", "ingest", cwd=project)
    assert "Running stage 'version'" in again and "Stage 'ingest' didn't change" in again
