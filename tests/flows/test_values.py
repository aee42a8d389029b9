"""Values on a command line, and what a run is called."""

import argparse

import pytest

from flows.values import add_set, assignment, assignments, did_you_mean, run_name


def test_values_are_read_as_yaml_and_uses_of_the_flag_add_up():
    parser = argparse.ArgumentParser()
    add_set(parser, "values")
    args = parser.parse_args(
        ["--set", "a.b=0.7", "pretrain.optim.lr=1e-4", "--set", 'rounds.r2={"base": "g1", next: g2}', "x=", "y=off=on"]
    )
    assert args.params == {"a.b": 0.7, "pretrain.optim.lr": 1e-4, "rounds.r2": {"base": "g1", "next": "g2"}, "x": None, "y": "off=on"}
    assert parser.parse_args([]).params is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("assemble.threshold.web", "expected KEY=VALUE"),
        ("=0.7", "expected KEY=VALUE"),
        ('rounds.r2={"base": "g1"', "rounds.r2: .*expected ',' or '}'.* at character 14"),
        ("a={b: [1, 2}", "a: .*at character 10"),
    ],
)
def test_what_is_no_value_says_where(text, told):
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        assignment(text)


def test_a_file_of_values_is_laid_over_like_them(tmp_path):
    (tmp_path / "own.yaml").write_text("tasks: {vqa: {kind: vqa}}\nassemble.threshold.web: 0.7\n")
    add_set(parser := argparse.ArgumentParser(), "values")
    found = parser.parse_args(["--set-file", str(tmp_path / "own.yaml"), "--set", "seed=1"]).params
    assert found == {"tasks": {"vqa": {"kind": "vqa"}}, "assemble.threshold.web": 0.7, "seed": 1}
    (tmp_path / "own.yaml").write_text("[1, 2]")
    with pytest.raises(argparse.ArgumentTypeError, match="expected keys of params.yaml with their values, got list"):
        assignments(str(tmp_path / "own.yaml"))
    (tmp_path / "own.yaml").write_text("on: 1")
    with pytest.raises(argparse.ArgumentTypeError, match="expected keys of params.yaml, got True"):
        assignments(str(tmp_path / "own.yaml"))


def test_near_keys_are_named():
    values = {"assemble": {"threshold": {"web": 0.8, "synthetic": 0.9}}, "seed": 0}
    assert did_you_mean("assemble.treshold.web", values) == "; did you mean assemble.threshold.web?"
    assert did_you_mean("colour", values) == ""


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "local"),
        ({"revision": "1a2b3c4d5e", "params": {"assemble.threshold.web": 0.7, "seed": 1}}, "local 1a2b3c4 web=0.7 seed=1"),
        ({"stages": ["compare"], "from_stage": "evaluate", "keep": ["pretrain"], "force": True}, "local compare from evaluate anew"),
    ],
)
def test_a_run_is_called_by_what_differs_from_the_whole_chain(parameters, name):
    assert run_name("local", parameters) == name


def test_a_long_name_is_cut():
    assert len(run_name("retrain", {"params": {f"a.key{n}": n for n in range(50)}})) <= 80
