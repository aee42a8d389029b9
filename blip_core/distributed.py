"""The few collectives that training needs. Without a process group each is the identity, so one process needs none."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All ranks' rows, in rank order; the gradient is summed over ranks and each takes its own rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, equally many each, with gradient."""
    return x if world_size() == 1 else _Gather.apply(x)


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """total / count over all ranks, scaled so that the mean of the ranks' gradients (DDP) is the gradient of the global mean."""
    if world_size() == 1:
        return total / count
    count = count.detach().clone().float()
    dist.all_reduce(count)
    return total * world_size() / count
