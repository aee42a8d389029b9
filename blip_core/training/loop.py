"""The training loop: knows a model, an objective's dict of losses and batches by step, and none of them by name."""

import csv
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from blip_core.compute.distributed import agree, average, device, rank, world_size
from blip_core.compute.precision import autocast
from blip_core.config.training import OptimConfig
from blip_core.files.atomic import new_file
from blip_core.model.med import MedBlock
from blip_core.model.vit import Vit, VitBlock
from blip_core.training.capture import Capture
from blip_core.training.health import Health, History
from blip_core.training.step import MicroBatch, Objective

log = logging.getLogger(__name__)
Log = Callable[..., None]


class Source(Protocol):
    """Where batches come from, as training/batches.py: one step needs torch alone (benchmarks/speed/gpu.py)."""

    def loader(self, start: int) -> Iterator[MicroBatch]: ...


@dataclass
class TrainState:
    """All that a resumed run needs besides its inputs. Randomness is drawn anew from (seed, step), so none is kept.

    Nothing in it belongs to one process: a run may go on with another number of them.
    """

    step: int
    model: dict[str, Any]
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    history: History


def fit(
    model: nn.Module, objective: Objective, batches: Source, cfg: OptimConfig, *, name: str, folder: Path, seed: int, report: Log | None
) -> History:
    """Train `model` in place for cfg.steps and return the history, one row per cfg.log_every steps.

    Checkpoints go to `folder`, which the caller names by everything that decides the result: a rerun resumes from the newest,
    bit for bit on one CPU process. FloatingPointError on a loss or gradient that is not finite, before the optimizer moves.
    """
    from blip_core.runtime.progress import Progress
    from blip_core.weights.checkpoint import save_checkpoint

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    stepper = parallel(model, objective, recompute=cfg.recompute, compiled=cfg.compile is True, capture=Capture.of(cfg))
    optimizer = make_optimizer(model, objective, cfg)
    start, history = _resume(folder, model, objective, optimizer)
    first = rank() == 0
    progress = Progress(name, cfg.steps, start=start, unit_size=cfg.batch_size, unit="images") if first else None
    report = report if first else None
    health = Health(cfg, objective.bounds, report, history)
    for parts in grouped(batches.loader(start), cfg.accumulate):
        parts = [part.to(device()) for part in parts]
        row, step = _train_step(stepper, optimizer, parts, cfg, seed), parts[0].step + 1
        if progress:
            progress.update(step, loss=row["loss"])
        if step % cfg.log_every == 0 or step == cfg.steps:
            history.append(_history_row(step, {**row, **objective.vitals(parts[-1])}))
            if report:
                report({k: v for k, v in history[-1].items() if k != "step"}, step=step)
            health.check(history)
        if step % cfg.checkpoint_every == 0 and step < cfg.steps and first:
            state = TrainState(step, model.state_dict(), objective.state_dict(), optimizer.state_dict(), history)
            save_checkpoint(vars(state), folder, step)
    if progress:
        progress.close()
    return history


class _Step(nn.Module):
    """Model and objective as one module, so that data-parallel training sees every parameter in one forward."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        return self.objective(self.model, batch)


Stepper = _Step | DistributedDataParallel


def _inner(stepper: Stepper) -> _Step:
    return stepper.module if isinstance(stepper, DistributedDataParallel) else stepper


def parallel(
    model: nn.Module, objective: Objective, *, recompute: int = 0, compiled: bool = False, capture: Capture | None = None
) -> Stepper:
    """Both on this process's device in training mode, as one module from a micro-batch to its losses."""
    model.to(device()).train()
    for part in model.modules():
        if isinstance(part, Vit):
            part.recompute = recompute
    step = _Step(model, objective.to(device()))
    if compiled:
        compile_blocks(step)
    if capture is not None:
        capture.hold(step)
    if world_size() == 1:
        return step
    # the buffers (queues) are equal on all ranks by construction
    return DistributedDataParallel(step, forward_sync_buffers=False, find_unused_parameters=not objective.uses_all_parameters)


def compile_blocks(module: nn.Module, *, backend: str = "inductor") -> None:
    """torch.compile of every block of the image and text transformers in `module`, the momentum twin's too.

    Block by block, because equal blocks share what is compiled, and because names in state dicts stay as they are. The roles of a
    text block become methods of the instance; a bound method is copied with its block, which a plain function would not be.
    """
    roles = {name: torch.compile(getattr(MedBlock, name), backend=backend) for name in ("encode", "ground", "decode")}
    for block in module.modules():
        if isinstance(block, VitBlock):
            block.compile(backend=backend)
        elif isinstance(block, MedBlock):
            for name, role in roles.items():
                setattr(block, name, MethodType(role, block))


