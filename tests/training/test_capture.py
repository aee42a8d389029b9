"""A captured step: the losses of an eager one, one graph for each length of texts, one wait for the device."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch._dynamo import eval_frame
from torch._dynamo.utils import counters
from torch.profiler import profile

from blip_core.compute.distributed import process_group
from blip_core.config.training import OptimConfig
from blip_core.training.capture import Capture
from blip_core.training.loop import _Step, _train_step, backward, make_optimizer, parallel
from blip_core.training.step import Objective
from tests.support.trainings import Training
from tests.training.test_distributed import free_port

CAPTURED = {"compile": "step", "max_tokens": 20, "pad_to": 4}  # the texts of the sample's batches end at 11 to 18
ONE_LENGTH = {"max_tokens": 20, "pad_to": 20, "steps": 4, "checkpoint_every": 2}


@pytest.fixture(autouse=True)
def nothing_compiled():
    forget()
    counters.clear()
    yield
    forget()


def forget() -> None:
    """All that was compiled. torch resets its backends in a loop that breaks where one comes meanwhile; here none has anything to reset."""
    eval_frame.cached_backends.clear()
    torch._dynamo.reset()


def by(backend: str):
    """What is traced is run by plain kernels: it takes seconds to compile and not minutes."""
    return torch.compiler.set_stance(force_backend=backend)


def steps(training: Training, num: int) -> tuple[list[dict[str, float]], list[str]]:
    """Losses and norm of the first steps, and how the passes of one more ask the device for a value."""
    stepper = parallel(training.model, training.objective, capture=Capture.of(training.cfg))
    optimizer = make_optimizer(training.model, training.objective, training.cfg)
    *batches, last = (training.batches[step] for step in range(num + 1))
    rows = [_train_step(stepper, optimizer, [batch], training.cfg, 0) for batch in batches]
    with profile() as seen:
        backward(stepper, [last], precision=training.cfg.precision)
    asked = [e.name for e in seen.events() if e.name in ("aten::_local_scalar_dense", "aten::nonzero")]
    return [{k: float(v) for k, v in row.items()} for row in rows], asked


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"kind": "caption"}])
def test_padding_and_empty_places_of_the_queue_change_no_loss_and_no_gradient(ingested, changes):
    """Nothing is compiled. A queue of 40 that 16 rows enter at a time: empty, filled in part, full and turned over."""
    plain = Training(ingested, hardness_ramp=0.5, **changes)
    padded = Training(ingested, hardness_ramp=0.5, **changes, compile="step", pad_to=24)
    expected = plain.gradients(4)
    with torch.compiler.set_stance("force_eager"):
        found = padded.gradients(4)
    for theirs, ours in zip(expected["steps"], found["steps"], strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
        for name, gradient in theirs["gradients"].items():
            torch.testing.assert_close(ours["gradients"][name], gradient, atol=1e-6, rtol=1e-4)
    for name, queue in expected["queue"].items():
        torch.testing.assert_close(found["queue"][name], queue, atol=1e-6, rtol=0)
    assert plain.objective.state_dict().get("contrast._extra_state") == padded.objective.state_dict().get("contrast._extra_state")
    last = plain.batches[3]
    assert padded.objective.vitals(last) == pytest.approx(plain.objective.vitals(last), rel=1e-5)


def test_a_captured_step_has_the_losses_of_an_eager_one(ingested):
    """And as many graphs as lengths. None breaks off (`fullgraph` would raise), none asks for a value: what is left is the one question
    whether losses are finite."""
    training = Training(ingested, hardness_ramp=0.5, **CAPTURED)
    expected, _ = steps(Training(ingested, hardness_ramp=0.5, max_tokens=20), 4)
    with by("eager"):
        found, asked = steps(training, 4)
    for row, other in zip(found, expected, strict=True):
        losses = {k: other[k] for k in ("itc", "itm", "lm")}
        assert {k: row[k] for k in losses} == pytest.approx(losses, rel=1e-6) and row == pytest.approx(other, rel=1e-5)
    lengths = {training.batches[step].ids.shape[1] for step in range(4)}
    assert len(lengths) > 2 and counters["stats"]["unique_graphs"] == len({-(-length // 4) for length in lengths}) == 2
    assert not counters["graph_break"] and not asked


def test_what_has_no_fixed_shapes_is_refused(model):
    with pytest.raises(ValueError, match=r"optim\.compile is step.* here a Objective trains: set its optim.compile to true"):
        Capture((20,)).hold(_Step(model, Objective()))


def test_more_lengths_than_torch_compiles_are_refused(params):
    values = params.pretrain.optim.model_dump() | {"compile": "step", "max_tokens": 24}
    assert OptimConfig(**values).lengths == (8, 16, 24)
    with pytest.raises(ValueError, match="pad_to 2, max_tokens 24: 12 lengths of texts.*set pad_to to 3 or more"):
        OptimConfig(**values | {"pad_to": 2})


@pytest.mark.slow  # three compilations
def test_a_resumed_run_equals_an_unbroken_one(ingested, tmp_path):
    """Bit for bit, forward and backward pass compiled."""
    with by("aot_eager"):
        whole, _, again = (
            Training(ingested, **ONE_LENGTH, compile="step").fit(tmp_path / folder, stop_at=stop)
            for folder, stop in (("whole", None), ("broken", 3), ("broken", None))
        )
    assert whole["history"] == again["history"]
    for part in ("model", "objective"):
        for name, value in whole[part].items():
            other = again[part][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.slow  # a minute of a C++ compiler's work and more
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs a C++ compiler")
def test_real_kernels_have_the_history_of_plain_ones(ingested, tmp_path):
    plain, compiled = (Training(ingested, kind="caption", **ONE_LENGTH, compile=c).fit(tmp_path / str(c)) for c in (False, "step"))
    for row, expected in zip(compiled["history"], plain["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 1


def worker(place: int, artifacts: Path, out: Path, port: int) -> None:
    os.environ |= {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with process_group(300), by("aot_eager"):
        torch.save(Training(artifacts, **CAPTURED).gradients(2), out / f"{place}.pt")


@pytest.mark.slow  # each of two processes compiles
def test_two_processes_capture_their_steps_and_train_as_one(ingested, tmp_path):
    """What they exchange is in the graph: features for ITC, texts and counts."""
    mp.spawn(worker, args=(ingested, tmp_path, free_port()), nprocs=2)
    first, second = (torch.load(tmp_path / f"{place}.pt", weights_only=True) for place in (0, 1))
    one = Training(ingested, max_tokens=20).gradients(2)
    for step, mine, theirs in zip(one["steps"], first["steps"], second["steps"], strict=True):
        for loss, value in step["losses"].items():
            assert (mine["losses"][loss] + theirs["losses"][loss]) / 2 == pytest.approx(value, abs=1e-5), loss
        for name, gradient in step["gradients"].items():
            torch.testing.assert_close(mine["gradients"][name], gradient, atol=1e-5, rtol=1e-5)
            assert torch.equal(mine["gradients"][name], theirs["gradients"][name])
    for name, queue in one["queue"].items():
        assert torch.equal(first["queue"][name], second["queue"][name])
        torch.testing.assert_close(first["queue"][name], queue, atol=1e-5, rtol=0)
