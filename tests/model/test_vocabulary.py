"""The loss by chunks of tokens is the loss of all logits at once, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from blip_core.model import vocabulary
from blip_core.model.vocabulary import Smoothed, chunked_cross_entropy, token_losses


def leaves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((11, 8), (40, 8), (40,))]


IDS = torch.tensor([3, 39, 0, 7, 7, 21, 12, 1, 38, 5, 5])
WEIGHTS = torch.linspace(-1, 2, 11)  # the losses of tokens may count differently


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients_are_those_of_all_logits(monkeypatch, smoothing):
    """Three whole chunks of three tokens and one of two: to 1e-6."""
    monkeypatch.setattr(vocabulary, "CHUNK", 3 * 40)
    ours, plain = leaves(), leaves()
    losses = chunked_cross_entropy(*ours, Smoothed(IDS, smoothing))
    expected = F.cross_entropy(F.linear(*plain), IDS, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    (losses * WEIGHTS).sum().backward()
    (expected * WEIGHTS).sum().backward()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-6)


def test_under_autocast_they_differ_by_the_rounding_of_bf16(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", 3 * 40)
    ours, plain = leaves(), leaves()
    with torch.autocast("cpu", torch.bfloat16):
        losses = chunked_cross_entropy(*ours, Smoothed(IDS, 0.1))
        expected = F.cross_entropy(F.linear(*plain).float(), IDS, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    losses.sum().backward()
    expected.sum().backward()
    for one, other in zip(ours, plain, strict=True):
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, atol=0.05, rtol=0.02)


def test_no_tensor_has_the_logits_of_all_tokens(monkeypatch):
    """Above WORTH_IT, neither forwards nor backwards; below, they are made at once."""
    monkeypatch.setattr(vocabulary, "CHUNK", 3 * 40)
    for worth, most in ((11 * 40 - 1, 3 * 40), (11 * 40, 11 * 40)):
        monkeypatch.setattr(vocabulary, "WORTH_IT", worth)
        with Widest() as widest:
            token_losses(*leaves(), IDS).sum().backward()
        assert widest.numbers == max(most, 40 * 8)


class Widest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most numbers that a tensor had which an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return made
