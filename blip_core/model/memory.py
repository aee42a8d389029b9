"""What a training step keeps for its backward pass."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WORTH_IT = 2**18  # numbers in the input; below, the bookkeeping costs more time than the memory is worth


def keep_input(cheap_then_linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a cheap function (norm, activation) and the linear layer behind it, and keep only `x` for the backward pass.

    The cheap part is computed again there; the linear layer is not, because recomputing ends as soon as all that the
    backward pass needs is there: its input. Under torch.compile the compiler itself decides what to keep.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.numel() < WORTH_IT:
        return cheap_then_linear(x)
    return checkpoint(cheap_then_linear, x, use_reentrant=False, preserve_rng_state=False)