def grouped(batches: Iterator[MicroBatch], size: int) -> Iterator[list[MicroBatch]]:
    """The micro-batches of each step."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def _train_step(
    stepper: Stepper, optimizer: torch.optim.Optimizer, parts: list[MicroBatch], cfg: OptimConfig, seed: int
) -> dict[str, Tensor | float]:
    """Move the weights once; returns what a row of the history shows."""
    step, inner = parts[0].step, _inner(stepper)
    torch.manual_seed((seed * 1_000_003 + step) * 1009 + rank())  # dropout and stochastic depth: a function of the step
    rate = learning_rate(step, cfg)
    for group in optimizer.param_groups:
        group["lr"] = rate
    inner.objective.before_step(inner.model, parts[0])
    optimizer.zero_grad(set_to_none=True)
    losses = backward(stepper, parts, precision=cfg.precision)
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], cfg.clip_norm)
    _require_finite(losses, norm, parts)
    optimizer.step()
    return {"loss": sum(losses.values()), **losses, **inner.objective.after_step(), "grad_norm": norm, "lr": rate}


def backward(stepper: Stepper, parts: list[MicroBatch], *, precision: str) -> dict[str, Tensor]:
    """Add up the gradients of a step's micro-batches; returns its losses. Processes exchange gradients once, with the last."""
    shares = _inner(stepper).objective.shares(parts) if len(parts) > 1 else {}
    sums: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        with stepper.no_sync() if isinstance(stepper, DistributedDataParallel) and i < len(parts) - 1 else nullcontext():
            with autocast(precision):
                losses = stepper(part)
            losses = {k: v * shares[k][i] if k in shares else v / len(parts) for k, v in losses.items()}
            sum(losses.values()).backward()
        sums = {k: sums.get(k, 0) + v.detach() for k, v in losses.items()}
    return sums


def _require_finite(losses: dict[str, Tensor], norm: Tensor, parts: list[MicroBatch]) -> None:
    """The one place in a step that waits for the device: what is not finite must not reach the weights."""
    if torch.isfinite(torch.stack([*losses.values(), norm])).all():
        return
    values = {**losses, "gradient norm": norm}
    bad = ", ".join(f"{k} {v.item():.4g}" for k, v in values.items() if not torch.isfinite(v))
    good = ", ".join(f"{k} {v.item():.4g}" for k, v in values.items() if torch.isfinite(v))
    where = f" in process {rank()} of {world_size()}" if world_size() > 1 else ""
    raise FloatingPointError(
        f"step {parts[0].step}{where}: not finite: {bad} ({good or 'nothing is finite'}); nothing was updated. Lower lr, or train in fp32 "
        f"to find the cause. Images of the batch: {' '.join(key for part in parts for key in part.keys)}"
    )


def _history_row(step: int, values: dict[str, Tensor | float]) -> dict[str, float]:
    """Means over the processes, which makes global losses of each one's part."""
    means = average(torch.tensor([float(v) for v in values.values()], dtype=torch.float64, device=device()))
    return {"step": step, **dict(zip(values, means.tolist(), strict=True))}


def learning_rate(step: int, cfg: OptimConfig) -> float:
    """Linear warm-up over cfg.warmup of the steps, then cfg.schedule, never below cfg.min_lr: a pure function of the step.

    The warm-up is whole however short an epoch is (the public code ends it with the first one), and the decays of the schedule
    `step` are counted from its end, so that the peak is always reached.
    """
    warmup = round(cfg.warmup * cfg.steps)
    if step < warmup:
        return cfg.lr * (step + 1) / warmup
    if cfg.schedule == "step":
        return max(cfg.min_lr, cfg.lr * cfg.decay_rate ** ((step - warmup) // cfg.decay_every))
    progress = (step - warmup) / max(1, cfg.steps - warmup)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, objective: Objective, cfg: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, objective, cfg.weight_decay), lr=cfg.lr, betas=cfg.betas, fused=True)


def parameter_groups(model: nn.Module, objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, positions, the [CLS] of the image and the temperature do not."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if parameter.requires_grad:
            is_plain = parameter.ndim < 2 or "positions" in name or name.endswith("cls")
            (plain if is_plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _resume(folder: Path, model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[int, History]:
    """Process 0 chooses the checkpoint; all read that one."""
    from blip_core.weights.checkpoint import newest_checkpoint, read_checkpoint

    path = agree(newest_checkpoint(folder) if rank() == 0 else None)
    if path is None:
        log.info("starting fresh: no checkpoint in %s", folder)
        return 0, []
    state = read_checkpoint(path)
    try:
        model.load_state_dict(state["model"])
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as e:
        reason = str(e)[:300]
        raise ValueError(f"{path}: other code wrote it, it does not fit this model; delete {folder} to start fresh ({reason})") from None
    log.info("resumed at step %d from %s", state["step"], path)
    return state["step"], state["history"]


def summarize(history: History) -> dict[str, float]:
    """The last tenth of a training in one number per column: its mean, less noisy than the last step."""
    tail = history[-max(1, len(history) // 10) :]
    return {k: round(sum(row[k] for row in tail) / len(tail), 6) for k in tail[0] if k not in ("step", "lr") and not k.endswith("_chance")}


def write_history(history: History, path: Path) -> None:
    """The history as CSV, by rename."""
    with new_file(path) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history)
