"""What is measured of a picture's pixels, and that it tells the pictures that it is meant to tell."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blip_core.screens.fields import Judge
from blip_core.screens.measures import MEASURED, SUGGESTED, measure


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Clouds, edges and noise, as a photograph has them: 240 x 300."""
    rng = np.random.default_rng(0)
    clouds = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((300, 240), Image.Resampling.BICUBIC), np.float32)
    clouds[60:150, 80:200] += 60
    return np.clip(0.8 * clouds + rng.normal(0, 8, clouds.shape), 0, 255).astype(np.uint8)


def hit(pixels: np.ndarray) -> set[str]:
    values = measure(pixels)
    return {screen.name for screen in SUGGESTED if Judge(screen)(values[screen.field]) == "hit"}


def test_a_photograph_is_hit_by_none_and_each_fault_by_its_own(photo):
    blurred = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(5))
    assert hit(photo) == set()
    assert "dark" in hit((photo * 0.2).astype(np.uint8))
    assert "bright" in hit(246 + photo // 32)
    assert hit(np.asarray(blurred)) == {"blurred"}
    assert hit(photo[:60]) == {"odd_aspect"} == hit(photo[:60].swapaxes(0, 1))
    assert {"blank", "blurred"} <= hit(np.full((50, 50, 3), 120, np.uint8))


def test_the_numbers_are_those_of_the_definition():
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    found = measure(half)
    assert (found["measured_brightest"], found["measured_darkest"], found["measured_entropy"], found["measured_aspect"]) == (1, 0, 1, 1)
    # of 62 x 62 inner pixels the two columns beside the edge have a Laplacian of 255 and -255
    assert found["measured_sharpness"] == pytest.approx(2 * 255**2 / 62, rel=1e-4)
    grey = measure(np.full((30, 90, 3), 51, np.uint8))
    assert grey == dict(zip(MEASURED, (0.2, 0.2, 0.0, 0.0, 3.0), strict=True))


def test_a_picture_is_judged_as_a_model_sees_it_and_a_tiny_one_has_no_neighbours(photo):
    large = np.asarray(Image.fromarray(photo).resize((1500, 1200), Image.Resampling.BICUBIC))
    assert measure(large)["measured_sharpness"] == pytest.approx(measure(photo)["measured_sharpness"], rel=0.5)
    assert measure(np.zeros((2, 9, 3), np.uint8))["measured_sharpness"] == 0
