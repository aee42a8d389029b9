"""What a person gets wrong in params.yaml: each fault is told with its place, what was found and what was meant."""

import functools
from pathlib import Path

import pytest
import yaml

from blip_core.cli.main import main
from blip_core.config.params import load_params
from blip_core.config.reading import laid_over, read_values

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


@pytest.fixture
def load(tmp_path):
    """The checked values of the project's own file with others laid over them; `without` names one that is taken out."""

    def load_(values: dict, without: tuple[str, ...] = ()):
        found = laid_over(yaml.safe_load(PARAMS.read_text()), values)
        if without:
            *parents, last = without
            del functools.reduce(dict.__getitem__, parents, found)[last]
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(found))
        return load_params(tmp_path / "params.yaml")

    return load_


@pytest.mark.parametrize("path", [PARAMS, *sorted((ROOT / "configs").glob("vit-*.yaml"))], ids=lambda path: path.name)
def test_values_that_are_fine_are_said_to_be(path, capsys):
    assert main(["params", "--params", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: all values are fine\n"


@pytest.mark.parametrize(
    "text,told",
    [
        (b"seed: 0\nmodel:\n  vision: {a: 1\n  b: 2\n", r", line 4, column 4: not valid YAML: expected ',' or '}', but got ':'"),
        (b"a: 1\n\tb: 3\n", r", line 2, column 1: not valid YAML: found character '\\t'"),
        (b'a: 1\nb: "\x01"\n', r", line 2: not valid YAML: special characters"),
        (b"gate:\n  a: 100\n  b: 0.1\n  a: 5\n", r", line 4, column 3: .*'a' stands here a second time"),
        (b"\xff\xfe\xfa", ": no text in UTF-8"),
        (b"- a\n- b\n", ": expected a mapping of sections, got list"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(text, told, tmp_path):
    (tmp_path / "params.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=rf"params\.yaml{told}"):
        load_params(tmp_path / "params.yaml")


def test_a_folder_is_no_file_of_values(tmp_path):
    with pytest.raises(ValueError, match="can't be read .Is a directory."):
        load_params(tmp_path)


@pytest.mark.parametrize(
    "values,told",
    [
        ({"assemble": {"treshold": 1}}, "assemble.treshold: unknown key; did you mean 'threshold'?"),
        ({"assemble.threshold.web": 0.7}, r"assemble.threshold.web: unknown key; did you mean assemble: \{threshold: \{web: …\}\}\?"),
        ({"pretrain.optim.stepz": 9}, r"stepz: unknown key; did you mean pretrain: \{optim: \{steps: …\}\}\?"),
        ({"zzz.zzz": 9}, "zzz.zzz: unknown key$"),
        ({"assemble": {"threshold": {"wbe": 1}}}, "assemble.threshold.wbe: Input should be 'web', 'synthetic' or 'fused'"),
        ({"assemble": {"threshold": {"web": 1.8}}}, "assemble: threshold.web is 1.8, but match is a probability; expected 0 to 1"),
        ({"assemble": {"score": "itc", "threshold": {"web": -1.5}}}, "threshold.web is -1.5, but itc is a cosine; expected -1 to 1"),
        ({"assemble": {"threshold": {"web": float("nan")}}}, "threshold.web is nan"),
        ({"gate": {"max_residual_noise": 1.8}}, "gate.max_residual_noise: .* less than or equal to 1, got 1.8"),
        ({"training": {"optim": {"max_tokens": 50}}}, "pretrain.optim.max_tokens is 50, but model.text.max_positions is 40"),
        ({"training": {"optim": {"min_lr": 1.0}}}, "min_lr is 1, more than lr"),
        ({"compare": {"metrics": ["tr_r11"]}}, "compare.metrics names 'tr_r11', which is not measured; did you mean 'tr_r1'?"),
        ({"compare": {"margin": {"vqa.accuracy": 0.1}}}, "compare.margin names 'vqa.accuracy', .* or that of a task"),
        ({"decide": {"metrics": ["itm_tr_r1"]}}, "decide.metrics names 'itm_tr_r1', which is not measured; did you mean 'tr_r1'?"),
        ({"tasks": {"a.b": {"kind": "classify"}}}, r"tasks.a.b.*: String should match pattern"),
        ({"tasks": {"a": {"rerank": 5}}}, "tasks.a: kind is missing"),
        ({"training": {"contrast": {"temperature": 0.9}}}, r"temperature is 0.9, temperature_range \[0.01, 0.5\]"),
        ({"register": {"name": "blip.v2"}}, r"register.name: .*got 'blip.v2'"),  # MLflow would say so behind the last training
    ],
)
def test_a_value_that_does_not_fit_is_told(values, told, load):
    with pytest.raises(ValueError, match=told):
        load(values)


def test_a_source_that_takes_part_has_a_threshold_and_a_limit(load):
    with pytest.raises(ValueError, match="gate.max_noise says nothing of synthetic, which assemble.sources has"):
        load({}, without=("gate", "max_noise", "synthetic"))
    with pytest.raises(ValueError, match="threshold says nothing of web, which sources has"):
        load({}, without=("assemble", "threshold", "web"))


def test_the_tasks_of_the_sample_fit_and_the_chain_may_judge_by_them(load):
    tasks = read_values(ROOT / "configs/tasks.yaml")
    found = load(tasks | {"compare": {"metrics": ["vqa.accuracy", "nlvr.consistency"]}, "decide": {"metrics": ["shapes.top1"]}})
    assert set(found.tasks) == set(tasks["tasks"]) and found.compare.metrics == ("vqa.accuracy", "nlvr.consistency")
