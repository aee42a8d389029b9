"""What an adapter learns: LM on the answer, or yes and no to a question."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.distributed import global_mean
from blip_core.lora.adapted import Adapted
from blip_core.lora.batches import AskedBatch
from blip_core.lora.examples import IGNORED
from blip_core.training.objectives import entropy, shares_of
from blip_core.training.step import Losses, Objective


class AnswerObjective(Objective):
    """LM: cross-entropy of each token of the text, the prompt and the padding masked."""

    def __init__(self, label_smoothing: float):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, model: Adapted, batch: AskedBatch) -> Losses:
        return {"lm": global_mean(torch.stack([self._summed(model, g) for g in batch.groups]).sum(), _counted(batch))}

    def _summed(self, model: Adapted, group: dict[str, Any]) -> Tensor:
        targets = group["targets"]
        logits = model(group["inputs"], targets.shape[1])
        rows, ids = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(rows, ids, label_smoothing=self.label_smoothing, ignore_index=IGNORED, reduction="sum")

    def shares(self, batches: list[AskedBatch]) -> dict[str, Tensor]:
        return {"lm": shares_of([_counted(batch) for batch in batches])}

    def vitals(self, batch: AskedBatch) -> dict[str, float]:
        targets = torch.cat([group["targets"].flatten() for group in batch.groups])
        return {"lm_chance": entropy(targets[targets != IGNORED])}


def _counted(batch: AskedBatch) -> Tensor:
    """How many tokens LM learns."""
    return torch.stack([(group["targets"] != IGNORED).sum() for group in batch.groups]).sum()


class JudgementObjective(Objective):
    """ITM by a question: cross-entropy of the log-odds of yes, which are the judge's score. One pair of three is true."""

    def __init__(self, yes: list[int], no: list[int]):
        super().__init__()
        self.yes, self.no = yes, no

    def forward(self, model: Adapted, batch: AskedBatch) -> Losses:
        odds = torch.cat([self._odds(model, group) for group in batch.groups])
        return {"itm": F.binary_cross_entropy_with_logits(odds, torch.cat([group["truth"] for group in batch.groups]))}

    def _odds(self, model: Adapted, group: dict[str, Any]) -> Tensor:
        """Of each row; logits are made only at places where a question ends."""
        places, own = group["last"].unique(return_inverse=True)
        logits = model(group["inputs"], places)[torch.arange(len(own), device=own.device), own]
        return logits[:, self.yes].logsumexp(-1) - logits[:, self.no].logsumexp(-1)
