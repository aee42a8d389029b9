"""The pictures of the built-in sample world: one or two coloured things on a background, drawn from exact scene descriptions.

All arithmetic is on integers, so that one seed gives the same pixels on every machine. Start at `draw_scene` and `render`.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
from numpy import ndarray

IMAGE_SIDE = 48
CELL_SIDE = 24
SPRITE_SIDES = (20, 22)
MAX_JITTER = 1  # pixels; things that move freely take a small ViT many more steps to tell apart
MAX_NOISE = 8  # of 255, per pixel and channel
SHADES = (85, 110)  # percent, of the background and of each thing
OVERSAMPLING = 4  # sub-pixels per side, for soft edges

COLOURS = {
    "red": (210, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 220, 50),
    "green": (30, 140, 60),
    "blue": (40, 80, 210),
    "purple": (140, 50, 170),
}
BACKGROUNDS = {
    "grass": (140, 190, 110),
    "sand": (225, 205, 165),
    "sky": (170, 215, 240),
    "night": (30, 32, 60),
    "snow": (238, 240, 245),
}
RARE_SHAPES = ("box", "boat", "flower", "moon")  # what the clean training set hardly covers


@dataclass(frozen=True)
class Thing:
    """Left and top are of the sprite in pixels, shade in percent."""

    shape: str
    colour: str
    side: int
    left: int
    top: int
    shade: int


@dataclass(frozen=True)
class Scene:
    background: str
    shade: int
    things: tuple[Thing, ...]


def scene_to_json(scene: Scene) -> str:
    return json.dumps(asdict(scene), sort_keys=True)


def scene_from_json(text: str) -> Scene:
    """The scene that `scene_to_json` wrote, as in truth.parquet's column `scene`."""
    values = json.loads(text)
    return Scene(values["background"], values["shade"], tuple(Thing(**thing) for thing in values["things"]))


def draw_scene(rng: np.random.Generator, *, rare_weight: float = 1.0) -> Scene:
    """A random scene: half hold one thing, half two of different shapes. `rare_weight` is that of a rare shape against 1."""
    num_things = 1 + (rng.random() < 0.5)
    cells = [int(rng.integers(4))]
    if num_things == 2:
        cells.append((cells[0] + 1 + int(rng.integers(3))) % 4)
    things: list[Thing] = []
    for cell in cells:
        taken = [thing.shape for thing in things]
        things.append(_draw_thing(rng, _draw_shape(rng, rare_weight, taken), cell))
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return Scene(background, _draw_shade(rng), tuple(things))


