"""The benchmark for a GPU: the work it divides by is what PyTorch counts, and it runs where torch, numpy, pydantic and PyYAML are all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip_core.compute.precision import native_bf16

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks/speed"
ABSENT = ("pyarrow", "sklearn", "simplejpeg", "PIL", "safetensors", "tokenizers", "tqdm", "scipy", "pandas", "transformers", "matplotlib")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    yield gpu
    for name in ("gpu", "gpu_sides", "public_step"):
        sys.modules.pop(name, None)


def test_the_work_of_a_step_is_what_pytorch_counts(gpu):
    """Forward and backward of all three losses. Kernels of attention that compute scores again in the backward pass are off."""
    from blip_core.preview.plan import step_flops
    from blip_core.training.loop import backward, parallel
    from blip_core.training.objectives import PretrainObjective

    setting = gpu.Setting("tiny", torch.device("cpu"))
    model = setting.model()
    stepper = parallel(model, PretrainObjective(model, setting.contrast, setting.params.pretrain.language))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backward(stepper, [setting.batch(6)], precision="fp32")
    v = model.cfg.vision
    pixels_gradient = 2 * (v.image_size // v.patch_size) ** 2 * 3 * v.patch_size**2 * v.width  # which nobody asks for
    expected = 6 * (step_flops(model.cfg, "pretrain", tokens=gpu.TOKENS, vocabulary=setting.vocabulary) - pixels_gradient)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("limit", [*range(8, 40), 100, 257, 1000, 5000])
def test_the_largest_batch_fits_and_an_eighth_more_does_not(gpu, limit):
    tried = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    found = gpu.largest(fits, first=8, most=1024)
    assert found <= min(limit, 1024) and (found == 1024 or not found + max(1, found // 8) <= min(limit, 1024) or limit > 1024)
    assert found >= 0.85 * min(limit, 1024) and len(tried) < 14 and max(tried) <= 1024
    assert gpu.largest(fits, first=2 * limit, most=10 * limit) == 0


def test_a_step_that_does_not_fit_is_no_error_but_any_other_fault_is(gpu):
    def act(fault: Exception) -> None:
        raise fault

    assert gpu.fits(lambda: None) and not gpu.fits(lambda: act(torch.OutOfMemoryError("of the device")))
    with pytest.raises(RuntimeError, match="another fault"):
        gpu.fits(lambda: act(RuntimeError("another fault")))


def test_a_side_whose_losses_differ_is_not_timed(gpu, monkeypatch):
    setting = gpu.Setting("tiny", torch.device("cpu"))
    assert gpu.sides.check(setting, ["public, fp32"], 4)["public, fp32"] < 1e-5
    monkeypatch.setattr(sys.modules["public_step"], "negative", lambda similarity, row, draw: (row + 1) % len(similarity))
    with pytest.raises(ValueError, match="public, fp32: losses .* differ"):
        gpu.sides.check(setting, ["public, fp32"], 4)


@pytest.mark.slow
def test_it_runs_on_a_bare_machine(tmp_path):
    """Every part at tiny size on a CPU, with the packages hidden that a GPU image may lack."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); import runpy; sys.argv[0] = {str(BENCHMARKS / 'gpu.py')!r}; "
    flags = ["--size", "tiny", "--device", "cpu", "--eager", "--runs", "1", "--out", str(tmp_path / "found.json")]
    command = [sys.executable, "-c", hidden + "runpy.run_path(sys.argv[0], run_name='__main__')", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert [row["side"] for row in parts["step"]][:2] == ["public, fp32", "ours, fp32"]
    assert all(row["seconds"][0] > 0 for rows in parts.values() for row in rows)
    assert {part: len(rows) for part, rows in parts.items()} == {"step": 10, "largest": 3, "captions": 6, "scores": 3}
    assert [row["side"] for row in parts["step"]][-2:] == ["ours, bf16, captured", "ours, bf16, captured, bf16 twin"]
    rows = [row for row in parts["step"] + parts["scores"] if native_bf16() or "bf16" not in row["side"]]
    assert rows and all(0 < row["utilisation"] < 1 for row in rows)  # an emulated product of bf16 matrices is no measure


def test_a_missing_package_is_named():
    code = f"import sys; sys.modules['pydantic'] = None; import runpy; runpy.run_path({str(BENCHMARKS / 'gpu.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "benchmarks/speed/gpu.py: not installed here: pydantic; pip install pydantic\n"
