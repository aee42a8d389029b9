"""Two processes train as one: equal losses, gradients and queue, resumed with another number, and restarted after a death."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from blip_core.compute.distributed import agree, process_group, rank
from tests.support.processes import HANG, wait_until
from tests.support.query_steps import gradients
from tests.support.trainings import Training

GRADIENTS = {
    "pretrain": {},
    "filter": {"kind": "filter"},  # leaves parameters without gradient
    "caption": {"kind": "caption"},
    "optional": {"kind": "optional"},  # what it draws follows the pair, not the process
    "accumulate": {"accumulate": 2, "recompute": 1},
    "bf16": {"precision": "bf16"},
}


def worker(place: int, artifacts: Path, out: Path, ports: list[int], tokenizer) -> None:
    """What each of two processes does; each writes what it saw."""
    os.environ |= {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    torch.set_num_threads(1)
    with process_group(int(HANG)):
        seen = {"agree": agree(f"of {rank()}"), "rank": rank()}
        seen |= {name: Training(artifacts, **changes).gradients(3) for name, changes in GRADIENTS.items()}
        seen["queries"] = gradients(tokenizer, own=slice(3 * place, 3 * place + 3))
        seen["whole"] = Training(artifacts).fit(out / "whole")
        seen["2 to 1"] = Training(artifacts).fit(out / "2to1", stop_at=7)
        seen["1 to 2"] = Training(artifacts).fit(out / ("1to2" if place == 0 else "empty"))
    os.environ["MASTER_PORT"] = str(ports[1])
    (out / f"ready-{place}").touch()
    wait_until(lambda: (out / f"ready-{1 - place}").exists(), pause=0.002)  # they join within the three seconds too
    try:
        with process_group(3):
            if place == 1:
                wait_until((out / "given-up").exists)
            agree(None)
    except RuntimeError as e:
        seen["lost"] = str(e)
    (out / "given-up").touch()
    torch.save(seen, out / f"{place}.pt")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def two(ingested, tokenizer, tmp_path_factory) -> list[dict]:
    """What two processes saw, and under "folder" where their checkpoints lie. A single process left one before them."""
    out = tmp_path_factory.mktemp("two")
    Training(ingested).fit(out / "1to2", stop_at=7)
    mp.spawn(worker, args=(ingested, out, [free_port(), free_port()], tokenizer), nprocs=2)
    return [{**torch.load(out / f"{place}.pt", weights_only=True), "folder": out} for place in (0, 1)]


@pytest.mark.parametrize("name", ["pretrain", "filter", "caption", "optional", "accumulate"])
def test_two_processes_give_the_losses_and_gradients_of_one(ingested, two, name):
    """To 1e-5, over three steps with a queue: ITC, ITM with negatives of the whole batch, LM with one mean over all tokens."""
    one = Training(ingested, **GRADIENTS[name]).gradients(3)
    for step, first, second in zip(one["steps"], two[0][name]["steps"], two[1][name]["steps"], strict=True):
        for loss, value in step["losses"].items():
            assert (first["losses"][loss] + second["losses"][loss]) / 2 == pytest.approx(value, abs=1e-5), loss
        assert step["gradients"].keys() == first["gradients"].keys()
        for parameter, gradient in step["gradients"].items():
            shared = first["gradients"][parameter]
            torch.testing.assert_close(shared, gradient, atol=1e-5, rtol=1e-5, msg=lambda m, p=parameter: f"{p}: {m}")
            assert torch.equal(shared, second["gradients"][parameter])
    assert len(step["gradients"]) > 10 and any(g.abs().max() > 1e-2 for g in step["gradients"].values())


def test_a_q_former_has_the_gradient_of_one_process_with_both_batches(two, tokenizer):
    """Of every weight and the temperature: the features of ITC are gathered with their gradient."""
    one, first, second = gradients(tokenizer), two[0]["queries"], two[1]["queries"]
    for loss, value in one["losses"].items():
        assert (first["losses"][loss] + second["losses"][loss]) / 2 == pytest.approx(value, abs=1e-5), loss
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(first["gradients"][name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert all(g.abs().max() > 1e-4 for n, g in one["gradients"].items() if not n.endswith("bias"))


def test_processes_see_different_pairs(two):
    """Else equal gradients would prove nothing."""
    assert two[0]["caption"]["steps"][0]["losses"] != two[1]["caption"]["steps"][0]["losses"]


@pytest.mark.parametrize("name", ["pretrain", "accumulate", "bf16"])
def test_the_queue_is_the_same_in_every_process(ingested, two, name):
    one = Training(ingested, **GRADIENTS[name]).gradients(3)["queue"]
    for key, queue in one.items():
        assert torch.equal(two[0][name]["queue"][key], two[1][name]["queue"][key])
        torch.testing.assert_close(two[0][name]["queue"][key], queue, atol=2e-2 if name == "bf16" else 1e-5, rtol=0)
    assert one["contrast.image_id_queue"].unique().numel() > 20


def test_two_processes_in_bf16_stay_near_one(ingested, two):
    one = Training(ingested, **GRADIENTS["bf16"]).gradients(3)
    for step, first, second in zip(one["steps"], two[0]["bf16"]["steps"], two[1]["bf16"]["steps"], strict=True):
        for loss, value in step["losses"].items():
            assert (first["losses"][loss] + second["losses"][loss]) / 2 == pytest.approx(value, abs=0.05), loss


def close(history: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in history] == [row["step"] for row in expected]
    for row, other in zip(history, expected, strict=True):
        for column in ("loss", "itc", "itm", "lm", "temperature", "grad_norm", "lr"):
            assert row[column] == pytest.approx(other[column], rel=2e-3), (row["step"], column)


def test_a_whole_training_is_the_same_and_both_processes_end_with_the_same_model(ingested, two, tmp_path):
    """Clipping included. Adam turns rounding of gradients that should be zero into steps, hence the looser tolerance."""
    one = Training(ingested).fit(tmp_path)
    close(two[0]["whole"]["history"], one["history"])
    assert two[0]["whole"]["history"] == two[1]["whole"]["history"]
    for part in ("model", "objective"):
        for key, value in two[0]["whole"][part].items():
            other = two[1]["whole"][part][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_a_run_goes_on_with_another_number_of_processes(ingested, two, tmp_path):
    """Stopped behind step 7 of 9, checkpoint at 5: from two processes to one, and from one to two, of which the second was told of
    a folder without checkpoints: the first one's choice counts."""
    whole = Training(ingested).fit(tmp_path)["history"]
    close(Training(ingested).fit(two[0]["folder"] / "2to1")["history"], whole)
    close(two[0]["1 to 2"]["history"], whole)


def test_process_0_decides_and_alone_writes(two):
    assert two[0]["agree"] == two[1]["agree"] == "of 0" and [t["rank"] for t in two] == [0, 1]
    assert sorted(p.name for p in (two[0]["folder"] / "whole").glob("*.pt")) == ["step-00000005.pt"]


def test_a_process_that_does_not_answer_is_given_up(two):
    """Process 1 says nothing until process 0 has given it up, after the 3 seconds of the timeout."""
    assert two[0]["lost"].startswith("process 0 of 2: another process of this training ended, or did not answer for 3 seconds")
    assert "goes on from the last checkpoint" in two[0]["lost"]


def test_a_batch_that_does_not_divide_is_refused(ingested):
    with pytest.raises(ValueError, match="batch_size 16 does not divide into 3 micro-batches"):
        Training(ingested, accumulate=3)
    with pytest.raises(ValueError, match="of two images or more"):
        Training(ingested, accumulate=16)
