"""Texts of different lengths as one tensor."""

import torch
from torch import Tensor

from blip_core.tokenizer.tokenizer import Tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str], *, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded to the longest of the texts: B x T each."""
    return pad([tokenizer.encode(t, max_tokens=max_tokens) for t in texts], tokenizer.pad)


def pad(encoded: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded to the longest: B x T each."""
    length = max(map(len, encoded))
    ids = torch.tensor([e + [padding] * (length - len(e)) for e in encoded])
    return ids, torch.arange(length)[None] < torch.tensor([[len(e)] for e in encoded])
