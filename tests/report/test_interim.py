"""The page of a chain that has not come to its end: what is there is drawn, what failed stands first, nothing of an earlier run is taken
for new."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from blip_core.__main__ import main
from blip_core.checks.remedies import REMEDIES
from blip_core.cli.interim import _draw
from blip_core.files.content import write_json
from blip_core.report.examples import pick_near
from blip_core.report.interim import interim
from blip_core.tables.captions import caption_table, read_table, write_table
from blip_core.tables.manifest import listed_hash, write_manifest
from tests.report.test_report import build, data, line, make_params, page_rows  # noqa: F401  # data is a fixture
from tests.stages.test_assemble import as_applied
from tests.stages.test_gate import World
from tests.support.small import ROOT, small_values


@pytest.fixture(scope="module")
def built(tmp_path_factory, data) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("built") / "artifacts"
    build(folder, data)
    return folder


@pytest.fixture
def artifacts(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "artifacts")


def draw(artifacts: Path, data: Path, outdated: tuple[str, ...] = ()) -> str:  # noqa: F811
    where = {"outdated": frozenset(artifacts / name for name in outdated), "work": artifacts.parent / "work", "drawn": "Drawn today."}
    interim(artifacts, data, artifacts / "interim", params=make_params(), **where)
    return (artifacts / "interim/table.txt").read_text()


def failing(artifacts: Path) -> None:
    """The verdict of a gate that said no."""
    checks = [
        {"name": "coverage", "says": "share of images", "limit": "at least 0.9", "observed": 0.625, "passed": False},
        {"name": "texts_human", "says": "human texts", "limit": "at least 1", "observed": 1.0, "passed": True},
    ]
    write_json({"generation": listed_hash(artifacts / "generations/g1"), "checks": checks}, artifacts / "docs/gate-r1/results.json")


def test_what_failed_comes_first_with_limit_value_and_what_to_do(artifacts, data):  # noqa: F811
    failing(artifacts)
    table = draw(artifacts, data)
    assert table.index("FAILED: GATE@R1") < table.index("IN SHORT") < table.index("NOISE IN THE TEXTS") < table.index("CHECKS")
    assert line(table, "coverage", "0.625").split() == ["coverage", "0.625", "at", "least", "0.9"]
    assert "What to do: too many images keep no text: lower `assemble.threshold`" in " ".join(table.split())
    assert "`blip review artifacts/generations/g1 --out review.html`" in table and "`blip explain KEY" in table
    assert line(table, "gate@r1", "FAILED").split()[2:6] == ["FAILED:", "1", "of", "2"]
    assert ["coverage", "0.625", "at least 0.9", "NO", "share of images"] in page_rows(artifacts / "interim")


def test_a_verdict_on_another_generation_says_nothing_of_this_one(artifacts, data):  # noqa: F811
    failing(artifacts)
    path = artifacts / "docs/gate-r1/results.json"
    write_json(json.loads(path.read_text()) | {"generation": "of yesterday"}, path)
    table = draw(artifacts, data)
    assert "FAILED" not in table and "not checked as it is now" in line(table, "gate@r1")


def test_a_passed_gate_is_known_by_its_file_alone(artifacts, data):  # noqa: F811
    """DVC brings that, and no Data Docs."""
    failing(artifacts)
    verdict = json.loads((artifacts / "docs/gate-r1/results.json").read_text())
    checks = [check | {"passed": True} for check in verdict["checks"]]
    write_json(verdict | {"passed": True, "checks": checks}, artifacts / "gates/g1.json")
    assert "passed: 2 checks" in line(draw(artifacts, data), "gate@r1")


def test_texts_on_both_sides_of_the_threshold_are_shown_nearest_first(artifacts):
    """Over all shards; the threshold is 0.5, and what stands on it is above."""
    generation = artifacts / "generations/g1"
    scores = itertools.cycle([0.2, 0.45, 0.49, 0.5, 0.53, 0.6, 0.99])
    for path in sorted(generation.glob("web-*.parquet")):
        rows = [row | {"match": next(scores)} for row in read_table(path).to_pylist() if row["source"] == "web"]
        write_table(caption_table(rows[:3]), path)
    write_manifest(generation, rule=as_applied())
    near = pick_near(generation, artifacts / "shards", None, count=2)
    told = {side: [text.scores["match"] for example in near["web", side] for text in example.texts] for side in ("above", "below")}
    assert set(near) == {("web", "above"), ("web", "below")}
    found = [row["match"] for path in generation.glob("web-*.parquet") for row in read_table(path).to_pylist()]
    assert told["above"] == sorted(m for m in found if m >= 0.5)[:2]
    assert told["below"] == sorted((m for m in found if m < 0.5), reverse=True)[:2]


STAGES = {
    "ingest": ("generations/g1", "rounds", "evaluations", "history", "compare.json", "registration.json", "metrics/gate-r1.json"),
    "assemble@r1": ("evaluations", "history/pretrain-g1.csv", "compare.json", "registration.json", "metrics/gate-r1.json"),
    "evaluate@g0": ("evaluations/g1", "compare.json", "registration.json"),
}


@pytest.mark.parametrize("last", STAGES)
def test_a_chain_that_was_run_up_to_a_stage_is_drawn_so_far(artifacts, data, last):  # noqa: F811
    for path in (artifacts / name for name in STAGES[last]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    table, page = draw(artifacts, data), (artifacts / "interim/index.html").read_text()
    missing = re.search(r"Not there yet, or made of what has changed since: (.*?)\.\n", table, re.S)[1].split()
    assert "compare," in missing and ("assemble@r1," in missing) == (last == "ingest") and "evaluate@g1," in missing
    assert ("NOISE IN THE TEXTS" in table) == (last != "ingest") and ("THE MODELS" in table) == (last == "evaluate@g0")
    assert "DID IT HELP?" not in table and "g1 (challenger)" not in table and "What came in" in page
    assert ("Examples of the crawl" in page) == (last == "ingest") and "Drawn today." in page


def test_what_is_of_an_earlier_run_counts_as_not_there(artifacts, data):  # noqa: F811
    """The gate said no to a new generation: the model of the old one, and its comparison, are still on the disk."""
    table = draw(artifacts, data, outdated=("evaluations/g1", "compare.json", "registration.json", "metrics/decide-r1.json"))
    assert "DID IT HELP?" not in table and "g0 (baseline)" in table and "g1 (challenger)" not in table and "\nROUNDS\n" not in table


def test_a_folder_elsewhere_is_held_against_its_own_dvc_lock(artifacts, data, tmp_path):  # noqa: F811
    """As that of a run beside the project, whatever folder the verb is typed in."""
    made, read = {"path": "artifacts/generations/g1", "md5": "new"}, {"path": "artifacts/generations/g1", "md5": "old"}
    stages = {"assemble@r1": {"outs": [made]}, "evaluate@g1": {"deps": [read], "outs": [{"path": "artifacts/evaluations/g1", "md5": "m"}]}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    _draw(artifacts, data, tmp_path / "out", params=make_params(), work=tmp_path / "work")
    table = (tmp_path / "out/table.txt").read_text()
    assert "g0 (baseline)" in table and "g1 (challenger)" not in table


def test_what_a_decision_did_not_look_at_then_is_not_available(artifacts, data):  # noqa: F811
    """`decide.metrics` was changed, and decide has not run since."""
    path = artifacts / "metrics/decide-r1.json"
    numbers = json.loads(path.read_text())
    write_json(numbers | {"metrics": dict(list(numbers["metrics"].items())[1:])}, path)
    rounds = draw(artifacts, data).partition("\nROUNDS\n")[2]
    assert re.search(r"^r1 +g0 +g1 +g0 .*n/a", rounds, re.M), rounds[:500]


def test_a_comparison_of_other_models_is_not_shown(artifacts, data):  # noqa: F811
    """It reads the folder of all evaluations: who ran the chain up to `evaluate` has a comparison of the models before."""
    comparison = json.loads((artifacts / "compare.json").read_text())
    fits = {"g0": {"tr_r1": {**comparison["baselines"]["g0"]["tr_r1"], "challenger": 0.5, "baseline": 0.5}}}
    write_json(comparison | {"baselines": fits}, artifacts / "compare.json")
    assert "DID IT HELP?" in draw(artifacts, data)
    fits["g0"]["tr_r1"]["challenger"] = 0.4999
    write_json(comparison | {"baselines": fits}, artifacts / "compare.json")
    assert "DID IT HELP?" not in draw(artifacts, data)


def test_a_table_that_cannot_be_read_is_left_out_and_the_fault_is_told(artifacts, data):  # noqa: F811
    fault = {
        "name": "contract",
        "says": "tables as the schema says",
        "limit": "no fault",
        "observed": "web-0: no column text",
        "passed": False,
    }
    write_json({"generation": listed_hash(artifacts / "generations/g1"), "checks": [fault]}, artifacts / "docs/gate-r1/results.json")
    table = draw(artifacts, data)
    assert "web-0: no column text" in table and "NOISE IN THE TEXTS" not in table


def test_before_anything_is_there_the_message_says_so(tmp_path, data):  # noqa: F811
    with pytest.raises(ValueError, match="holds no generation yet.*`dvc repro` begins with the stage ingest"):
        draw(tmp_path / "artifacts", data)
    assert not (tmp_path / "artifacts/interim").exists()


def test_every_check_with_a_limit_has_advice_and_all_values_in_it_are_there(ingested, tmp_path):
    """The others are of the tables' rows, and share one."""
    judged = json.loads((ingested / "gates/g0.json").read_text())["checks"] + World(tmp_path).assemble().run()["checks"]
    limits = {c["name"] for c in judged if c["limit"] != "0 rows" and not c["name"].endswith("_rows")}
    limits |= {name.replace("synthetic", "fused") for name in limits}  # where a writer fuses
    by_labels = {f"judged_noise_{source}_upper" for source in ("web", "synthetic", "fused")}
    assert limits - {"keys_repeated", "images_without_text"} == REMEDIES.keys() - {"contract", *by_labels}
    values = make_params().model_dump(by_alias=True)
    for key in re.findall(r"`([a-z_]+(?:\.\w+)*)`", " ".join(REMEDIES.values())):
        found = values
        for name in key.replace("fused", "synthetic").split("."):  # the project's own values have no source fused
            assert name in found, key
            found = found[name]


