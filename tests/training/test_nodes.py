"""Training over several machines, as torchrun starts it: an agent for each, a process in each, a rendezvous that all of them reach."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import HANG, kill_tree, wait_until
from tests.support.trainings import ROOT, environment, newest_step, pretrain_command
from tests.training.test_distributed import free_port

STEPS = 40


class Machine:
    """What a person starts on one machine: torchrun's agent with one process."""

    def __init__(self, number: int, port: int, command: list[str]):
        conf = f"is_host={number == 0},join_timeout={HANG:.0f},keep_alive_interval=2"
        place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", conf, "--local-addr", "127.0.0.1"]
        agent = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", *place]
        env = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", GLOO_SOCKET_IFNAME="lo")
        words = [sys.executable, "-m", "torch.distributed.run", *agent, "-m", "--", *command[1:]]
        self.torchrun = subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)

    def die(self) -> None:
        """As when the power fails: the agent and what it started."""
        kill_tree(self.torchrun.pid)
        self.torchrun.communicate()

    def end(self) -> str:
        said = self.torchrun.communicate(timeout=HANG)[1]
        assert self.torchrun.returncode == 0, said
        return said


def train_on_two(folder: Path, command: list[str], *, die_at: int | None = None) -> str:
    """What both said. Behind step `die_at` the second dies and is started again."""
    port = free_port()
    machines = [Machine(number, port, command) for number in (0, 1)]
    try:
        if die_at:
            wait_until(lambda: newest_step(folder) >= die_at or machines[0].torchrun.poll() is not None, pause=0.005)
            machines[1].die()
            machines[1] = Machine(1, port, command)
        return "".join(machine.end() for machine in machines)
    finally:
        for machine in machines:
            if machine.torchrun.poll() is None:
                machine.die()


def losses(folder: Path) -> list[list[float]]:
    return [[float(row[name]) for name in ("step", "loss", "itc", "itm", "lm")] for row in csv.DictReader((folder / "h.csv").open())]


@pytest.mark.slow
def test_a_machine_that_dies_and_comes_back_changes_no_bit(ingested, tmp_path):
    """Two machines train as one process does with the whole batch, as far as rounding lets them (tests/training/test_distributed.py). When
    the second dies in the middle and is started again, the training goes on from the checkpoint and ends with the very same weights."""
    one, whole, broken = (tmp_path / name for name in ("one", "whole", "broken"))
    command = {folder: pretrain_command(ingested, folder, steps=STEPS, noise=0.0) for folder in (one, whole, broken)}
    subprocess.run([sys.executable, *command[one]], cwd=ROOT, env=environment(), check=True)
    assert "2 processes, gloo" in train_on_two(whole, command[whole])
    said = train_on_two(broken, command[broken], die_at=10)
    assert "another process of this training ended" in said and "resumed at step" in said
    for got, expected in zip(losses(whole), losses(one), strict=True):
        assert got == pytest.approx(expected, rel=0.02)
    for name in ("m/model.safetensors", "h.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
