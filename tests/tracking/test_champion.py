"""Who may become champion: by the tests, by a person's approval, back by a roll-back; never two at once, never past a gate."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from blip_core.__main__ import main
from blip_core.tracking.champion import crown, describe, moves, withdrawn
from blip_core.tracking.registry import open_registry
from blip_core.weights.checkpoint import new_model, save_model
from tests.stages import test_register
from tests.stages.test_register import aliases, client, evaluation, registered
from tests.support.processes import HANG

root = test_register.root  # a fixture


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def verb(root, capsys):
    """The command line, within this process: MLflow's import takes seconds."""

    def run(*args: str) -> Done:
        capsys.readouterr()
        code = main(list(args))
        return Done(code, *capsys.readouterr())

    return run


def model(name, model_cfg, tokenizer, *, seed, cider):
    save_model(new_model(model_cfg, tokenizer, seed=seed), tokenizer, Path("artifacts/models") / name, prompt="", max_tokens=12)
    evaluation(name, cider=cider)


def tags(root, number):
    return client(root).get_model_version("blip", str(number)).tags


def description(root, number):
    return client(root).get_model_version("blip", str(number)).description


@pytest.fixture
def two(root):
    """Version 1, then version 2 in its place by the paired test."""
    registered("first")
    registered("second")
    return root


def test_a_promotion_is_written_down_with_its_test(two):
    with open_registry("blip", two) as registry:
        [move] = moves(registry.version(2))
    assert (move.before, move.how) == ("1", "paired test") and "better than the champion, version 1" in move.why and move.by
    test = json.loads(tags(two, 2)["champion_test"])
    assert test["against"] == "1" and test["better"] and test["metrics"]["cider"]["low"] > 0
    assert f"Champion since {move.at[:19]}Z, in place of version 1" in description(two, 2)


def test_rollback_goes_to_the_version_before_and_says_who_and_why(two, verb):
    done = verb("rollback-champion", "--reason", "captions of boats are wrong", "--by", "Ann")
    assert done.code == 0 and "version 1, is champion again" in done.out, done.err
    assert aliases(two) == {"challenger": 2, "champion": 1}
    with open_registry("blip", two) as registry:
        last, taken = moves(registry.version(1))[-1], withdrawn(registry.version(2))
    assert (last.by, last.how, last.why, last.before) == ("Ann", "roll-back", "captions of boats are wrong", "2")
    assert taken == last and "captions of boats" in description(two, 1) and "Rolled back" in description(two, 2)


def test_what_was_rolled_back_does_not_come_back_by_itself_but_by_a_person(two, verb):
    verb("rollback-champion", "--reason", "boats")
    result = registered("second")
    assert not result["promoted"] and result["champion_version"] == 1 and "boats" in result["reasons"][-1]
    done = verb("approve", "blip/2", "--reason", "boats are rare")
    assert done.code == 0, done.err
    assert aliases(two)["champion"] == 2 and "withdrawn" not in tags(two, 2)
    assert registered("second")["promoted"]


def test_a_second_rollback_goes_further_back_and_the_first_version_has_none_before_it(two, verb, model_cfg, tokenizer):
    model("third", model_cfg, tokenizer, seed=7, cider=1.9)
    assert registered("third")["promoted"]
    assert verb("rollback-champion", "--reason", "a").code == 0 and aliases(two)["champion"] == 2
    assert verb("rollback-champion", "--reason", "b").code == 0 and aliases(two)["champion"] == 1
    done = verb("rollback-champion", "--reason", "c")
    assert done.code == 1 and "was the first; name a version with --to" in done.err
    assert verb("rollback-champion", "--to", "3", "--reason", "d").code == 0 and aliases(two)["champion"] == 3


@pytest.mark.parametrize("gate", ["failed", None])
def test_a_version_whose_gate_did_not_pass_is_never_champion(two, verb, gate):
    if gate:
        client(two).set_model_version_tag("blip", "1", "gate", gate)
    else:
        client(two).delete_model_version_tag("blip", "1", "gate")
    done = verb("rollback-champion", "--to", "1", "--reason", "x")
    assert done.code == 1 and "gate" in done.err and "Traceback" not in done.err
    assert verb("approve", "blip/1").code == 1 and aliases(two)["champion"] == 2


def test_of_a_version_that_something_else_registered_is_told_what_is_known(root, verb):
    client(root).create_registered_model("blip")
    client(root).create_model_version("blip", "somewhere")
    found = verb("lineage", "blip/1")
    assert found.code == 0 and "  run        no record\n" in found.out and "  code       not in git\n" in found.out


def test_descriptions_keep_to_what_a_database_has_room_for(root):
    """PostgreSQL refuses more characters, and no stage could register any more; SQLite takes them."""
    client(root).create_registered_model("blip")
    for _ in range(20):
        client(root).create_model_version("blip", "somewhere", tags={"model": "m" * 250, "reasons": json.dumps(["r" * 6000])})
    with open_registry("blip", root) as registry:
        describe(registry, 20)
    whole = client(root).get_registered_model("blip").description
    assert max(len(whole), len(description(root, 20))) <= 5000
    shown = [n for n in range(1, 21) if f"\n| {n} | " in whole]
    assert shown == list(range(shown[0], 21)) and f"\n{shown[0] - 1} further lines" in whole


