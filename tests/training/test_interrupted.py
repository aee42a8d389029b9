"""A training that is killed at any moment goes on as if nothing had happened, and leaves nothing half-written."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip_core.__main__ import main
from tests.support.processes import HANG, gone, heed_interrupts, wait_until
from tests.support.trainings import ROOT, environment, newest_step, pretrain_command

STEPS = 300


def start(command: list[str]) -> subprocess.Popen:
    options = {"cwd": ROOT, "env": environment(), "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed_interrupts}
    return subprocess.Popen([sys.executable, *command], **options)


def interrupt(process: subprocess.Popen, folder: Path, by: signal.Signals) -> str:
    """Send the signal at a random moment after two new checkpoints; returns what the process said."""
    before = newest_step(folder)
    wait_until(lambda: newest_step(folder) >= before + 20 or process.poll() is not None, pause=0.002)
    time.sleep(random.uniform(0, 0.1))
    assert process.poll() is None, f"ended before it could be interrupted: {process.communicate()[1]}"
    process.send_signal(by)
    return process.communicate(timeout=HANG)[1]


@pytest.mark.slow
def test_kill_and_ctrl_c_at_random_moments_change_no_bit_of_the_model(ingested, tmp_path):
    """SIGKILL, SIGTERM, SIGKILL, then Ctrl-C, then to the end; dropout and stochastic depth are on."""
    whole = start(pretrain_command(ingested, tmp_path / "whole", steps=STEPS, noise=0.1))
    said = whole.communicate(timeout=HANG)[1]
    assert whole.returncode == 0, said
    folder = tmp_path / "broken"
    command = pretrain_command(ingested, folder, steps=STEPS, noise=0.1)
    for by, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(command)
        interrupt(process, folder, by)
        assert process.returncode == code and not (folder / "m").exists()
    said = interrupt(start(command), folder, signal.SIGINT)
    assert "stopped; nothing half-written is left, and running it again goes on" in said and "Traceback" not in said
    assert "resumed at step" in said
    assert not list(folder.rglob("_tmp.*")) and not (folder / "m").exists()
    last = start(command)
    said = last.communicate(timeout=HANG)[1]
    assert last.returncode == 0 and "resumed at step" in said, said
    for name in ("m/model.safetensors", "h.csv", "m.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [p.name for p in (folder / "work").iterdir()] == ["times"]


def test_who_calls_main_keeps_its_own_signal_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert main(["params", "--params", str(ROOT / "params.yaml")]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def worker_of(launcher: int, rank: int) -> int:
    """The process that torchrun started for a rank."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("PPid:"))
            if int(parent) == launcher and f"RANK={rank}\0" in "\0" + (status.parent / "environ").read_text():
                return int(status.parent.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked
    raise AssertionError(f"torchrun {launcher} has no worker of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds torchrun's workers in /proc")
def test_a_dead_process_is_said_and_torchrun_goes_on_from_the_checkpoint(ingested, tmp_path):
    """One of two processes is killed; torchrun restarts both and the result is that of an unbroken run of one process."""
    folder, alone = tmp_path / "two", tmp_path / "one"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "--"]
    command += pretrain_command(ingested, folder, steps=120, noise=0.0)[1:]
    env = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    launcher = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: newest_step(folder) >= 30 or launcher.poll() is not None, pause=0.002)
        dead, other = (worker_of(launcher.pid, rank) for rank in (1, 0))
        launcher.send_signal(signal.SIGSTOP)  # else it may end the other one before that has said why
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: gone(other))
        launcher.send_signal(signal.SIGCONT)
        said = launcher.communicate(timeout=HANG)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 0, said
    assert "another process of this training ended" in said and "2 processes, gloo" in said and "resumed at step" in said
    unbroken = start(pretrain_command(ingested, alone, steps=120, noise=0.0))
    said = unbroken.communicate(timeout=HANG)[1]
    assert unbroken.returncode == 0, said
    two, one = (list(csv.DictReader((f / "h.csv").open())) for f in (folder, alone))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert [float(row["lm"]) for row in two] == pytest.approx([float(row["lm"]) for row in one], rel=0.02)
    assert [p.name for p in (folder / "work").iterdir()] == ["times"]
