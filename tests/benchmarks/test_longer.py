"""Arms over long trainings: what they run are stages with their own flags, and they spend alike."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from blip_core.cli.parser import make_parser
from blip_core.config.params import load_params
from blip_core.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def longer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/truth"))
    import longer

    yield longer
    sys.modules.pop("longer")


def test_every_arm_asks_stages_for_what_they_have_and_all_spend_alike(longer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(longer, "subprocess", SimpleNamespace(run=lambda command, **_: asked.append(command)))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    arms = {name: longer.Arm(tmp_path, tmp_path / "out", name, 2000) for name in longer.BEFORE}
    parser, stages = make_parser("blip", stages=STAGES), {}
    for name, arm in arms.items():
        arm.run()
        told = [command[3:] for command in asked if command[2] == "blip_core"]
        for words in told:
            parser.parse_args(words)
        stages[name] = [words[1] for words in told]
        asked.clear()
    ends = ["pretrain", "evaluate"]
    assert stages == {"long": ends, "F": ["assemble", "gate", *ends], "CF": ends, "oracle": ends}
    steps = {name: load_params(arm.params).pretrain.optim.steps for name, arm in arms.items()}
    assert {steps[name] + longer.BEFORE[name] for name in arms} == {2000} and steps["long"] > steps["F"] > steps["CF"]
    assert load_params(arms["F"].params).assemble.sources == ("web",)
