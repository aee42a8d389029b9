"""params.yaml stands in the form in which DVC writes it: another one would be lost with the first `dvc exp run -S`."""

import difflib
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from blip_core.config.params import load_params

ROOT = Path(__file__).parents[2]
FILES = ("params.yaml", "configs/vit-b16.yaml", "configs/vit-l16.yaml")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("key", "value"), [("seed", "7"), ("assemble.threshold.web", "0.71"), ("evaluate.sampler.beams", "5"), ("ingest.vocab_size", "3999")]
)
def test_a_value_that_dvc_sets_changes_one_line(tmp_path, file, key, value):
    shutil.copy(ROOT / file, tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", [f"{key}={value}"])
    before, after = (path.read_text().splitlines() for path in (ROOT / file, tmp_path / "params.yaml"))
    assert len(before) == len(after), "\n".join(difflib.unified_diff(before, after, n=0))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1 and value in changed[0]


@pytest.mark.parametrize("file", FILES)
def test_what_dvc_writes_is_read_as_before(tmp_path, file):
    """DVC's YAML has no quotes about off, which PyYAML reads as false."""
    shutil.copy(ROOT / file, tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", ["ingest.screens.markup=off", "training.optim.health=off"])
    params = load_params(tmp_path / "params.yaml")
    assert (params.ingest.screens.markup, params.pretrain.optim.health) == ("off", "off")
