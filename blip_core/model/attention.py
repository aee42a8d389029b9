"""Scaled dot-product attention, the one place that chooses a kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Attention of T queries to S keys: B x H x T x d. `mask` is True where a key may be seen, broadcast to B x H x T x S.

    On a CPU the bf16 backward kernel is several times slower than the fp32 one (benchmarks/attention.py), so there the
    three are lifted to fp32; autocast is off within, or it would lower them again.
    """
    if q_BHTd.device.type == "cpu" and q_BHTd.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                q_BHTd.float(), k_BHSd.float(), v_BHSd.float(), attn_mask=mask, is_causal=causal, dropout_p=dropout
            )
        return out.to(q_BHTd.dtype)
    return F.scaled_dot_product_attention(q_BHTd, k_BHSd, v_BHSd, attn_mask=mask, is_causal=causal, dropout_p=dropout)


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """B x T x D to B x H x T x d."""
    return x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x_BHTd: Tensor) -> Tensor:
    """B x H x T x d to B x T x D."""
    return x_BHTd.transpose(1, 2).flatten(2)
