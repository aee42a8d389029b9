"""A disk that is full: what stood there before stays whole, nothing half-written is left, and it is said in plain words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip_core.files.atomic import disk_full, new_file
from blip_core.tracking.outbox import begin, left
from blip_core.weights.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path):
    """A file system of its own with room for 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def write_torch(path):
    import torch

    with path.open("wb") as f:
        torch.save(torch.zeros(10**6), f)


def write_safetensors(path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(10**6)}, path)


def write_parquet(path):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.random.default_rng(0).random(10**6)}), path)


def write_bytes(path):
    path.write_bytes(bytes(10**6))


@pytest.mark.parametrize("write", [write_torch, write_safetensors, write_parquet, write_bytes])
def test_whatever_library_writes_it_is_told_and_nothing_is_left(disk, write):
    with pytest.raises(Exception) as raised, new_file(disk / "out") as path:
        write(path)
    assert disk_full(raised.value) and list(disk.iterdir()) == []
    assert not disk_full(ValueError("too many images")) and not disk_full(FileNotFoundError(2, "No such file"))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(disk):
    """PyTorch's own writer says `unexpected pos` and nothing of the disk."""
    import torch

    save_checkpoint({"step": 1, "a": torch.ones(1000)}, disk, 1)
    with pytest.raises(Exception) as raised:
        save_checkpoint({"step": 2, "a": torch.ones(10**6)}, disk, 2)
    assert disk_full(raised.value) and load_checkpoint(disk)["step"] == 1
    assert {p.name for p in disk.iterdir()} <= {"step-00000001.pt", "step-00000001.sha256", "step-00000002.sha256"}


def test_what_is_kept_for_mlflow_outlives_a_full_disk(disk):
    """A record that was cut off is lost, and no other is."""
    journal = begin(disk, {"uri": "x"})
    journal.note(metrics=[["loss", 1.0, 0, 1]])
    filler = disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as f:
        while f.write(bytes(1024)):
            pass
    with pytest.raises(OSError):
        for step in range(10_000):
            journal.note(metrics=[["lost", float(step), 0, step]])
    filler.unlink()
    journal.note(metrics=[["loss", 2.0, 0, 2]])
    journal.close()
    entries = [entry["metrics"][0] for again in left(disk) for batch in again.unsent(1000) for entry in batch]
    assert [value for name, value, _, _ in entries if name == "loss"] == [1.0, 2.0]


def test_a_verb_says_it_without_a_traceback(tmp_path):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "blip_core", "plan", "--work", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "plan: the disk is full" in done.stderr and "Traceback" not in done.stderr
