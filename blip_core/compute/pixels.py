"""Decoded pictures to what the model takes, and those of a shard.

Shapes: H, W of a picture as it is stored; B pictures of size x size in a batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.config.model import MEAN, STD
from blip_core.pictures.images import decode_rgb
from blip_core.tables.shards import ShardImages


def resize(image_HW3: np.ndarray, size: int) -> Tensor:
    """uint8 3 x size x size, bicubic with antialias; the aspect is not kept, as in the public BLIP."""
    pixels = torch.from_numpy(image_HW3)[None].permute(0, 3, 1, 2)  # in this order of steps torch sees that channels are last
    if pixels.shape[2:] == (size, size):
        return pixels[0]
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0]


def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] (uint8 or float), B x 3 x H x W, to what the model takes."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] * 255 for v in (MEAN, STD))
    if pixels.device.type != "cpu":
        return (pixels - mean).div_(std)
    # numpy asks for huge pages: the page faults of a fresh batch cost more than its arithmetic; and one image stays in the cache
    out = torch.from_numpy(np.empty(pixels.shape, np.float32))
    for image, raw in zip(out, pixels, strict=True):
        image.copy_(raw).sub_(mean).div_(std)
    return out


def resized(image_HW3: np.ndarray, size: int) -> np.ndarray:
    """A picture as an evaluation sees it: uint8 size x size x 3."""
    return resize(image_HW3, size).permute(1, 2, 0).numpy()


def load_pixels(images: list[np.ndarray], size: int) -> Tensor:
    """Decoded images as an evaluation sees them: B x 3 x size x size, normalised, on this process's device."""
    return normalize(torch.stack([resize(i, size) for i in images]).to(device()))


def read_picture(images: ShardImages, shard: str, key: str) -> np.ndarray:
    """A stored image, decoded: uint8 H x W x 3. ValueError names the shard and the key of one that can't be."""
    data = images.bytes(shard, key)
    try:
        return decode_rgb(data)
    except ValueError as e:
        fault = f"{images.folder / shard}.tar: image {key!r} can't be decoded ({e})"
        raise ValueError(f"{fault}; ingest could, so the file has changed since: restore it or run ingest again") from None


def read_resized(images: ShardImages, shard: str, key: str, size: int) -> np.ndarray:
    """The same of a stored one."""
    return resized(read_picture(images, shard, key), size)
