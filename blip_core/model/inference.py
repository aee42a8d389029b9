"""A model that only reads: which precision its weights have."""

import torch
from torch import nn

from blip_core.model.blip import Blip


def for_inference(model: Blip, precision: str) -> Blip:
    """The model in eval mode, for use under autocast. With bf16, the weights of matrix products become bf16 once and for all,
    where autocast would turn them at every use: twenty times for a caption of twenty tokens. Norms and positions stay fp32."""
    model.eval()
    if precision == "bf16":
        for module in (*(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)), model.med.tokens):
            module.to(torch.bfloat16)
    return model
