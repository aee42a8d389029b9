"""Placeholders of what was not made: every stage can leave them, every reader that meets one says why."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from blip_core.__main__ import main
from blip_core.config.params import load_params
from blip_core.explain.history import history
from blip_core.explain.image import explain
from blip_core.export.data import export
from blip_core.review.choose import read_rule
from blip_core.selection.calibration import read_calibrations
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import read_manifest
from blip_core.tables.stopped import stopped, write_stopped
from blip_core.weights.checkpoint import load_model

ROOT = Path(__file__).parents[2]
REASON = "on val no gain of g1 over g0 is beyond its interval"


@pytest.fixture
def artifacts(tmp_path):
    """Round r2 as it stands where r1 brought nothing."""
    names = ("decisions/g2.json", "gates/g2.json", "rounds/r2/calibration.json", "rounds/r2/captioner", "models/g2", "generations/g2")
    for name in names:
        write_stopped(REASON, tmp_path / "artifacts" / name)
    return tmp_path / "artifacts"


def test_only_placeholders_are_taken_for_such(tmp_path):
    for name, text in (("a.json", '{"go_on": true}'), ("b.json", "[1]"), ("c.json", '"stopped"'), ("d.json", "{"), ("e.txt", "x")):
        (tmp_path / name).write_text(text)
        assert stopped(tmp_path / name) is None
    assert stopped(tmp_path / "nothing") is None and stopped(tmp_path) is None


def test_a_placeholder_replaces_what_stood_there(tmp_path):
    (tmp_path / "g2").mkdir()
    (tmp_path / "g2/manifest.json").write_text("{}")
    write_stopped(REASON, tmp_path / "g2")
    write_stopped(REASON, tmp_path / "history.csv")
    assert [p.name for p in (tmp_path / "g2").iterdir()] == ["stopped.json"] and stopped(tmp_path / "g2") == REASON
    assert (tmp_path / "history.csv").read_text() == "step,loss\n"


@pytest.mark.parametrize(
    "read",
    [
        lambda a: read_manifest(a / "generations/g2"),
        lambda a: load_model(a / "models/g2"),
        lambda a: read_calibrations(a / "rounds/r2/calibration.json"),
        lambda a: require_gate(a / "gates/g2.json", a / "generations/g2"),
        lambda a: explain("web-1", a / "generations/g2"),
        lambda a: read_rule(a / "generations/g2"),
    ],
)
def test_readers_say_why_it_was_not_made(artifacts, read):
    with pytest.raises(ValueError, match=f"was not made, for the rounds stopped before it: {REASON}"):
        read(artifacts)


@pytest.mark.parametrize(
    "command",
    [
        ["contract", "artifacts/generations/g2"],
        ["explain", "web-1", "--generation", "artifacts/generations/g2"],
        ["export", "artifacts/generations/g2", "--format", "coco", "--out", "exported"],
        ["review", "artifacts/generations/g2", "--out", "sheet.html"],
        ["lineage", "artifacts/models/g2"],
        ["generations", "diff", "artifacts/generations/g2", "g1"],
    ],
)
def test_verbs_for_people_say_it_without_a_traceback(artifacts, command, monkeypatch, capsys):
    from blip_core.tables.manifest import write_manifest

    (artifacts / "shards").mkdir()
    write_manifest(artifacts / "shards")
    monkeypatch.chdir(artifacts.parent)
    shutil.copy(ROOT / "params.yaml", artifacts.parent)
    assert main(command) == 1
    assert REASON in capsys.readouterr().err and not (artifacts.parent / "exported").exists()


def test_history_passes_over_it(artifacts):
    with pytest.raises(ValueError, match="holds no generation"):
        history("web-1", artifacts)


FLAGS = {  # a stage whose work would fail at once: nothing of its inputs is there but the placeholder
    "caption": ["--round=r2", "--captioner=artifacts/rounds/r2/captioner", "--generation=g1", "--shards=s", "--gate=g", "--out=out"],
    "tune_filter": [
        *("--after=artifacts/decisions/g1.json", "--base=m", "--generation=g", "--shards=s", "--gate=g"),
        *("--out=out", "--out-history=h.csv", "--out-metrics=m.json"),
    ],
}


def words(stage: str) -> list[str]:
    """As DVC splits a command."""
    return [word for flag in FLAGS[stage] for word in flag.split("=")]


@pytest.mark.parametrize("stage", FLAGS)
def test_a_stage_behind_a_stop_leaves_placeholders_and_no_run(artifacts, stage, monkeypatch, caplog):
    monkeypatch.chdir(artifacts.parent)
    (artifacts / "decisions/g1.json").write_text(json.dumps({"go_on": False, "stopped": REASON}))
    with caplog.at_level("INFO", "blip_core"):
        assert main(["stage", stage, *words(stage), "--params", str(ROOT / "params.yaml"), "--run", f"r2/{stage}"]) == 0
    assert stopped(Path("out")) == REASON and REASON in caplog.text
    assert not Path("mlflow.db").exists() and not Path(".work").exists()
    if stage == "tune_filter":
        assert stopped(Path("m.json")) == REASON and Path("h.csv").read_text() == "step,loss\n"


def test_a_decision_to_go_on_lets_the_stage_do_its_work(artifacts, monkeypatch, capsys):
    monkeypatch.chdir(artifacts.parent)
    (artifacts / "decisions/g1.json").write_text('{"go_on": true}')
    assert main(["stage", "tune_filter", *words("tune_filter"), "--params", str(ROOT / "params.yaml")]) == 1
    assert "g: missing" in capsys.readouterr().err and not Path("out").exists()


def two_rounds(tmp_path, **changes) -> Path:
    """params.yaml with a second round; `changes` of its fields, or of a section by name."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["rounds"]["r2"] = {"base": "g1", "model": "g1", "next": "g2", "labels": "labels/r2"}
    values["models"]["g2"] = {"generation": "g2", "sources": "human,web,synthetic", "round": "r2"}
    values["rounds"]["r2"] |= {k: v for k, v in changes.items() if k in values["rounds"]["r2"]}
    for name, value in changes.items():
        if name not in values["rounds"]["r2"]:
            values[name] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_round_starts_from_the_newest_model_or_the_first(tmp_path):
    assert load_params(two_rounds(tmp_path)).rounds["r2"].model == "g1"
    assert load_params(two_rounds(tmp_path, model="g0")).rounds["r2"].model == "g0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "g7"}, "rounds.r2.base is 'g7', which neither ingest nor a round above it makes; before it there are g0, g1"),
        ({"model": "g7"}, r"rounds.r2.model is 'g7'; models has \['g0', 'g1', 'g2', 'human'\]"),
        ({"model": "g2"}, "rounds.r2.model is 'g2', which trains on 'g2', not made by then"),
        ({"next": "g1"}, "rounds.r2.next is 'g1', which round r1 makes already"),
        ({"next": "g0"}, "rounds.r2.next is 'g0', which ingest makes already"),
        ({"next": "g9"}, "rounds.r2 needs a model that trains on 'g9' and has its name: models.g9: {generation: g9"),
        ({"baselines": "g2"}, "baselines is 'g2'; expected a model on g0 among them"),
    ],
)
def test_rounds_that_cannot_run_are_refused_with_their_place(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_params(two_rounds(tmp_path, **changes))


def test_export_leaves_nothing_behind(artifacts, tmp_path):
    (artifacts / "shards").mkdir()
    from blip_core.tables.manifest import write_manifest

    write_manifest(artifacts / "shards")
    with pytest.raises(ValueError, match=REASON):
        export(artifacts / "generations/g2", tmp_path / "out", form="coco")
    assert not (tmp_path / "out").exists()
