"""Several processes that train one model, as torchrun starts them. Without them every function here is the identity.

On one machine (the `--` keeps torchrun from reading our --run as one of its own flags):

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 OMP_NUM_THREADS=4 torchrun --nproc-per-node 8 --max-restarts 3 -m -- blip_core stage pretrain ...

All processes read the inputs and checkpoints from folders that they share; process 0 alone writes. The batch of a step is
divided among them, so their number changes no loss and no gradient (but for dropout and stochastic depth, which each draws for
its own images), and may change between two runs.
"""

import functools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

log = logging.getLogger(__name__)
T = TypeVar("T")


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def device() -> torch.device:
    """The GPU of this process, by its place on its machine, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def on_every_process(stage: Callable[..., None]) -> Callable[..., None]:
    """A stage whose work is divided: runs in each process of torchrun's, and returns in each when process 0 has written the outputs."""

    @functools.wraps(stage)
    def run(*args: Any, cfg: Any, **kwargs: Any) -> None:
        with process_group(getattr(cfg, "optim", cfg).timeout):
            stage(*args, cfg=cfg, **kwargs)

    return run


@contextmanager
def process_group(timeout: int) -> Iterator[None]:
    """Join the processes that the environment names (RANK, WORLD_SIZE, ...); leave them when all have come to the end.

    When another process ends early, or does not answer for `timeout` seconds, RuntimeError says so.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        _join(timeout)
        yield
        dist.barrier()
    except RuntimeError as e:
        if isinstance(e, dist.DistError) or "gloo" in str(e).lower():
            raise RuntimeError(_lost(timeout, str(e).strip().splitlines()[0])) from None  # where it waited tells nothing
        raise
    dist.destroy_process_group()  # not behind an error: NCCL might wait there for the others


def _join(timeout: int) -> None:
    backend, on_one_machine = "gloo", os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(device())
    elif on_one_machine and any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name does not always lead to it
    bound = device() if backend == "nccl" else None
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), device_id=bound)
    if rank() > 0:
        logging.getLogger("blip_core").setLevel(logging.ERROR)  # process 0 speaks for all
    elif int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        log.warning("set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or its restarts may look for processes that are gone")
    log.info("%d processes, %s", world_size(), backend)


def _lost(timeout: int, reason: str) -> str:
    who = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
    return (
        f"{who}: another process of this training ended, or did not answer for {timeout} seconds, so this one ends too ({reason}). "
        "See that one's message. Running again goes on from the last checkpoint; torchrun --max-restarts does so by itself"
    )


def agree(value: T) -> T:
    """The value that process 0 has, whatever the others bring."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def every(value: T) -> list[T]:
    """The values of all processes, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Sum over the processes."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def average(values: Tensor) -> Tensor:
    """Mean over the processes."""
    return total(values) / world_size()


class _Gather(torch.autograd.Function):
    """All ranks' rows, in rank order; the gradient is summed over ranks and each takes its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous()).chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, equally many each, with gradient."""
    return x if world_size() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call]  # torch's own


def global_mean(summed: Tensor, count: Tensor) -> Tensor:
    """summed / count over all ranks, scaled so that the mean of the ranks' gradients (DDP) is the gradient of the global mean. 0 where
    nothing counts."""
    return summed * world_size() / total(count).clamp(min=1)
