"""What is measured of a picture's pixels, as fields of it, and limits that are a place to begin.

The definitions are few lines of Pillow and numpy. cleanvision has such screens too, but reads folders alone, so that each picture would be
decoded twice, and keeps its verdicts and not the values.
"""

import numpy as np
from PIL import Image

from blip_core.config.screens import PictureScreen

SIDE = 256  # pixels of the long side that are looked at: about what a model sees
_DARK, _BRIGHT = 5, 99  # percentiles
MEASURED = ("measured_brightest", "measured_darkest", "measured_entropy", "measured_sharpness", "measured_aspect")

# in the order in which `inspect` tells them
SUGGESTED = (
    PictureScreen(name="dark", field="measured_brightest", below=0.3, then="mark"),
    PictureScreen(name="bright", field="measured_darkest", above=0.95, then="mark"),
    PictureScreen(name="blank", field="measured_entropy", below=2.0, then="mark"),
    PictureScreen(name="blurred", field="measured_sharpness", below=80.0, then="mark"),
    PictureScreen(name="odd_aspect", field="measured_aspect", above=3.0, then="mark"),
)


def measure(pixels_HW3: np.ndarray) -> dict[str, float]:
    """The fields of MEASURED of a picture, uint8 H x W x 3. All but the aspect are of its luma (Rec. 601), made smaller to SIDE.

    brightest, darkest: the 99th and 5th percentile, of 1. entropy: of the histogram of 256 levels, in bits: 0 is one level, 8 all alike.
    sharpness: the variance of the Laplacian over four neighbours, in squared levels (Pech-Pacheco et al. 2000). aspect: long side / short
    side."""
    height, width, _ = pixels_HW3.shape
    luma = Image.fromarray(pixels_HW3).convert("L")
    luma.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(luma, np.float32)
    darkest, brightest = np.percentile(grey, (_DARK, _BRIGHT)) / 255
    shares = np.bincount(np.asarray(luma).ravel(), minlength=256) / grey.size
    shares = shares[shares > 0]
    values = (brightest, darkest, -(shares * np.log2(shares)).sum(), _sharpness(grey), max(height, width) / min(height, width))
    return {name: round(float(value), 4) + 0.0 for name, value in zip(MEASURED, values, strict=True)}


def _sharpness(grey: np.ndarray) -> float:
    """0 where the picture is too small for a neighbour on each side."""
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())
