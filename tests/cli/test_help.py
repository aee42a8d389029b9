"""The command line: verbs in groups, an example of each, completion by a real shell, and what starting it costs."""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blip_core.cli.main import main
from blip_core.cli.parser import GROUPS, below, make_parser
from blip_core.stages import STAGES

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "mlflow", "pandas", "numpy", "pyarrow", "transformers", "gradio", "dvc", "shtab", "yaml"}


@pytest.fixture(scope="module")
def verbs() -> dict[str, argparse.ArgumentParser]:
    """All of them with their flags, those below generations and stage too."""
    found = below(make_parser("blip", stages=STAGES))
    return found | {f"{verb} {name}": parser for verb in ("generations", "stage") for name, parser in below(found[verb]).items()}


def test_the_help_lists_every_verb_once_in_its_group(verbs, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.startswith("usage: blip VERB")
    groups = {part.split(":")[0]: re.findall(r"^  (\S+) +\S", part, re.M) for part in shown.split("\n\n") if part.split(":")[0] in GROUPS}
    assert list(groups) == list(GROUPS)
    assert sorted(name for names in groups.values() for name in names) == sorted(name for name in verbs if " " not in name)


def test_every_verb_has_an_example_that_it_understands(verbs):
    """A word that is a placeholder or a folder of somebody is a word like any other: nothing of it is run."""
    parser = make_parser("blip", stages=STAGES)
    for name, verb in verbs.items():
        words = shlex.split(re.search(r"^example: (.*)", verb.format_help(), re.M)[1], comments=True)
        words = words[: words.index(">")] if ">" in words else words
        assert words[0] == "blip" and words[1] == name.split()[0], name
        if words[-1] == "--help":
            with pytest.raises(SystemExit) as end:
                parser.parse_args(words[1:])
            assert end.value.code == 0, name
        else:
            assert parser.parse_args(words[1:]).act, name


def test_every_flag_says_what_it_is(verbs):
    of_itself = argparse._SubParsersAction
    assert not [(n, a.dest) for n, verb in verbs.items() for a in verb._actions if not a.help and not isinstance(a, of_itself)]


@pytest.mark.parametrize(
    "words,hint",
    [
        (["captoin", "a.jpg"], "no 'captoin' here; did you mean caption?"),
        (["ingest", "--data", "data"], "no 'ingest' here; a stage is run by: stage ingest"),
        (["stage", "pretrian"], "no 'pretrian' here; did you mean pretrain?"),
        (["completion", "nu"], "no 'nu' here; there are bash, zsh, tcsh, fish"),
        (["caption", "a.jpg", "--samplr", "beam"], "unrecognized arguments: --samplr beam"),
    ],
)
def test_a_misspelt_word_is_told_with_what_was_meant(words, hint, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and hint in capsys.readouterr().err


def test_values_may_stand_before_or_behind_an_inner_verb():
    parser = make_parser("blip", stages=[])
    for words in (["--params", "x.yaml", "get"], ["get", "--params", "x.yaml"]):
        args = parser.parse_args(["generations", *words, "g1@HEAD", "--out", "o"])
        assert str(args.params) == "x.yaml" and str(args.work) == ".work"


@pytest.mark.parametrize("verb", ["ingest", "pretrain", "calibrate", "compare"])
def test_a_stage_shows_the_command_of_the_chain(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main(["stage", verb, "--help"], prog="python -m blip_core")
    shown = capsys.readouterr().out
    assert end.value.code == 0 and f"\nexample: python -m blip_core stage {verb} --run " in shown and "${" not in shown
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][verb]
    assert set(re.findall(r" (--[\w-]+)", body.get("do", body)["cmd"])) <= set(re.findall(r"^  (--[\w-]+)", shown, re.M))


def test_help_of_a_verb_ends_well(verbs, capsys):
    for name in verbs:
        if not name.startswith("stage "):
            with pytest.raises(SystemExit) as end:
                main([*name.split(), "--help"])
            assert end.value.code == 0 and f"usage: blip {name}" in capsys.readouterr().out


@pytest.mark.parametrize("door", [["-m", "blip_core"], ["-c", "import sys; from blip_core.__main__ import program; sys.exit(program())"]])
def test_help_imports_nothing_heavy(door):
    done = subprocess.run([sys.executable, "-X", "importtime", *door, "--help"], cwd=ROOT, capture_output=True, text=True)
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert done.returncode == 0 and "blip_core.cli.parser" in imported
    assert not {name.split(".")[0] for name in imported} & HEAVY


def test_a_place_that_can_not_be_written_is_told_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    for place in ("taken", "file/version.json"):
        assert main(["version", "--out", place]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"version: {place.partition('/')[0]}: ") and "name another place" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [".work", "file", "taken"]


@pytest.mark.parametrize("door", ["runpy.run_module('blip_core', run_name='__main__')", "program()"])
def test_the_programme_ends_by_sigterm_and_a_caller_of_main_keeps_its_own_way(door):
    """As a program it unwinds, so that nothing half-written stays behind; what it forks for a caller of `main` must not."""
    asks = "import runpy, signal, sys; sys.argv = ['blip', 'version']; from blip_core.__main__ import main, program\n"
    asks += "assert main(['version']) == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    asks += f"try: {door}\nexcept SystemExit: pass\nsignal.raise_signal(signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """The candidates that bash offers behind these words."""
    script = tmp_path_factory.mktemp("completion") / "blip.bash"
    with script.open("w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert main(["completion", "bash"]) == 0

    def offered(*words: str) -> list[str]:
        ask = 'source "$0"; COMP_WORDS=(blip "$@"); COMP_CWORD=$#; _shtab_blip; printf "%s\\n" "${COMPREPLY[@]}"'
        return subprocess.run(["bash", "-c", ask, script, *words], capture_output=True, text=True, check=True).stdout.split()

    return offered


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_verbs_flags_and_paths(completion, verbs, tmp_path):
    assert sorted(completion("")) == sorted(name for name in verbs if " " not in name)
    assert set(completion("in")) == {"inspect", "init", "interim"} and completion("stage", "in") == ["ingest"]
    assert set(completion("stage", "ingest", "--out-h")) == {"--out-heldout"} and "--gate" in completion("stage", "pretrain", "--g")
    assert completion("generations", "d") == ["diff"] and completion("completion", "z") == ["zsh"]
    (tmp_path / "crawl").mkdir()
    assert completion("stage", "ingest", "--data", f"{tmp_path}/cr") == [f"{tmp_path}/crawl"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh", "fish"])
def test_other_shells_have_a_script_with_the_flags_of_stages(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("rollback-champion", "tune_captioner", "out-history"))


def test_verbs_that_come_before_a_project_need_no_values(tmp_path, monkeypatch, capsys, caplog):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48), "red").save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a red square")
    with caplog.at_level("INFO", "blip_core"):
        assert main(["inspect", "."]) == 0
    assert "a red square" in capsys.readouterr().out and "no params.yaml here" in caplog.text
    assert main(["inspect", ".", "--params", "other.yaml"]) == 1 and "other.yaml" in capsys.readouterr().err
    assert main(["plan"]) == 1 and "params.yaml" in capsys.readouterr().err
