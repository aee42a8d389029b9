"""torch.compile of the blocks changes no loss beyond rounding, no name of a weight, and compiles equal blocks once."""

import copy
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from blip_core.training.loop import compile_blocks
from tests.support.trainings import Training


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_plain_blocks(ingested):
    """Traced and differentiated by the compiler, run by plain kernels: what it would compile is the same function."""
    expected = Training(ingested).gradients(2)
    compiled = Training(ingested)
    names = [list(m.state_dict()) for m in (compiled.model, compiled.objective)]
    for module in (compiled.model, compiled.objective):
        compile_blocks(module, backend="aot_eager")
    found = compiled.gradients(2)
    assert [list(m.state_dict()) for m in (compiled.model, compiled.objective)] == names
    for theirs, ours in zip(expected["steps"], found["steps"], strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        assert ours["gradients"].keys() == theirs["gradients"].keys()
        distance, length = (sum(float(g.square().sum()) for g in gs) ** 0.5 for gs in (_differences(ours, theirs), _all(theirs)))
        assert distance < 1e-3 * length
    assert not counters["graph_break"], "a block falls apart where the compiler cannot follow"
    assert counters["stats"]["unique_graphs"] <= 12, "equal blocks and other lengths of texts share what is compiled"


def _all(step: dict) -> list[torch.Tensor]:
    return list(step["gradients"].values())


def _differences(a: dict, b: dict) -> list[torch.Tensor]:
    return [x - b["gradients"][name] for name, x in a["gradients"].items()]


def test_a_copy_of_a_compiled_model_has_weights_of_its_own(model):
    pixels, ids, mask = torch.randn(2, 3, 16, 16), torch.tensor([[2, 9, 8, 3]] * 2), torch.ones(2, 4, dtype=torch.bool)
    compile_blocks(model, backend="eager")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = twin.text_features(ids, mask), twin.image_features(twin.image_tokens(pixels))
        for parameter in model.parameters():
            parameter.zero_()
        after = twin.text_features(ids, mask), twin.image_features(twin.image_tokens(pixels))
    assert all(torch.equal(b, a) and b.abs().sum() > 0 for b, a in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs a C++ compiler")
def test_a_training_with_real_kernels_has_the_history_of_a_plain_one(ingested, tmp_path):
    options = {"kind": "caption", "steps": 3, "max_tokens": 4}  # texts of one length: each compilation takes seconds
    plain, compiled = (Training(ingested, **options, compile=c).fit(tmp_path / str(c)) for c in (False, True))
    for row, expected in zip(compiled["history"], plain["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    assert counters["stats"]["unique_graphs"] > 0
