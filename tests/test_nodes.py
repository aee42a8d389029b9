"""Training over several machines, as torchrun starts it: an agent for each, a process in each, a rendezvous that all of them reach."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_distributed import free_port
from tests.trainings import ROOT, environment, newest_step, pretrain_command

STEPS = 60


class Machine:
    """What a person starts on one machine; `torchrun` leads a process group of its own, so that the whole machine can die at once."""

    def __init__(self, number: int, port: int, command: list[str]):
        # no worker here knows that the others are on this machine too
        agent = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
        agent += [
            "--rdzv-endpoint",
            f"127.0.0.1:{port}",
            "--rdzv-conf",
            f"is_host={number == 0},join_timeout=120",
            "--local-addr",
            "127.0.0.1",
        ]
        env = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", GLOO_SOCKET_IFNAME="lo")
        words = [sys.executable, "-m", "torch.distributed.run", *agent, "-m", "--", *command[1:]]
        self.torchrun = subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def die(self) -> None:
        """As when the power fails: the agent and the processes that it started, which lead sessions of their own."""
        import psutil

        everyone = [*psutil.Process(self.torchrun.pid).children(recursive=True), psutil.Process(self.torchrun.pid)]
        for process in everyone:
            process.kill()
        self.torchrun.communicate()

    def end(self) -> str:
        said = self.torchrun.communicate(timeout=240)[1]
        assert self.torchrun.returncode == 0, said
        return said


def history(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "h.csv").open()))


@pytest.mark.slow
def test_a_machine_that_dies_and_comes_back_changes_nothing(ingested, tmp_path):
    """Two machines train as one does with the whole batch. The second dies in the middle and is started again: training goes on from the
    checkpoint, to the same losses and weights as far as two processes have those of one (tests/test_distributed.py)."""
    alone, folder, port = tmp_path / "one", tmp_path / "two", free_port()
    subprocess.run([sys.executable, *pretrain_command(ingested, alone, steps=STEPS, noise=0.0)], cwd=ROOT, env=environment(), check=True)
    command = pretrain_command(ingested, folder, steps=STEPS, noise=0.0)
    first, second = (Machine(number, port, command) for number in (0, 1))
    try:
        deadline = time.monotonic() + 120
        while newest_step(folder) < 20 and first.torchrun.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        second.die()
        second = Machine(1, port, command)
        said = first.end() + second.end()
    finally:
        for machine in (first, second):
            if machine.torchrun.poll() is None:
                machine.die()
    assert "2 processes, gloo" in said and "resumed at step" in said
    two, one = history(folder), history(alone)
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for name in ("loss", "itc", "itm", "lm"):
        assert [float(row[name]) for row in two] == pytest.approx([float(row[name]) for row in one], rel=0.02), name
