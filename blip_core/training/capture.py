"""A whole step as one graph: `optim.compile: step`.

The losses of a micro-batch and their gradients are compiled in one piece, so Python starts one graph forwards and one backwards in place of
thousands of kernels. A graph has fixed shapes and no number of Python that changes: texts are padded to a few lengths, each with a
graph of its own; what hangs on the step (how far the training is, which places of the queue are filled and which come next) goes in as
tensors. The momentum update, clipping, the one question whether losses are finite, and AdamW, which is fused, stay outside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip_core.compute.distributed import world_size
from blip_core.config.training import OptimConfig
from blip_core.training.objectives import CaptionObjective, PretrainObjective, longest_of_all
from blip_core.training.step import TextBatch


@dataclass(frozen=True)
class Capture:
    """`lengths`: those that texts are padded to, rising. `replay`: as a CUDA graph, where there is a GPU.

    A gradient that a CUDA graph wrote is overwritten by the next replay, so several micro-batches would not add up
    (https://github.com/pytorch/pytorch/issues/96693): they run the compiled kernels without replay, as several processes do.
    """

    lengths: tuple[int, ...]
    replay: bool = False

    @classmethod
    def of(cls, cfg: OptimConfig) -> "Capture | None":
        return cls(cfg.lengths, replay=cfg.accumulate == 1 and world_size() == 1) if cfg.compile == "step" else None

    def hold(self, step: nn.Module) -> None:
        """Change `step`, whose forward turns a micro-batch into losses with its `model` and `objective`. ValueError where the objective's
        shapes would change."""
        objective = step.objective
        if type(objective) not in (PretrainObjective, CaptionObjective):
            raise ValueError(
                f"optim.compile is step, which captures pretrain without `optional`, tune_captioner and tune_filter of a BLIP; here a "
                f"{type(objective).__name__} trains: set its optim.compile to true, for blocks alone, or false"
            )
        mode = "reduce-overhead" if self.replay else None
        losses = torch.compile(step.forward, fullgraph=True, dynamic=False, mode=mode)

        def forward(batch: TextBatch) -> dict[str, Tensor]:
            if isinstance(objective, PretrainObjective):
                objective.contrast.take_turn(len(batch.ids) * world_size())
            found: dict[str, Tensor] = losses(batch.fixed(self._length(batch)))
            return found

        step.forward = forward

    def _length(self, batch: TextBatch) -> int:
        """The least that holds every text of all processes."""
        several = world_size() > 1 and len(self.lengths) > 1
        longest = longest_of_all(batch.ids) if several else batch.ids.shape[1]
        return next(length for length in self.lengths if length >= longest)
