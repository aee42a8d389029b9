"""Texts of unequal lengths without their padding: whatever works token by token sees real tokens alone, only attention sees the padding.

Captions of one batch fill about half of the places up to the longest one's end. B texts, T places each, M tokens that are worked on, D
width.
"""

import torch
from torch import Tensor


class Packing:
    """M tokens of B texts, one text behind the other, and where they stand in B x T.

    On a CPU the padding is left out (M < B * T); elsewhere it stays, because the host would have to wait for the device to count, and in a
    graph of fixed shapes (training/capture.py).
    """

    def __init__(self, mask_BT: Tensor, *, keep_padding: bool = False):
        """`mask_BT` is True where a token stands; each text has its first one."""
        self.mask_BT = mask_BT
        stays = keep_padding or mask_BT.device.type != "cpu" or torch.compiler.is_compiling()
        self.places_M = None if stays or mask_BT.all() else mask_BT.flatten().nonzero()[:, 0]

    def made(self, first_only: bool) -> "Packing":
        """What a layer makes of it: all tokens, or the first of each text alone."""
        return Packing(self.mask_BT[:, :1], keep_padding=True) if first_only else self

    def pack(self, x_BTD: Tensor) -> Tensor:
        """B x T x D to M x D."""
        x = x_BTD.flatten(0, 1)
        return x if self.places_M is None else x.index_select(0, self.places_M)

    def spread(self, x_MD: Tensor) -> Tensor:
        """M x D to B x T x D, with zeros for the padding that was left out."""
        if self.places_M is not None:
            x_MD = x_MD.new_zeros(self.mask_BT.numel(), x_MD.shape[1]).index_copy(0, self.places_M, x_MD)
        return x_MD.unflatten(0, self.mask_BT.shape)

    def first(self, x_MD: Tensor) -> Tensor:
        """M x D to B x D."""
        if self.places_M is None:
            return x_MD.unflatten(0, self.mask_BT.shape)[:, 0]
        ends_B = self.mask_BT.sum(1).cumsum(0)
        return x_MD.index_select(0, torch.cat([ends_B.new_zeros(1), ends_B[:-1]]))
