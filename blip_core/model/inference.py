"""A model that only reads: which precision its weights have."""

from typing import TypeVar

import torch
from torch import nn

from blip_core.model.med import Med
from blip_core.model.qformer import QFormer

N = TypeVar("N", bound=nn.Module)


def for_inference(model: N, precision: str) -> N:
    """The model in eval mode, for use under autocast. With bf16, the weights of matrix products become bf16 once and for all,
    where autocast would turn them at every use: twenty times for a caption of twenty tokens. Norms and positions stay fp32."""
    model.eval()
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
            elif isinstance(module, Med | QFormer):
                module.tokens.to(torch.bfloat16)
    return model
