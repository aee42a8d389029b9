"""The sample world's pictures: what is drawn, how often, and that it can be told apart."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from blip_core.sample.scenes import (
    BACKGROUNDS,
    CELL_SIDE,
    COLOURS,
    RARE_SHAPES,
    SHAPES,
    SPRITE_SIDES,
    Scene,
    Thing,
    draw_scene,
    render,
    scene_from_json,
    scene_to_json,
    sprite,
)


def generators(num: int):
    return (np.random.Generator(np.random.PCG64([11, number])) for number in range(num))


def test_scenes_hold_one_or_two_different_shapes_in_their_own_cells():
    scenes = [draw_scene(rng) for rng in generators(4000)]
    assert np.mean([len(scene.things) == 2 for scene in scenes]) == pytest.approx(0.5, abs=0.04)
    for scene in scenes:
        assert len({thing.shape for thing in scene.things}) == len(scene.things)
        cells = set()
        for thing in scene.things:
            right, bottom = thing.left + thing.side - 1, thing.top + thing.side - 1
            assert (thing.left // CELL_SIDE, thing.top // CELL_SIDE) == (right // CELL_SIDE, bottom // CELL_SIDE), "crosses a cell's border"
            cells.add((thing.left // CELL_SIDE, thing.top // CELL_SIDE))
        assert len(cells) == len(scene.things)
    shapes = Counter(thing.shape for scene in scenes for thing in scene.things)
    assert set(shapes) == set(SHAPES) and min(shapes.values()) > 0.8 * max(shapes.values())


def test_rare_shapes_are_rare_where_they_should_be():
    shapes = Counter(thing.shape for rng in generators(4000) for thing in draw_scene(rng, rare_weight=0.3).things)
    rare = np.mean([shapes[shape] for shape in RARE_SHAPES])
    common = np.mean([shapes[shape] for shape in SHAPES if shape not in RARE_SHAPES])
    assert rare / common == pytest.approx(0.3, abs=0.05)


def test_sprites_differ_clearly():
    """By intersection over union of what they cover, at both sizes."""
    for side in SPRITE_SIDES:
        for one, other in combinations(SHAPES, 2):
            a, b = sprite(one, side), sprite(other, side)
            assert np.minimum(a, b).sum() / np.maximum(a, b).sum() < 0.85, (one, other, side)


def test_render_shows_the_colour_in_its_place_on_the_background():
    scene = Scene("night", 100, (Thing("box", "red", side=18, left=27, top=3, shade=90),))
    pixels = render(scene, np.random.default_rng(0)).astype(int)
    assert pixels.shape == (48, 48, 3)
    assert np.abs(pixels[8:18, 32:40] - np.array(COLOURS["red"]) * 90 // 100).max() <= 8
    assert np.abs(pixels[:, :24] - BACKGROUNDS["night"]).max() <= 8


def test_scene_json_round_trip():
    scene = draw_scene(np.random.default_rng(2))
    assert scene_from_json(scene_to_json(scene)) == scene
