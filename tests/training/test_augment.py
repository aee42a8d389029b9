"""RandAugment: its operations are those of the public BLIP, chance decides among them, and the rest of a view stays as it is."""

import numpy as np
import pytest

from blip_core.config.training import AugmentConfig, RandAugmentConfig
from blip_core.training.augment import NUM_DRAWS, OPERATIONS, augment, draw_numbers, rand_augment

PAPER = RandAugmentConfig(operations=2, magnitude=5)
TEN = RandAugmentConfig(operations=1, magnitude=10)


@pytest.fixture(scope="module")
def picture():
    """Smooth, dim, with an edge: every operation but the identity shows."""
    y, x = np.mgrid[:60, :80]
    grey = 60 + 0.5 * x + 0.8 * y + 40 * (x > 40)
    return np.stack([grey, 0.9 * grey, 0.5 * grey], axis=2).astype(np.uint8)


def done(picture, name, *, way=0.0, cfg=TEN, whether=0.0):
    which = (list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS)
    return rand_augment(picture, cfg, np.array([which, whether, way]))


def test_each_operation_is_done_by_half_and_at_ten_all_but_the_identity_change_the_picture(picture):
    changed = {name for name in OPERATIONS if not np.array_equal(done(picture, name), picture)}
    assert changed == set(OPERATIONS) - {"Identity"}
    assert all(np.array_equal(done(picture, name, whether=0.5), picture) for name in OPERATIONS)


def test_at_the_papers_magnitude_brightness_and_sharpness_change_nothing(picture):
    """A factor of 0.1 + 1.8 * 5 / 10 = 1, as in the public BLIP."""
    five = RandAugmentConfig(operations=1, magnitude=5)
    same = {name for name in OPERATIONS if np.array_equal(done(picture, name, cfg=five), picture)}
    assert same == {"Identity", "Brightness", "Sharpness"}


@pytest.mark.parametrize("axis", [0, 1])
def test_pictures_move_by_whole_pixels_either_way_and_what_is_new_is_grey(picture, axis):
    name = ("TranslateY", "TranslateX")[axis]
    one, other = (done(picture, name, way=way).swapaxes(0, axis) for way in (0.0, 0.9))
    whole = picture.swapaxes(0, axis)
    assert np.array_equal(one[:-10], whole[10:]) and (one[-10:] == 128).all()
    assert np.array_equal(other[10:], whole[:-10]) and (other[:10] == 128).all()


def test_pictures_turn_by_thirty_degrees_and_shear_by_three_tenths(picture):
    white = np.full_like(picture, 255)
    turned = done(white, "Rotate")
    assert (turned[0, 0] == 128).all() and (turned[30, 40] == 255).all()
    sheared = done(white, "ShearX", way=0.9)  # row y is moved by 0.3 y
    assert [int((row == 128).all(axis=1).sum()) for row in sheared[[0, 20, 50]]] == [0, 6, 15]


def test_channels_are_stretched_and_equalized_each_alone(picture):
    assert all(c.min() == 0 and c.max() >= 254 for c in np.moveaxis(done(picture, "AutoContrast"), 2, 0))
    assert all(abs(c.mean() - 127) < 5 for c in np.moveaxis(done(picture, "Equalize"), 2, 0))


def test_views_with_it_have_the_crop_and_the_flip_of_those_without(picture):
    without = AugmentConfig(crop=(0.5, 1.0), shift=1, brightness=0.1, flip=True, randaugment=None)
    beside = without.model_copy(update={"randaugment": PAPER})
    plain, more = (draw_numbers(cfg, count=64, seed=3, step=7) for cfg in (without, beside))
    assert np.array_equal(plain, more[:, :NUM_DRAWS]) and more.shape == (64, NUM_DRAWS + 6)
    assert not np.array_equal(more, draw_numbers(beside, count=64, seed=3, step=8))
    same = [bool((augment(picture, 32, beside, m) == augment(picture, 32, without, p)).all()) for m, p in zip(more, plain, strict=True)]
    left = [all(whether >= 0.5 or int(10 * which) in (0, 2, 3) for which, whether in m[NUM_DRAWS:].reshape(2, 3)[:, :2]) for m in more]
    assert same == left and 0 < sum(same) < 64
