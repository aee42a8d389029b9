"""The cost of a stage is that of the stage and its children, start-up apart, and is written down only when it ends well."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip_core.__main__ import main
from blip_core.runtime.times import Meter, read_times

ROOT = Path(__file__).parents[2]


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_stages_own_part_is_told_from_its_start_up(tmp_path):
    meter = Meter()
    burn(0.1)
    with meter.stage():
        burn(0.3)
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass"], check=True)
        time.sleep(0.2)
    meter.write(tmp_path, "r1/caption")
    (found,) = read_times(tmp_path)
    assert found.run == "r1/caption" and found.gpu_peak_mib is None and 10 < found.peak_mib < 100_000
    own_cpu, own = found.cpu_seconds - found.overhead_cpu_seconds, found.seconds - found.overhead_seconds
    assert 0.68 <= own_cpu <= own - 0.15, "the child's CPU seconds count, sleep does not"
    assert 0.09 <= found.overhead_cpu_seconds < 0.3 and found.overhead_seconds >= found.overhead_cpu_seconds - 0.05


def test_only_the_first_process_of_a_training_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    Meter().write(tmp_path, "base/pretrain-g0")
    assert read_times(tmp_path) == []


def test_the_cli_writes_the_cost_of_a_stage_and_the_verb_shows_it(ingested, tmp_path, capsys):
    inputs = ["--generation", ingested / "generations/g0", "--heldout", ingested / "heldout", "--shards", ingested / "shards"]
    outs = [
        "--out-gate",
        tmp_path / "gate.json",
        "--out-decision",
        tmp_path / "decision.json",
        "--out-metrics",
        tmp_path / "metrics.json",
        "--out-docs",
        tmp_path / "docs/validate",
    ]
    strict = (ROOT / "params.yaml").read_text().replace("min_heldout_images: 50", "min_heldout_images: 5000")
    (tmp_path / "strict.yaml").write_text(strict)
    command = [str(word) for word in ("stage", "validate", *inputs, *outs, "--work", tmp_path / "work", "--params")]
    assert main([*command, str(tmp_path / "strict.yaml")]) == 1
    assert read_times(tmp_path / "work") == [], "a stage that failed has no cost yet"
    assert main(["times", "--work", str(tmp_path / "work")]) == 1
    assert "no stage has run with this folder" in capsys.readouterr().err

    assert main([*command, str(ROOT / "params.yaml")]) == 0, capsys.readouterr().err
    cost = json.loads((tmp_path / "work/times/validate.json").read_text())
    assert 0 < cost["overhead_seconds"] < cost["seconds"]
    assert main(["times", "--work", str(tmp_path / "work")]) == 0
    shown = capsys.readouterr().out
    assert "validate" in shown and f"{cost['seconds']:,.1f}" in shown


@pytest.mark.parametrize("name", ["0", "many"])
def test_a_wrong_number_of_cores_is_said_by_every_verb(name):
    done = subprocess.run(
        [sys.executable, "-m", "blip_core", "params"], cwd=ROOT, env={**os.environ, "BLIP_CORES": name}, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith(f"BLIP_CORES is '{name}'; expected") and "Traceback" not in done.stderr
