"""A map drawn over its picture."""

import numpy as np
from PIL import Image

SIDE, LONGEST = 240, 1200  # pixels of a drawn map: its shorter side, and what its longer one may have
RED, OPAQUE, GREYED = (255, 40, 0), 0.8, 0.8


def overlay(picture: np.ndarray, weights_SS: np.ndarray) -> np.ndarray:
    """Red over the greyed picture, uint8 H x W x 3, from the map's own weakest patch (clear) to its strongest. The network saw the whole
    picture as a square, so the patches are stretched with it."""
    height, width = picture.shape[:2]
    scale = SIDE / min(height, width)
    size = tuple(max(1, min(LONGEST, round(length * scale))) for length in (width, height))
    shown = np.asarray(Image.fromarray(picture).resize(size), np.float32)
    shown += GREYED * (shown.mean(-1, keepdims=True) - shown)
    strength = OPAQUE * np.asarray(Image.fromarray(scaled(weights_SS)).resize(size, Image.Resampling.BILINEAR))[..., None]
    return (shown + strength * (np.array(RED) - shown)).clip(0, 255).astype(np.uint8)


def scaled(weights_SS: np.ndarray) -> np.ndarray:
    """From 0, the weakest, to 1, the strongest; a map without any difference is 0."""
    heat = np.asarray(weights_SS, np.float32)
    return (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
