"""Outputs appear whole, and what a killed process left beside them goes when they are made again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip_core.files.atomic import clear_killed, new_file, new_folder, replace_folder


def test_an_output_appears_whole_or_not_at_all(tmp_path):
    for make, write in ((new_file, lambda p: p.write_text("new")), (new_folder, lambda p: (p / "x").write_text("new"))):
        with pytest.raises(KeyboardInterrupt), make(tmp_path / "out") as temporary:
            write(temporary)
            raise KeyboardInterrupt
        assert not list(tmp_path.iterdir())


def test_a_folder_that_could_not_be_replaced_stands_where_it_stood(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "taken away", tmp_path / "model")
    assert (tmp_path / "model/weights").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_goes_and_nothing_of_another_name(tmp_path):
    """kill -9 runs no `finally`: half a model would lie there for good."""
    (tmp_path / "_tmp.model.0123").mkdir()
    (tmp_path / "_tmp.model.0123/weights").write_text("half")
    others = ["model", "_tmp.model", "_tmp.models.0123", "_tmp.other.0123"]
    for name in [*others, "_tmp.[m].json.0123"]:
        (tmp_path / name).write_text("")
    clear_killed(tmp_path / "model", tmp_path / "[m].json", tmp_path / "nowhere/else")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)


def test_each_stage_clears_its_own_outputs(ingested, tmp_path):
    """By the command, as DVC runs it."""
    (tmp_path / "_tmp.gate.json.0123").write_text("half")
    flags = {"generation": ingested / "generations/g0", "heldout": ingested / "heldout", "shards": ingested / "shards"}
    flags |= {"out-gate": "gate.json", "out-decision": "d.json", "out-metrics": "m.json", "out-docs": "docs/validate"}
    params = Path(__file__).parents[2] / "params.yaml"
    command = [sys.executable, "-m", "blip_core", "stage", "validate", "--params", str(params), *(f"--{n}={v}" for n, v in flags.items())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "gate.json").read_text())["passed"] and not list(tmp_path.glob("_tmp.*"))