@pytest.fixture
def validated(ingested, tmp_path, monkeypatch):
    """Runs the stage as DVC does, with limits that nothing meets."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ingested, tmp_path / "artifacts")
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["validate"]["min_images"] = 100_000
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    flags = {"generation": "generations/g0", "heldout": "heldout", "shards": "shards", "out-gate": "gates/g0.json"}
    flags |= {"out-decision": "decisions/g0.json", "out-metrics": "metrics/validate.json", "out-docs": "docs/validate"}
    return lambda: main(["stage", "validate", *(word for flag, path in flags.items() for word in (f"--{flag}", f"artifacts/{path}"))])


def test_validate_that_says_no_draws_the_page_and_its_message_names_it(validated, capsys):
    assert validated() == 1
    told = capsys.readouterr().err
    assert "images_web" in told and "The page artifacts/interim/index.html shows" in told and "blip review" not in told
    table = Path("artifacts/interim/table.txt").read_text()
    assert "FAILED: VALIDATE" in table and "images_human: human images with a kept text. What to do: bring more pictures" in table
    assert "Examples of the crawl" in Path("artifacts/interim/index.html").read_text()
    assert main(["interim", "--out", "again"]) == 0
    assert Path("again/table.txt").read_text().splitlines()[3:] == table.splitlines()[3:], "but for when it was drawn"


def test_a_page_that_cannot_be_drawn_hides_no_failed_check(validated, capsys, caplog):
    Path("artifacts/metrics/ingest.json").write_text("{")
    assert validated() == 1
    told = capsys.readouterr().err
    assert "images_web" in told and "The page" not in told and "ingest.json: not valid JSON" in caplog.text
