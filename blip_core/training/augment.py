"""Training views of pictures: crop, RandAugment, shift, brightness, mirror.

All randomness comes from numbers that seed, step and place in the batch give (`draw_numbers`), so a view is the same for any number of
workers and processes, and after a resume.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from blip_core.compute.pixels import resize
from blip_core.config.training import AugmentConfig, RandAugmentConfig

NUM_DRAWS = 10  # uniform numbers that a view takes, RandAugment aside
OPERATION_DRAWS = 3  # that each of its operations takes: which, whether, which way


def draw_numbers(cfg: AugmentConfig, *, count: int, seed: int, step: int) -> np.ndarray:
    """Numbers in [0, 1) for the views of a step's batch, a line for each. The first NUM_DRAWS are the same with RandAugment and without."""
    rng = np.random.default_rng([seed, step, 1])
    basic = rng.random((count, NUM_DRAWS))
    return np.hstack([basic, rng.random((count, OPERATION_DRAWS * cfg.randaugment.operations))]) if cfg.randaugment else basic


def augment(image_HW3: np.ndarray, size: int, cfg: AugmentConfig, draw: np.ndarray) -> Tensor:
    """A training view: 3 x size x size in [0, 255], uint8 unless the brightness changes. `draw`: a line of `draw_numbers`."""
    pixels = resize(_cropped(image_HW3, cfg, draw), size)
    if cfg.randaugment:
        distorted = rand_augment(pixels.permute(1, 2, 0).numpy(), cfg.randaugment, draw[NUM_DRAWS:])
        pixels = torch.from_numpy(distorted).permute(2, 0, 1)
    return _shaken(pixels, cfg, draw)


def augment_picture(image_HW3: np.ndarray, cfg: AugmentConfig, draw: np.ndarray) -> np.ndarray:
    """The same as a picture, uint8 H x W x 3, of the size that the crop leaves: for a model with a processor of its own."""
    view = _cropped(image_HW3, cfg, draw)
    if cfg.randaugment:
        view = rand_augment(view, cfg.randaugment, draw[NUM_DRAWS:])
    pixels = torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1)
    return _shaken(pixels, cfg, draw).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _cropped(image_HW3: np.ndarray, cfg: AugmentConfig, draw: np.ndarray) -> np.ndarray:
    height, width, _ = image_HW3.shape
    top, left, h, w = crop_box(height, width, cfg.crop, draw[:4])
    return image_HW3[top : top + h, left : left + w]


def _shaken(pixels_3HW: Tensor, cfg: AugmentConfig, draw: np.ndarray) -> Tensor:
    """Shifted, of another brightness, mirrored."""
    pixels, (height, width) = pixels_3HW, pixels_3HW.shape[1:]
    if cfg.shift:
        down, right = (int(d * (2 * cfg.shift + 1)) - cfg.shift for d in draw[4:6])
        rows, columns = ((torch.arange(n) + by).clamp(0, n - 1) for n, by in ((height, down), (width, right)))
        pixels = pixels[:, rows][:, :, columns]
    if cfg.brightness:
        gain = 1 + cfg.brightness * (2 * draw[6] - 1) + 0.5 * cfg.brightness * (2 * draw[7:10] - 1)
        pixels = (pixels * torch.from_numpy(gain).float()[:, None, None]).clamp(0, 255)
    if cfg.flip and draw[9] < 0.5:
        pixels = pixels.flip(2)
    return pixels


def crop_box(height: int, width: int, scale: tuple[float, float], draw: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random resized crop: area share in `scale`, aspect 3/4 to 4/3; [1, 1] is the whole image."""
    if scale == (1.0, 1.0):
        return 0, 0, height, width
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])
    aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * draw[1])
    w = min(width, max(1, round(float(np.sqrt(area * aspect)))))
    h = min(height, max(1, round(float(np.sqrt(area / aspect)))))
    return int(draw[2] * (height - h + 1)), int(draw[3] * (width - w + 1)), h, w


# RandAugment


def _warped(image: Image.Image, *inverse: float) -> Image.Image:
    """`inverse`: from a place of the result to one of the picture, x = a x' + b y' + c, y = d x' + e y' + f. What is new is grey."""
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=_GREY)


_GREY = (128, 128, 128)
# By strength, magnitude / 10, and sign. Those of the public BLIP, which leaves out what changes colours (Color, Contrast, Posterize,
# Solarize), since texts name them. Its brightness and sharpness are factors of 0.1 to 1.9: at magnitude 5 they change nothing.
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": lambda image, strength, sign: image,
    "AutoContrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "Brightness": lambda image, strength, sign: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * strength),
    "Sharpness": lambda image, strength, sign: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * strength),
    "Equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "ShearX": lambda image, strength, sign: _warped(image, 1, sign * 0.3 * strength, 0, 0, 1, 0),
    "ShearY": lambda image, strength, sign: _warped(image, 1, 0, 0, sign * 0.3 * strength, 1, 0),
    "TranslateX": lambda image, strength, sign: _warped(image, 1, 0, sign * 10 * strength, 0, 1, 0),
    "TranslateY": lambda image, strength, sign: _warped(image, 1, 0, 0, 0, 1, sign * 10 * strength),
    "Rotate": lambda image, strength, sign: image.rotate(sign * 30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY),
}


def rand_augment(image_HW3: np.ndarray, cfg: RandAugmentConfig, draw: np.ndarray) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020) as the public BLIP has it: each of the operations drawn is done with probability one half.
    uint8 H x W x 3 in and out; `draw`: OPERATION_DRAWS numbers in [0, 1) for each operation."""
    done = [
        (list(OPERATIONS.values())[int(which * len(OPERATIONS))], 1 if way < 0.5 else -1)
        for which, whether, way in draw.reshape(-1, OPERATION_DRAWS)
        if whether < 0.5
    ]
    image = Image.fromarray(image_HW3)
    for operation, sign in done:
        image = operation(image, cfg.magnitude / 10, sign)
    return np.array(image)
