"""The training loop: knows a model, an objective's dict of losses and batches by step, and none of them by name."""

import csv
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blip_core.checkpoint import load_checkpoint, save_checkpoint
from blip_core.config import OptimConfig
from blip_core.data import Batches
from blip_core.distributed import rank, world_size
from blip_core.model.blip import Blip
from blip_core.progress import Progress

log = logging.getLogger(__name__)
Log = Callable[..., None]


@dataclass
class TrainState:
    """All that a resumed run needs besides its inputs. Randomness is drawn anew from (seed, step), so none is kept."""

    step: int
    model: dict
    objective: dict
    optimizer: dict
    history: list[dict[str, float]]


def fit(model: Blip, objective: nn.Module, batches: Batches, cfg: OptimConfig, *, name: str, folder: Path, seed: int, report: Log | None) -> list[dict[str, float]]:
    """Train `model` in place for cfg.steps and return the history, one row per cfg.log_every steps.

    Checkpoints go to `folder`, which the caller names by everything that decides the result: a rerun resumes from the newest,
    bit for bit on one CPU process. FloatingPointError on a loss that is not finite, before the optimizer moves.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    model.to(device).train()
    objective.to(device)
    step_module = _Step(model, objective)
    stepper = nn.parallel.DistributedDataParallel(step_module, broadcast_buffers=False) if world_size() > 1 else step_module
    optimizer = torch.optim.AdamW(parameter_groups(model, objective, cfg.weight_decay), lr=cfg.lr, betas=cfg.betas)
    start, history = _resume(folder, model, objective, optimizer)
    progress = Progress(name, cfg.steps, start=start, unit_size=cfg.batch_size, unit="images")
    for batch in batches.loader(start):
        row = _train_step(stepper, optimizer, batch.to(device), cfg, seed)
        step = batch.step + 1
        progress.update(step, loss=row["loss"])
        if step % cfg.log_every == 0 or step == cfg.steps:
            row = {"step": step, **{k: float(v) for k, v in row.items()}}
            history.append(row)
            if report:
                report({f"{k}": v for k, v in row.items() if k != "step"}, step=step)
        if (step % cfg.checkpoint_every == 0 and step < cfg.steps) and rank() == 0:
            save_checkpoint(vars(TrainState(step, model.state_dict(), objective.state_dict(), optimizer.state_dict(), history)), folder, step)
    progress.close()
    return history


class _Step(nn.Module):
    """Model and objective as one module, so that data-parallel training sees every parameter in one forward."""

    def __init__(self, model: Blip, objective: nn.Module):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch) -> dict[str, Tensor]:
        return self.objective(self.model, batch)


def _train_step(stepper: nn.Module, optimizer: torch.optim.Optimizer, batch, cfg: OptimConfig, seed: int) -> dict[str, Tensor]:
    torch.manual_seed((seed * 1_000_003 + batch.step) * 1009 + rank())  # dropout and stochastic depth: a function of the step
    rate = learning_rate(batch.step, cfg)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        losses = stepper(batch)
    loss = sum(losses.values())
    _require_finite(losses, batch.step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], cfg.clip_norm)
    optimizer.step()
    inner = stepper.module if isinstance(stepper, nn.parallel.DistributedDataParallel) else stepper
    return {"loss": loss.detach(), **{k: v.detach() for k, v in losses.items()}, **inner.objective.after_step(), "grad_norm": norm, "lr": torch.tensor(rate)}


def _require_finite(losses: dict[str, Tensor], step: int) -> None:
    if not torch.isfinite(torch.stack([v.detach() for v in losses.values()])).all():
        values = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
        raise FloatingPointError(f"step {step}: a loss is not finite ({values}); nothing was updated. Lower lr, or train in fp32 to find the cause")


def learning_rate(step: int, cfg: OptimConfig) -> float:
    """Linear warm-up over cfg.warmup of the steps, then cosine to cfg.min_lr: a pure function of the step."""
    warmup = round(cfg.warmup * cfg.steps)
    if step < warmup:
        return cfg.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, cfg.steps - warmup)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, objective: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; norms, biases, positions, the [CLS] of the image and the temperature do not."""
    decay, plain = [], []
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if parameter.requires_grad:
            is_plain = parameter.ndim < 2 or "positions" in name or name.endswith("cls")
            (plain if is_plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _resume(folder: Path, model: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
    state = load_checkpoint(folder)
    if state is None:
        return 0, []
    model.load_state_dict(state["model"])
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("resumed at step %d from %s", state["step"], folder)
    return state["step"], state["history"]


def run_folder(work: Path, name: str, **identity) -> Path:
    """Where a training keeps its checkpoints: named by all that decides its result, so that a changed input starts afresh."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return work / f"{name}-{digest}"


def discard(folder: Path) -> None:
    """Drop the checkpoints of a training whose model is written."""
    shutil.rmtree(folder, ignore_errors=True)


def summarize(history: list[dict[str, float]]) -> dict[str, float]:
    """The last tenth of a training in one number per column: its mean, less noisy than the last step."""
    tail = history[-max(1, len(history) // 10) :]
    return {k: round(sum(row[k] for row in tail) / len(tail), 6) for k in tail[0] if k not in ("step", "lr")}


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """The history as CSV, by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"_tmp.{path.name}.{uuid.uuid4().hex}"
    with temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in history)
    os.replace(temporary, path)
