"""The examples run as they stand, in a folder where no chain has run: the first draws the tiny world, the others look at it."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clone")


@pytest.fixture
def run(folder, monkeypatch):
    """What a script's names stand for at its end."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_look_at_a_generation(run, capsys):
    found = run("look_at_a_generation.py")
    said = capsys.readouterr().out
    assert "kept is what has match of at least" in said and "below_threshold" in said
    assert (found["kept"]["source"] != "").all() and set(found["dropped"]["reason"]) == {"below_threshold"}
    assert found["picture"].size == (48, 48)


def test_try_a_model(run):
    found = run("try_a_model.py")
    assert len(found["captions"]) == 20 and all(found["captions"])
    assert found["scores"].itm.shape == (20, 3) and found["similarity"].shape == (20, 100)


def test_every_example_is_tested():
    assert {p.name for p in EXAMPLES.glob("*.py")} == {"tiny_world.py", "look_at_a_generation.py", "try_a_model.py"}
