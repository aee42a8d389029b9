"""The number of cores is that of the container, not of the machine; an override and torchrun's processes are heeded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from blip_core.config.params import Params
from blip_core.runtime import cores
from blip_core.runtime.cores import available_cores, loading_workers

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name in (cores.OVERRIDE, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def found(root: Path, groups: str, files: dict[str, str], **environ: str) -> int:
    """Cores in a made-up control group tree: `files` below /sys/fs/cgroup, `groups` as /proc/self/cgroup."""
    for name, text in files.items():
        (root / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / name).write_text(text)
    (root / "groups").write_text(groups)
    return available_cores(environ, groups=root / "groups", mounts=root / "sys")


V1 = "9:name=systemd:/\n4:memory:/docker/abc\n3:cpuset:/docker/abc\n2:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),  # of 2.5, the whole ones
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a core is one thread
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),  # no more than there are
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000\n", "user/cpu.max": "200000 100000\n"}, 2),  # a limit above binds too
        ("0::/host/path/of/it\n", {"cpu.max": "400000 100000\n"}, 4),  # a container that sees its group as the root
        (V1 + "0::/\n", {"unified/cpu.max": "500000 100000\n"}, 5),  # both versions at once
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "50000\n"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (V1, {"memory/docker/abc/cpu.max": "100000 100000\n"}, 8),  # of another controller
    ],
)
def test_the_quota_of_the_container_counts(tmp_path, groups, files, expected):
    assert found(tmp_path, groups, files) == expected


def test_without_linux_the_machine_is_asked(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores({}, groups=tmp_path / "none", mounts=tmp_path) == 6


def test_the_override_wins_over_the_quota_and_may_exceed_it(tmp_path):
    assert found(tmp_path, "0::/\n", {"cpu.max": "100000 100000\n"}, BLIP_CORES="12") == 12


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", ""])
def test_an_override_that_is_no_number_of_cores_is_told(text):
    with pytest.raises(ValueError, match=f"BLIP_CORES is '{text}'; expected the number of cores"):
        available_cores({"BLIP_CORES": text})


def test_processes_of_one_machine_share_its_cores(tmp_path):
    assert found(tmp_path, "0::/\n", {}, LOCAL_WORLD_SIZE="3") == 2
    assert found(tmp_path, "0::/\n", {}, LOCAL_WORLD_SIZE="100") == 1
    assert found(tmp_path, "0::/\n", {}, LOCAL_WORLD_SIZE="2", BLIP_CORES="6") == 3


@pytest.mark.parametrize(
    ("available", "threads", "expected"), [("8", 3, 5), ("8", 0, 0), ("2", 4, 0), ("1", 1, 0), ("64", 4, cores.MOST_WORKERS)]
)
def test_workers_take_what_the_training_leaves(monkeypatch, available, threads, expected):
    monkeypatch.setenv("BLIP_CORES", available)
    assert loading_workers(threads=threads) == expected


def test_workers_of_null_are_null_on_every_machine():
    """DVC compares what params.yaml says; the loader of the batches asks the machine (tests/training/test_batches.py)."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["pretrain"]["optim"] |= {"workers": None}
    params = Params(**values)
    assert params.pretrain.optim.workers is None and params.tune_filter.optim.workers == values["training"]["optim"]["workers"]
    with pytest.raises(ValidationError, match="workers"):
        Params(**values | {"tune_filter": values["tune_filter"] | {"optim": values["tune_filter"]["optim"] | {"workers": -1}}})


@pytest.mark.parametrize("environ", [{"BLIP_CORES": "1"}, {"BLIP_CORES": "64", "OMP_NUM_THREADS": "1"}])
def test_the_cli_gives_every_library_its_threads(environ):
    """torch must take the number over, which it reads once, when it is imported."""
    code = "from blip_core.__main__ import main; main(['params']); import torch; print(torch.get_num_threads())"
    rest = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], env=rest | environ, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"