def test_with_approval_a_better_model_waits_for_a_person(root, verb):
    result = registered("first", approval=True)
    assert (result["promoted"], result["candidate"], result["champion_version"]) == (False, True, None)
    assert aliases(root) == {"challenger": 1, "candidate": 1} and "approve blip/1" in result["reasons"][-1]
    done = verb("approve", "--by", "Ann")
    assert done.code == 0, done.err
    assert aliases(root) == {"challenger": 1, "champion": 1}
    with open_registry("blip", root) as registry:
        [move] = moves(registry.version(1))
    assert (move.by, move.how) == ("Ann", "approval")
    assert "no version awaits approval" in verb("approve").err and "is champion already" in verb("approve", "blip/1").err


def test_a_rejected_candidate_does_not_return_by_itself(root, verb):
    registered("first", approval=True)
    assert verb("reject", "--reason", "rude captions").code == 0
    assert aliases(root) == {"challenger": 1} and "rude captions" in description(root, 1)
    result = registered("first", approval=True)
    assert not result["candidate"] and "rude captions" in result["reasons"][-1]


def test_what_did_not_pass_the_tests_can_not_be_approved(root, verb):
    registered("second")
    registered("first", approval=True)
    assert aliases(root) == {"challenger": 2, "champion": 1}
    assert "did not pass the tests" in verb("approve", "blip/2").err
    registered("first", better=False)
    assert "did not pass the tests" in verb("approve", "blip/2").err and aliases(root)["champion"] == 1


def test_a_candidate_is_held_against_todays_champion(root, verb, model_cfg, tokenizer):
    """Its test was against the champion of then; a person must not wave it through past a better one."""
    model("third", model_cfg, tokenizer, seed=7, cider=1.9)
    registered("first")
    registered("second", approval=True)
    assert registered("third")["promoted"]
    done = verb("approve", "blip/2")
    assert done.code == 1 and "was tested against champion 1, but now that is 3; run register again" in done.err
    registered("second", approval=True)
    assert "candidate" not in aliases(root), "a candidate that has ceased to be better is none"


def test_a_decision_against_a_champion_that_has_gone_is_refused(two, model_cfg, tokenizer):
    """Two clones share a server: while one compared with version 2, the other rolled back to 1."""
    model("third", model_cfg, tokenizer, seed=7, cider=1.9)
    registered("third", better=False)
    with open_registry("blip", two) as registry:
        second, third = registry.version(2), registry.version(3)
        registry.point("champion", registry.version(1))
        with pytest.raises(ValueError, match="version 1 has become champion meanwhile, not 2"):
            crown(registry, third, instead_of=second, by="b", how="paired test", why="w")
    assert aliases(two)["champion"] == 1 and moves(client(two).get_model_version("blip", "3")) == []


def test_two_moves_at_the_same_moment_are_told(two, monkeypatch):
    """Between this process's look at the champion and its move, another machine moves it too."""
    with open_registry("blip", two) as registry:
        first, second = registry.version(1), registry.version(2)
        point = registry.point

        def meanwhile(alias, version):
            other = {"at": "2099-01-01T00:00:00", "by": "bob", "how": "paired test", "why": "w", "before": "2"}
            registry.tag(second, {"champion.2099-01-01T00:00:00": json.dumps(other)})
            point(alias, version)

        monkeypatch.setattr(registry, "point", meanwhile)
        with pytest.raises(ValueError, match=r"two moves of the champion at once; version 1 is champion now: version 2 .*bob"):
            crown(registry, first, instead_of=second, by="ann", how="roll-back", why="w")


def test_processes_that_roll_back_at_once_leave_one_champion_and_a_whole_record(two, model_cfg, tokenizer):
    model("third", model_cfg, tokenizer, seed=7, cider=1.9)
    registered("third")
    command = [sys.executable, "-m", "blip_core", "rollback-champion", "--reason", "x", "--to"]
    both = [subprocess.Popen([*command, n], stderr=subprocess.PIPE, stdout=subprocess.PIPE) for n in ("1", "2")]
    assert [process.wait(HANG) for process in both] == [0, 0]
    with open_registry("blip", two) as registry:
        chain = sorted((move.at, move.before, v.version) for v in registry.versions() for move in moves(v))
    champions = [str(version) for _, _, version in chain]
    assert [before for _, before, _ in chain] == ["", *champions[:-1]], "each move names the champion that the one before it made"
    assert aliases(two)["champion"] == int(champions[-1])


def test_a_verdict_on_an_earlier_evaluation_promotes_nothing(root):
    """`dvc repro -s register` after a new evaluation: the comparison is still of the old one."""
    registered("first")
    evaluation("first", cider=3.0)
    with pytest.raises(ValueError, match="compares another state of artifacts/evaluations/first"):
        test_register.register_again()


def test_inputs_that_were_made_anew_since_are_refused(root):
    """dvc.lock says that the evaluation is of an older model than the one there now."""
    stages = {
        "pretrain@g1": {"cmd": "x --sources human,web", "outs": [{"path": "artifacts/models/first", "md5": "new.dir"}]},
        "evaluate@g1": {
            "cmd": "x",
            "deps": [{"path": "artifacts/models/first", "md5": "old.dir"}],
            "outs": [{"path": "artifacts/evaluations/first", "md5": "e.dir"}],
        },
    }
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    with pytest.raises(ValueError, match=r"evaluate@g1 read artifacts/models/first as old.dir, but pretrain@g1 made it new.dir"):
        registered("first")
    assert client(root).search_registered_models() == []
