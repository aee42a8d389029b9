"""A profile tells the parts of real work by the clock, leaves a trace that can be read, and no hook behind it."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blip_core.cli.parser import below, make_parser
from blip_core.preview.made_up import STAGE_2
from blip_core.preview.profile import PROFILED, TRACED, TRAININGS, profile
from tests.support.small import small_params

ROOT = Path(__file__).parents[2]
PARTS = {True: ["data", "momentum, zero_grad", "forward", "backward, clipping", "optimizer", "rest"]}
PARTS[False] = ["data", "pixels", "image encoder", "words"]


def ranges(folder: Path, what: str) -> list[dict]:
    with gzip.open(folder / f"{what}.trace.json.gz") as f:
        return [e for e in json.load(f)["traceEvents"] if e.get("cat") == "user_annotation"]


@pytest.mark.parametrize(("what", "real"), [*((what, True) for what in PROFILED if what != STAGE_2), ("pretrain", False), ("score", False)])
def test_the_parts_of_a_step_make_up_its_time(ingested, tmp_path, what, real):
    text = profile(what, small_params(), artifacts=ingested if real else None, steps=2, batch_size=8, out=tmp_path)
    assert text.startswith(f"{what}: 8 images a step") and ("made-up" in text) == (not real)
    rows = {m[1].strip(): float(m[2]) for m in re.finditer(r"(?m)^(.{20}) +([\d.]+) +[\d.]+% +[\d.]+$", text.split("\n\n")[1])}
    assert list(rows) == [*PARTS[what in TRAININGS], "sum"]
    assert sum(rows.values()) == pytest.approx(2 * rows["sum"], abs=0.5)
    assert rows["forward" if what in TRAININGS else "words"] > 0
    assert (tmp_path / f"{what}.txt").read_text() == text + "\n"
    seen = [e["name"] for e in ranges(tmp_path, what) if e["name"] in rows]
    assert all(seen.count(part) >= TRACED for part in PARTS[what in TRAININGS])
    assert "addmm" in text, "the operators are listed"


def test_nothing_watches_a_training_behind_the_profile(tmp_path):
    from torch.optim import optimizer

    before = [len(hooks) for hooks in (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)]
    profile("tune_captioner", small_params(), artifacts=None, steps=1, batch_size=4, out=tmp_path)
    assert [len(hooks) for hooks in (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)] == before
    assert not torch.autograd._profiler_enabled()


def test_the_verb_prints_the_profile(tmp_path):
    command = [sys.executable, "-m", "blip_core", "profile", "caption", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"trace: {tmp_path / 'caption.trace.json.gz'}" in done.stdout and "words" in done.stdout


def test_the_verb_takes_all_that_can_be_profiled():
    """It has names of its own, since the module takes seconds to import."""
    profiled = below(make_parser("blip", stages=[]))["profile"]
    [what] = [action for action in profiled._actions if action.dest == "what"]
    assert set(what.choices) == set(PROFILED)


def test_what_can_not_be_profiled_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no generations/g0; run `dvc repro validate`"):
        profile("caption", small_params(), artifacts=tmp_path, steps=1, batch_size=None, out=tmp_path)
    with pytest.raises(ValueError, match="--steps 0 .* expected 1 step"):
        profile("caption", small_params(), artifacts=None, steps=0, batch_size=None, out=tmp_path)
