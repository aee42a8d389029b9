"""From a text to the models that saw it, and from a model back, in a repository with history. The whole chain: test_chain.py."""

import json

import pytest
import yaml

from blip_core.tracking.provenance import ancestry, outdated, parse_lock, stale
from tests.support.team import copy_team, done, refused, verb


def fates(project, key) -> dict[str, list[tuple[str, str, list[str]]]]:
    found = json.loads(verb("lineage", "--caption", key, "--json", cwd=project))
    return {v["version"]: [(row["source"], row["reason"], row["models"]) for row in v["texts"]] for v in found["generations"]}


def test_a_text_leads_to_the_models_of_every_version_that_kept_it(team):
    second = done("git", "rev-parse", "HEAD", cwd=team).strip()[:9]
    found = fates(team, "web-1")
    assert found["g0@ds/g1"] == [("web", "kept", ["artifacts/models/g0"])]
    assert ("web", "kept", ["artifacts/models/g1@ds/g1"]) in found["g1@ds/g1"], "trained on at the tag"
    assert ("web", "below_threshold", []) in found[f"g1@{second}"], "and no longer now"
    assert ("synthetic", "below_threshold", []) in found["g1@ds/g1"]
    told = verb("lineage", "--caption", "web-1", cwd=team)
    assert "below_threshold: 'a drawing of 1', synthetic r1#0 by captioner c0ffee, match 0.100 by filter f117e5\n" in told


def test_a_text_that_a_model_may_not_see_is_not_counted_as_seen(team):
    """Model g0 trains on human and web texts of g0; the human text of g1 is seen by g1 alone."""
    found = fates(team, "h")
    assert found["g0@ds/g1"] == [("human", "kept", ["artifacts/models/g0"])]
    assert [models for _, _, models in found["g1@ds/g1"]] == [["artifacts/models/g1@ds/g1"]]


def test_an_unknown_key_and_an_unknown_model_are_said_plainly(team, tmp_path):
    project = copy_team(team, tmp_path)
    assert "'web-77' is in no known version of a generation" in refused("lineage", "--caption", "web-77", cwd=project)
    assert "blip: no version 3; none is registered" in refused("lineage", "blip/3", cwd=project)
    assert "there is no such version" in refused("lineage", "blip@champion", cwd=project)


def test_a_model_folder_that_is_not_registered_is_traced_by_dvc(team):
    told = verb("lineage", "artifacts/models/g1", cwd=team)
    assert "not registered" in told and "by pretrain@g1 on human,synthetic,web texts" in told
    lock = parse_lock((team / "dvc.lock").read_text())
    for made in ("ingest", "assemble", "pretrain@g1"):
        assert all(f"{made:<18} {path} {md5}" in told for path, md5 in lock[made].outs.items())
    assert "gate" not in told, "this model's stage does not read the gate"


def test_the_texts_that_a_model_learned_from_are_listed_with_who_wrote_and_who_scored_them(team, tmp_path):
    """Of today's folder; of a model of before, whose generation only the tag's dvc.lock has; not of a source that it may not see."""
    listed = {}
    for revision in ("HEAD", "ds/g1"):
        project = copy_team(team, tmp_path / revision.replace("/", "-"))
        verb("generations", "rollback", f"g1@{revision}", cwd=project) if revision != "HEAD" else None
        told = verb("lineage", "artifacts/models/g1", "--texts", "texts.jsonl", cwd=project)
        listed[revision] = [json.loads(line) for line in (project / "texts.jsonl").read_text().splitlines()]
        assert f"texts.jsonl: the {len(listed[revision])} texts that it learned from: 1 human, 3 synthetic" in told
    web = {revision: [row["key"] for row in rows if row["source"] == "web"] for revision, rows in listed.items()}
    assert web == {"HEAD": ["web-3", "web-4", "web-5"], "ds/g1": ["web-1", "web-2", "web-3", "web-4", "web-5"]}
    (made,) = [row for row in listed["HEAD"] if row["key"] == "web-2"]
    assert (made["text"], made["model"], made["filter"], made["match"]) == ("a drawing of 2", "c0ffee", "f117e5", 0.9)
    verb("lineage", "artifacts/models/g0", "--texts", "g0.jsonl", cwd=project)
    assert {json.loads(line)["source"] for line in (project / "g0.jsonl").read_text().splitlines()} == {"human", "web"}
    assert "goes with a model" in refused("lineage", "--caption", "web-1", "--texts", "x.jsonl", cwd=project)


def test_ancestry_is_in_the_order_of_making_and_staleness_is_seen_at_any_depth(team):
    lock = parse_lock((team / "dvc.lock").read_text())
    assert [made.stage for made in ancestry(lock, "artifacts/models/g1")] == ["ingest", "assemble", "pretrain@g1"]
    assert stale(lock, ["artifacts/models/g1", "artifacts/gates/g1.json"]) == []
    lock["ingest"].outs["artifacts/generations/g0"] = "other.dir"
    [fault] = stale(lock, ["artifacts/models/g1"])
    assert fault.startswith("assemble read artifacts/generations/g0 as") and fault.endswith("but ingest made it other.dir")


def test_outputs_of_an_earlier_run_are_told_from_those_of_this_one(tmp_path):
    """By what each stage read: another version, a file that is gone, or a folder that holds such an output."""

    def stage(deps: dict[str, str], outs: dict[str, str]) -> dict:
        return {kind: [{"path": p, "md5": m} for p, m in paths.items()] for kind, paths in (("deps", deps), ("outs", outs))}

    stages = {
        "assemble": stage({"data": "d"}, {"g1": "new"}),
        "gate": stage({"g1": "old"}, {"gates/g1": "yes"}),
        "pretrain": stage({"gates/g1": "yes"}, {"models/g1": "m"}),
        "other": stage({"data": "d"}, {"models/g0": "m"}),
        "compare": stage({"models": "both"}, {"comparison": "c"}),
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    for path in ("g1", "gates/g1", "models/g1", "models/g0", "comparison"):
        (tmp_path / path).mkdir(parents=True)
    assert outdated(tmp_path) == {"gates/g1", "models/g1", "comparison"}
    stages["gate"] = stage({"g1": "new"}, {"gates/g1": "yes"})
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    assert outdated(tmp_path) == set()
    (tmp_path / "gates/g1").rmdir()
    assert outdated(tmp_path) == {"models/g1", "comparison"}, "a gate that says no takes its file away"


@pytest.mark.parametrize(
    ("assemble", "said"),
    [
        ({"threshold": {"web": 0.8, "synthetic": 0.7}}, "match from 0.8 for web texts and 0.7 for synthetic texts by that filter"),
        (
            {"threshold": {"web": "calibrated", "synthetic": 0.7}, "sources": ["web"]},
            "match from its calibrated threshold for web texts by that filter",
        ),
        (
            {"threshold": {"web": 0.8}, "votes": 2, "keep_best": 3},
            "match from 0.8 for web texts by 2 of the round's filters at least; of these the 3 best of an image",
        ),
    ],
)
def test_the_rule_that_chose_is_said(assemble, said):
    from blip_core.cli.lineage import _rule

    usual = {"score": "match", "sources": ["web", "synthetic"], "votes": 1, "keep_best": None}
    assert _rule({"filter": "f", "params": {"assemble": usual | assemble}}) == said
    assert "no filter had a say" in _rule({"filter": None, "params": {"assemble": usual | assemble}})
