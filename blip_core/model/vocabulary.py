"""Cross-entropy over a vocabulary without its logits: they are made for a chunk of tokens at a time, and again in the backward pass.

M tokens, m those of a chunk, D width, V vocabulary.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**23  # numbers that the logits of a chunk may have
WORTH_IT = 2**25  # numbers in the logits of all tokens; below, they are made at once: benchmarks/speed/vocabulary.py


class Targets(Protocol):
    """What the tokens should be. `chunk`: which of the tokens."""

    def score(self, logits_mV: Tensor, chunk: slice) -> Tensor:
        """Sum of target probability * logit: m."""

    def subtract(self, from_mV: Tensor, chunk: slice) -> None:
        """Take the target probabilities away, in place."""


class Smoothed:
    """One token each, and `smoothing` of it shared out over the vocabulary."""

    def __init__(self, ids_M: Tensor, smoothing: float):
        self.ids_M, self.smoothing = ids_M, smoothing

    def score(self, logits_mV: Tensor, chunk: slice) -> Tensor:
        own_m = logits_mV.gather(1, self.ids_M[chunk, None])[:, 0]
        return (1 - self.smoothing) * own_m + self.smoothing * logits_mV.mean(1) if self.smoothing else own_m

    def subtract(self, from_mV: Tensor, chunk: slice) -> None:
        from_mV.sub_(self.smoothing / from_mV.shape[1])
        ids_m1 = self.ids_M[chunk, None]
        from_mV.scatter_add_(1, ids_m1, torch.full_like(ids_m1, self.smoothing - 1, dtype=from_mV.dtype))


def token_losses(x_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, ids_M: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each token with x weight^T + bias, fp32: M."""
    if len(x_MD) * len(weight_VD) > WORTH_IT:
        return chunked_cross_entropy(x_MD, weight_VD, bias_V, Smoothed(ids_M, smoothing))
    return F.cross_entropy(F.linear(x_MD, weight_VD, bias_V).float(), ids_M, label_smoothing=smoothing, reduction="none")


def chunked_cross_entropy(x_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, targets: Targets) -> Tensor:
    """-sum target * log softmax(x weight^T + bias) of each token, fp32: M. Gradients reach `x_MD`, `weight_VD` and `bias_V`; products of
    matrices are of autocast's type."""
    with torch.no_grad():
        dtype = F.linear(x_MD[:0], weight_VD[:1]).dtype  # autocast's, where it is on
    return _ChunkedCrossEntropy.apply(x_MD, weight_VD, bias_V, targets, dtype)  # type: ignore[no-untyped-call]  # torch's own


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Targets, dtype: torch.dtype) -> Tensor:
        w, b, sums, scores = weight.to(dtype), bias.to(dtype), [], []
        for chunk in _chunks(len(x), len(weight)):
            logits = F.linear(x[chunk].to(dtype), w, b).float()
            sums.append(logits.logsumexp(1))
            scores.append(targets.score(logits, chunk))
        log_sum_M = torch.cat(sums)
        ctx.save_for_backward(x, weight, bias, log_sum_M)
        ctx.targets, ctx.dtype = targets, dtype
        return log_sum_M - torch.cat(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, log_sum_M = ctx.saved_tensors
        w, b = weight.to(ctx.dtype), bias.to(ctx.dtype)
        to_x, to_weight, to_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for chunk in _chunks(len(x), len(weight)):
            part = x[chunk].to(ctx.dtype)
            to_logits = F.linear(part, w, b).float().sub_(log_sum_M[chunk, None]).exp_()
            ctx.targets.subtract(to_logits, chunk)
            to_bias += to_logits.mul_(gradient[chunk, None]).sum(0)
            to_logits = to_logits.to(ctx.dtype)
            to_x[chunk] = to_logits @ w
            if to_weight.dtype == ctx.dtype:
                to_weight.addmm_(to_logits.T, part)
            else:
                to_weight += to_logits.T @ part
        return to_x, to_weight, to_bias, None, None


def _chunks(num_tokens: int, size: int) -> list[slice]:
    step = max(1, CHUNK // size)
    return [slice(start, start + step) for start in range(0, num_tokens, step)]
