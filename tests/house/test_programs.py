"""Every program of the repository shows its help and refuses a flag that it does not know, and does nothing else at either."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def programs(folder: str) -> list[Path]:
    """Found by looking, so that none is forgotten."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if '__name__ == "__main__"' in path.read_text())


def test_there_are_programs():
    assert {p.stem for p in programs("flows")} >= {"announce", "ask", "bootstrap"} and len(programs("benchmarks")) > 10
    assert not programs("mlflow")  # MLflow runs serve.py, people do not


@pytest.mark.parametrize("program", [p.stem for p in programs("flows")])
@pytest.mark.parametrize("flag", ["--help", "--revison=HEAD"])
def test_a_program_of_the_flow_does_nothing_for_help_or_a_flag_that_it_does_not_know(program, flag, tmp_path):
    """No server answers at that address, so a program that asked for anything would say so."""
    env = HERE | {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = subprocess.run([sys.executable, "-m", f"flows.{program}", flag], cwd=tmp_path, env=env, capture_output=True, text=True)
    if flag == "--help":
        assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m flows.{program}") and not done.stderr
    else:
        assert done.returncode == 2 and done.stderr.startswith(f"usage: python -m flows.{program}")
    assert "127.0.0.1:1" not in done.stdout + done.stderr and list(tmp_path.iterdir()) == []


# each in a fork of one process that has imported what takes long
IN_FORKS = """
import os, runpy, sys
import torch, blip_core.stages.score

for program in sys.argv[1:]:
    if not (pid := os.fork()):
        sys.argv = [program, "--no-such-flag"]
        sys.path.insert(0, os.path.dirname(program))
        runpy.run_path(program, run_name="__main__")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), program, flush=True)
"""


@pytest.mark.slow  # imports all that the benchmarks need, for what seldom changes
def test_no_benchmark_or_example_starts_at_a_flag_that_it_does_not_know(tmp_path):
    asked = [*programs("benchmarks"), *programs("docs/examples")]
    command = [sys.executable, "-c", IN_FORKS, *map(str, asked)]
    done = subprocess.run(command, cwd=tmp_path, env=HERE, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"2 {path}" for path in asked], done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []
