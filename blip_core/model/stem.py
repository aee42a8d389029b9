"""What makes tokens of pixels: one convolution per patch, a short stack of small ones, or what is known of colours and gradients.

patch  a ViT's own. It learns from millions of pictures that neighbours belong together.
conv   3 x 3 convolutions of stride 2 have that by construction (Xiao et al. 2021, Early Convolutions Help Transformers See Better).
       SELU keeps mean and variance without a norm (Klambauer et al. 2017): a norm over a picture would take its colours away, and the
       positive mean that ReLU leaves makes the features of all pictures alike from the start.
cells  where pictures are too few to learn filters from, fixed ones are better (Oyallon et al. 2017, Scaling the Scattering Transform).
       Here they are colours, and gradients by orientation (Dalal and Triggs 2005); one linear layer makes tokens of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config.model import MEAN, STD, VisionConfig

SHADES = 4  # of each of red, green and blue in the histogram
ORIENTATIONS = 8
CELL_FEATURES = 3 + 3 + SHADES**3 + ORIENTATIONS


def patch_embedding(cfg: VisionConfig) -> nn.Module:
    """B x 3 x H x W to B x width x H/patch x W/patch."""
    if cfg.stem == "patch":
        return nn.Conv2d(3, cfg.width, cfg.patch_size, stride=cfg.patch_size)
    if cfg.stem == "cells":
        return nn.Sequential(Cells(cfg.patch_size), nn.Conv2d(CELL_FEATURES, cfg.width, 1))
    layers: list[nn.Module] = []
    channels = 3
    for wide in stem_widths(cfg):
        layers += [nn.Conv2d(channels, wide, 3, stride=2, padding=1), nn.SELU()]
        channels = wide
    return nn.Sequential(*layers, nn.Conv2d(channels, cfg.width, 1))


def stem_widths(cfg: VisionConfig) -> list[int]:
    """Channels behind each halving of the picture: they double, up to the width."""
    halvings = cfg.patch_size.bit_length() - 1
    return [max(1, cfg.width >> (halvings - 1 - i)) for i in range(halvings)]


class Cells(nn.Module):
    """What a patch of P x P pixels shows, nothing of it learned: mean and spread of each colour, a histogram of the colours, and how strong
    the edges of each orientation are. Roots make few pixels count; constants make each kind about 0 and 1 in mean and deviation."""

    def __init__(self, patch: int):
        super().__init__()
        self.patch = patch

    @torch.no_grad()
    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels to B x CELL_FEATURES x H/P x W/P."""
        mean, std = (torch.tensor(v, device=pixels_B3HW.device)[:, None, None] for v in (MEAN, STD))
        colours = (pixels_B3HW.float() * std + mean).clamp(0, 1)
        means = F.avg_pool2d(colours, self.patch)
        spread = (F.avg_pool2d(colours.square(), self.patch) - means.square()).clamp(min=0).sqrt()
        red, green, blue = (colours * SHADES).long().clamp(max=SHADES - 1).unbind(1)
        histogram = self._shares((red * SHADES + green) * SHADES + blue, SHADES**3)
        return torch.cat([4 * (means - 0.45), 10 * (spread - 0.12), 5 * histogram.sqrt(), 15 * (self._edges(colours).sqrt() - 0.08)], 1)

    def _edges(self, colours_B3HW: Tensor) -> Tensor:
        """Strength of brightness gradients by orientation."""
        light = F.pad(colours_B3HW.mean(1), (1, 1, 1, 1), mode="replicate")
        down, right = (light[:, 2:, 1:-1] - light[:, :-2, 1:-1]) / 2, (light[:, 1:-1, 2:] - light[:, 1:-1, :-2]) / 2
        turned = torch.atan2(down, right).remainder(math.pi) / math.pi
        kind, strength = (turned * ORIENTATIONS).long().clamp(max=ORIENTATIONS - 1), torch.hypot(down, right)
        # a pooled plane for each: `_shares` would add in whatever order a GPU takes, which counts may and other numbers may not
        planes = strength.new_zeros(len(strength), ORIENTATIONS, *strength.shape[1:]).scatter_(1, kind[:, None], strength[:, None])
        return F.avg_pool2d(planes, self.patch)

    def _shares(self, kind_BHW: Tensor, kinds: int) -> Tensor:
        """Share of each kind among a cell's pixels: B x kinds x H/P x W/P."""
        size, height, width = self.patch, *kind_BHW.shape[1:]
        rows, columns = (torch.arange(n, device=kind_BHW.device) // size for n in (height, width))
        place = rows[:, None] * (width // size) + columns
        found = (place * kinds + kind_BHW).flatten(1)
        counts = torch.zeros(len(found), (height // size) * (width // size) * kinds, device=found.device)
        counts.scatter_add_(1, found, torch.ones_like(found, dtype=counts.dtype))
        return counts.unflatten(1, (height // size, width // size, kinds)).permute(0, 3, 1, 2) / size**2
