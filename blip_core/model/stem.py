"""What makes tokens of pixels: one convolution per patch, or a short stack of small ones.

A ViT with one convolution per patch learns from millions of pictures that neighbours belong together; a stack of 3 x 3 convolutions of
stride 2 has it by construction (Xiao et al. 2021, Early Convolutions Help Transformers See Better), which pays where pictures are few.
SELU keeps mean and variance without a norm (Klambauer et al. 2017): a norm over a picture would take its colours away, and the positive
mean that ReLU leaves makes the features of all pictures alike from the start.
"""

from torch import nn

from blip_core.config.model import VisionConfig


def patch_embedding(cfg: VisionConfig) -> nn.Module:
    """B x 3 x H x W to B x width x H/patch x W/patch."""
    if cfg.stem == "patch":
        return nn.Conv2d(3, cfg.width, cfg.patch_size, stride=cfg.patch_size)
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