def render(scene: Scene, rng: np.random.Generator) -> ndarray:
    """Pixels of a scene, (48, 48, 3) uint8, with noise from `rng`."""
    pixels = np.empty((IMAGE_SIDE, IMAGE_SIDE, 3), np.int32)
    pixels[:] = _shaded(BACKGROUNDS[scene.background], scene.shade)
    for thing in scene.things:
        cover = sprite(thing.shape, thing.side)[:, :, None]
        place = pixels[thing.top : thing.top + thing.side, thing.left : thing.left + thing.side]
        full = OVERSAMPLING**2
        place[:] = (cover * _shaded(COLOURS[thing.colour], thing.shade) + (full - cover) * place + full // 2) // full
    pixels += rng.integers(-MAX_NOISE, MAX_NOISE + 1, pixels.shape, np.int8)
    return pixels.clip(0, 255).astype(np.uint8)


@cache
def sprite(shape: str, side: int) -> ndarray:
    """How many of its 16 sub-pixels a shape covers, per pixel, (side, side) int32."""
    num = side * OVERSAMPLING
    centres = (2 * np.arange(num) + 1) * 1000 // (2 * num)
    inside = SHAPES[shape](centres[None, :], centres[:, None])
    return inside.reshape(side, OVERSAMPLING, side, OVERSAMPLING).sum(axis=(1, 3), dtype=np.int32)


def _draw_shape(rng: np.random.Generator, rare_weight: float, taken: list[str]) -> str:
    """By rejection, which needs nothing of the generator but numbers in [0, 1)."""
    names = list(SHAPES)
    while True:
        name = names[rng.integers(len(names))]
        accepted = name not in RARE_SHAPES or rng.random() < rare_weight
        if accepted and name not in taken:
            return name


def _draw_thing(rng: np.random.Generator, shape: str, cell: int) -> Thing:
    side = SPRITE_SIDES[rng.integers(len(SPRITE_SIDES))]
    slack = (CELL_SIDE - side) // 2
    jitter = min(slack, MAX_JITTER)
    left, top = (int(rng.integers(-jitter, jitter + 1)) + slack + CELL_SIDE * place for place in (cell % 2, cell // 2))
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    return Thing(shape, colour, side, left, top, _draw_shade(rng))


def _draw_shade(rng: np.random.Generator) -> int:
    return int(rng.integers(SHADES[0], SHADES[1] + 1))


def _shaded(colour: tuple[int, int, int], shade: int) -> ndarray:
    return np.minimum(np.array(colour, np.int32) * shade // 100, 255)


# x and y are integers in 0..999 from the sprite's left and top, broadcast to a square; corners and radii below are in percent of its side.


def _disc(x: ndarray, y: ndarray, cx: int, cy: int, r: int) -> ndarray:
    return (x - 10 * cx) ** 2 + (y - 10 * cy) ** 2 <= (10 * r) ** 2


def _box(x: ndarray, y: ndarray, left: int, top: int, right: int, bottom: int) -> ndarray:
    return (x >= 10 * left) & (x < 10 * right) & (y >= 10 * top) & (y < 10 * bottom)


def _polygon(x: ndarray, y: ndarray, *corners: tuple[int, int]) -> ndarray:
    """Even-odd rule, by the sides that a ray to the right crosses."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        crosses = (10 * ay > y) != (10 * by > y)
        inside ^= crosses & (((x - 10 * ax) * (by - ay) < (y - 10 * ay) * (bx - ax)) == (by > ay))
    return inside


def _ball(x: ndarray, y: ndarray) -> ndarray:
    return _disc(x, y, 50, 50, 48)


def _crate(x: ndarray, y: ndarray) -> ndarray:
    return _box(x, y, 6, 6, 94, 94)


def _house(x: ndarray, y: ndarray) -> ndarray:
    walls = _box(x, y, 14, 44, 86, 98) & ~_box(x, y, 40, 64, 60, 98)
    return walls | _polygon(x, y, (50, 0), (100, 46), (0, 46))


def _tree(x: ndarray, y: ndarray) -> ndarray:
    crown = _polygon(x, y, (50, 0), (78, 40), (22, 40)) | _polygon(x, y, (50, 20), (92, 76), (8, 76))
    return crown | _box(x, y, 42, 76, 58, 100)


def _boat(x: ndarray, y: ndarray) -> ndarray:
    hull = _polygon(x, y, (0, 66), (100, 66), (80, 96), (20, 96))
    return hull | _box(x, y, 44, 2, 51, 66) | _polygon(x, y, (56, 6), (92, 58), (56, 58))


def _fish(x: ndarray, y: ndarray) -> ndarray:
    body = 4 * (x - 390) ** 2 + 9 * (y - 500) ** 2 <= 4 * 390**2
    return (body | _polygon(x, y, (64, 50), (100, 20), (100, 80))) & ~_disc(x, y, 20, 42, 6)


def _car(x: ndarray, y: ndarray) -> ndarray:
    cabin = _polygon(x, y, (26, 22), (68, 22), (84, 50), (14, 50)) & ~_box(x, y, 32, 30, 46, 46) & ~_box(x, y, 53, 30, 67, 46)
    return cabin | _box(x, y, 0, 48, 100, 72) | _disc(x, y, 24, 74, 14) | _disc(x, y, 76, 74, 14)


def _star(x: ndarray, y: ndarray) -> ndarray:
    tips = ((50, 0), (62, 37), (100, 38), (69, 60), (81, 98), (50, 75), (19, 98), (31, 60), (0, 38), (38, 37))
    return _polygon(x, y, *tips)


def _kite(x: ndarray, y: ndarray) -> ndarray:
    sail = _polygon(x, y, (42, 0), (78, 32), (42, 78), (6, 32)) & ~_box(x, y, 40, 8, 45, 70) & ~_box(x, y, 14, 30, 70, 34)
    return sail | _polygon(x, y, (42, 76), (66, 84), (96, 78), (98, 88), (68, 96), (38, 84))


def _flower(x: ndarray, y: ndarray) -> ndarray:
    petals = [_disc(x, y, cx, cy, 21) for cx, cy in ((50, 22), (77, 41), (67, 73), (33, 73), (23, 41))]
    return np.logical_or.reduce(petals) & ~_disc(x, y, 50, 50, 12)


def _ring(x: ndarray, y: ndarray) -> ndarray:
    return _disc(x, y, 50, 50, 48) & ~_disc(x, y, 50, 50, 27)


def _heart(x: ndarray, y: ndarray) -> ndarray:
    lobes = _disc(x, y, 27, 30, 26) | _disc(x, y, 73, 30, 26)
    return lobes | _polygon(x, y, (50, 28), (93, 45), (50, 97), (7, 45))


def _moon(x: ndarray, y: ndarray) -> ndarray:
    return _disc(x, y, 50, 50, 48) & ~_disc(x, y, 74, 42, 40)


def _cross(x: ndarray, y: ndarray) -> ndarray:
    return _box(x, y, 34, 2, 66, 98) | _box(x, y, 2, 34, 98, 66)


SHAPES = {
    "ball": _ball,
    "box": _crate,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "fish": _fish,
    "car": _car,
    "star": _star,
    "kite": _kite,
    "flower": _flower,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "cross": _cross,
}
