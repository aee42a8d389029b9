"""Scaled dot-product attention, the one place that chooses a kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Attention of T queries to S keys: B x H x T x d. `mask` is True where a key may be seen, broadcast to B x H x T x S.

    Autocast is off within, or it would lower again what `lift` has lifted.
    """
    q, k, v = lift(q_BHTd), lift(k_BHSd), lift(v_BHSd)
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    return out.to(q_BHTd.dtype)


def lift(x: Tensor) -> Tensor:
    """bf16 to fp32 on a CPU, where the bf16 kernels of attention are no faster forwards and several times slower backwards
    (benchmarks/speed/attention.py). Keys and values that serve many queries are lifted once, where they are made."""
    return x.float() if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """B x T x D to B x H x T x d."""
    return x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x_BHTd: Tensor) -> Tensor:
    """B x H x T x d to B x T x D."""
    return x_BHTd.transpose(1, 2).flatten(2)
