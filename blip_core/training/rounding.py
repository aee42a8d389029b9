"""A moving average that is kept in bf16.

At a momentum of 0.995 a step goes less than half of the way to the next number of bf16, so the nearest one is always that of before, and
the average never moves. Rounded up or down at random, in proportion to the distance, it is right in the mean (Gupta et al. 2015).
A second number for what was rounded off would do as well, but with it the average takes as much memory as in fp32.
"""

import torch
from torch import Tensor

LOST = 2**16  # bit patterns of fp32 for each of bf16


@torch.no_grad()
def lerp_(averages: list[Tensor], towards: list[Tensor], weight: float, *, seed: int) -> None:
    """Move averages in bf16 by this share of the way to tensors in fp32, all at once. The draws hang on the seed and the kind of device
    alone. For the moment it takes eight bytes a number, so it stands where a step has no activations."""
    sizes, device = [t.numel() for t in averages], averages[0].device
    exact = torch.empty(sum(sizes), device=device)
    parts = [part.view_as(average) for part, average in zip(exact.split(sizes), averages, strict=True)]
    torch._foreach_copy_(parts, averages)
    torch._foreach_lerp_(parts, towards, weight)
    draws = torch.randint(LOST, exact.shape, dtype=torch.int32, device=device, generator=torch.Generator(device).manual_seed(seed))
    exact.view(torch.int32).add_(draws).bitwise_and_(-LOST)
    torch._foreach_copy_(averages, parts)
