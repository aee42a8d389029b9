"""The map of regimes: its cells and arms are whole, what arms cost, and what its page and `blip plan --regime` make of planted cells."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from blip_core.ablations.arms import arm_values, read_arms
from blip_core.config.params import check_params
from blip_core.config.reading import read_values
from blip_core.preview import regime as preview

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/truth"))
    yield
    for name in ("regimes", "regimes_page"):
        sys.modules.pop(name, None)


def test_every_cell_is_a_world_of_its_own_and_the_corners_come_first():
    import regimes

    cells = regimes.cells()
    assert len({cell.name for cell in cells}) == len(cells) == 30 + 2 * 8
    assert {(c.true, c.clean) for c in cells[:24]} == {(0.05, 100), (0.05, 1000), (0.8, 100), (0.8, 1000)}
    values = read_values(ROOT / "params.yaml")
    for cell in cells:
        kinds = check_params(cell.values(values), cell.name).sample.web_kinds
        true = {kind: share for kind, share in kinds.items() if kind in ("clean", "terse")}
        assert true == {"terse" if cell.says == "terse" else "clean": pytest.approx(cell.true)}, (
            "no other kind is left over from params.yaml"
        )


def test_every_arm_is_whole_and_those_at_equal_compute_spend_what_both_models_spend(tmp_path):
    """By the rule of regimes.yaml: the CPU seconds of the demo in steps of pretraining."""
    import regimes

    values = regimes.cells()[0].values(read_values(ROOT / "params.yaml"))
    arms = read_arms(regimes.ARMS).arms
    for name, arm in arms.items():
        check_params(arm_values(name, arm, values), name)
    steps = {"base/pretrain-g0": 250, "r1/tune_captioner": 60, "r1/tune_filter": 105, "r1/caption": 25, "r1/score": 20, "r1/calibrate": 25}
    for run, cpu in steps.items():
        (path := tmp_path / f".work/times/{run}.json").parent.mkdir(parents=True, exist_ok=True)
        rest = {"seconds": 1.0, "overhead_seconds": 1.0, "peak_mib": 1.0, "gpu_peak_mib": None, "ended": "2026-01-02T03:04:05+00:00"}
        path.write_text(json.dumps({"run": run, "cpu_seconds": cpu + 9.0, "overhead_cpu_seconds": 9.0, **rest}))
    spent = regimes.spent(tmp_path, values)
    assert spent["stages"] == steps, "start-up is no work of an arm's"
    assert {spent["arms"][arm] for arm in ("CF", "oracle", "long", "human-long", "F-long")} == {735.0}
    assert {arm: spent["arms"][arm] for arm in ("none", "human", "F", "C")} == {"none": 250, "human": 250, "F": 640, "C": 585}


def planted(true: float, seed: int, *, gap: float) -> dict:
    """A cell in which CF is `gap` behind the filter alone, and ahead of all others."""

    def row(value: float, **against: float) -> dict:
        tests = {other: {"difference": d, "low": d - 0.05, "high": d + 0.05} for other, d in against.items()}
        metrics = {metric: {"value": value, "low": value, "high": value} for metric in ("tr_r1", "ir_r1", "cider")}
        texts = {source: {"kept": 100, "false_kept": 0.25} for source in ("web", "synthetic")}
        return {"metrics": metrics, "texts": texts, "against": {o: dict.fromkeys(metrics, test) for o, test in tests.items()}}

    rows = {"none": row(0.1), "CF": row(0.4), "long": row(0.3, CF=-0.1), "F-long": row(0.4 + gap, CF=gap), "human-long": row(0.2, CF=-0.2)}
    kinds = {"terse": true, "mismatch": 1 - true}
    facts = {"sample": {"num_web": 6000, "num_test": 300, "num_train": 250, "web_kinds": kinds}, "steps": 250, "batch_size": 64}
    made = {"commit": "a" * 40, "machine": "x86_64, bf16", "rows": rows}
    return {"facts": facts, "seeds": {str(seed): made}, "gate": {"estimate": 0.2, "bound": 0.3}, "cpu_seconds": {"arms": {"CF": 200.0}}}


def cells(folder: Path, *told: tuple[float, int, float]) -> Path:
    """A folder of planted cells, and beside it the ablations of the project."""
    shutil.copy(ROOT / "benchmarks/results/ablations.json", folder)
    (results := folder / "regimes").mkdir()
    for i, (true, seed, gap) in enumerate(told):
        (results / f"{i}.json").write_text(json.dumps(planted(true, seed, gap=gap)))
    return results


def test_the_page_tells_who_is_ahead_beyond_the_interval(tmp_path):
    import regimes_page

    results = cells(tmp_path, (0.4, 0, 0.1), (0.4, 1, 0.01), (0.05, 0, 0.1))
    begun = planted(0.8, 0, gap=0.1)
    del begun["seeds"]["0"]["rows"]["F-long"]
    (results / "3.json").write_text(json.dumps(begun))
    (page := tmp_path / "page.md").write_text(f"# Title\n\n{regimes_page.BEGIN}\nold\n{regimes_page.END}\n\nafter\n")
    regimes_page.write_map(results, page)
    told = page.read_text()
    line = "| 40% true, terse, 250 | 2 | 0.400 / 0.400 / 0.400 | 0.300 / 0.300 / 0.300 (6, 0, 0) | 0.200 / 0.200 / 0.200 (6, 0, 0) |"
    assert f"{line} 0.455 / 0.455 / 0.455 (0, 3, 3) |" in told and told.startswith("# Title") and told.endswith("after\n")
    assert "cells so far: 3 of 46, 3 of commit aaaaaaaaaa (x86_64, bf16)" in told and "80%" not in told and "old" not in told
    assert (tmp_path / "regimes.png").exists() and (tmp_path / "spending.png").exists()
    demo, *places = json.loads((tmp_path / "regimes.json").read_text())
    assert [p["arms"]["F-long"]["CF"] for p in places] == [{"behind": 3}, {"behind": 3, "even": 3}]
    assert demo["says"] == "both" and demo["arms"]["CF"]["spent"] == 1446 and demo["arms"]["long"]["spent"] == 1000
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="expected the lines"):
        regimes_page.write_map(results, page)


def test_a_user_is_told_the_nearest_place_or_that_there_is_none(tmp_path, monkeypatch):
    import regimes_page

    found = [regimes_page.read_cell(path) for path in sorted(cells(tmp_path, (0.4, 0, 0.1), (0.05, 0, -0.1)).iterdir())]
    (file := tmp_path / "regimes.json").write_text(json.dumps([regimes_page.short([own]) for own in found]))
    monkeypatch.setattr(preview, "repository_file", lambda name: file)
    told = preview.regime(0.65, crawl=5000, clean=300, ingested=tmp_path / "none.json")
    first, second = told.index("the filter alone"), told.index("captioner and filter:")
    assert "60% wrong, 6,000 and 250 pictures, 1 seed;" in told and first < second, "the best comes first"
    assert "(against captioner and filter beyond the interval better on 3, worse on 0 of 3; 100% of its compute)" in told
    assert "full captions:\n  outside of what was measured" in told and told.count("outside") == 2
    high = preview.regime(0.93, crawl=5000, clean=300, ingested=tmp_path / "none.json")
    assert high.index("captioner and filter:") < high.index("the filter alone")
    for noise, crawl, clean in ((0.65, 60_000, 300), (0.65, 5000, 40), (1.0, 5000, 300)):
        assert preview.regime(noise, crawl=crawl, clean=clean, ingested=tmp_path).count("outside") == 3
    (ingested := tmp_path / "ingest.json").write_text('{"images_web": 5000, "images_train": 300}')
    assert preview.regime(0.65, crawl=None, clean=None, ingested=ingested) == told
    with pytest.raises(ValueError, match="--clean: not given, and .*none.json is not there"):
        preview.regime(0.65, crawl=1, clean=None, ingested=tmp_path / "none.json")
    with pytest.raises(ValueError, match="--regime 65: expected the share"):
        preview.regime(65, crawl=1, clean=1, ingested=ingested)


def test_the_project_s_own_map_answers_for_the_demo():
    told = preview.regime(0.6, crawl=16_000, clean=250, ingested=ROOT / "none.json")
    assert told.index("the crawl as it is, longer training") < told.index("captioner and filter:") and "3 seeds" in told
