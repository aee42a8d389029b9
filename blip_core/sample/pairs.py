"""Sentences about two pictures of the sample world, with true labels, as NLVR2 has them: each sentence has four pairs, two of them true,
so that the sentence alone tells nothing."""

from pathlib import Path

import numpy as np

from blip_core.sample.files import jpeg, whole_folder, write_rows
from blip_core.sample.questions import PARTS
from blip_core.sample.scenes import SHAPES, Scene, draw_scene, render

_STREAM = 300  # apart from the generators of the other writers
# a sentence, and whether left and right picture hold the shape where it is true, and where it is false
_Held = tuple[tuple[bool, bool], ...]
_BOTH, _LEFT, _RIGHT, _NONE = (True, True), (True, False), (False, True), (False, False)
STATEMENTS: dict[str, tuple[_Held, _Held]] = {
    "the left picture shows a {}": ((_LEFT, _BOTH), (_RIGHT, _NONE)),
    "the right picture shows a {}": ((_RIGHT, _BOTH), (_LEFT, _NONE)),
    "both pictures show a {}": ((_BOTH, _BOTH), (_LEFT, _RIGHT)),
    "just one picture shows a {}": ((_LEFT, _RIGHT), (_BOTH, _NONE)),
    "no picture shows a {}": ((_NONE, _NONE), (_LEFT, _RIGHT)),
}


def write_pairs(out: Path, *, seed: int, sizes: dict[str, int]) -> None:
    """Write `out`/images and `out`/train.jsonl, val.jsonl, test.jsonl with so many sentences each; `out` appears whole, by rename.

    A row is as NLVR2's: sentence, label ("True" or "False") and identifier, with the kind of sentence besides.
    """
    with whole_folder(out) as temporary:
        (temporary / "images").mkdir()
        for part, count in sizes.items():
            rows = [row for number in range(count) for row in _sentence(temporary / "images", part, number, seed)]
            write_rows(rows, temporary / f"{part}.jsonl")


def _sentence(folder: Path, part: str, number: int, seed: int) -> list[dict[str, str]]:
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM + PARTS.index(part), number]))
    shape, kind = list(SHAPES)[rng.integers(len(SHAPES))], list(STATEMENTS)[rng.integers(len(STATEMENTS))]
    true, false = STATEMENTS[kind]
    rows = []
    for pair, (held, label) in enumerate([*((h, True) for h in true), *((h, False) for h in false)]):
        for side, wanted in enumerate(held):
            scene = _scene(rng, shape, wanted)
            data = jpeg(render(scene, rng))
            (folder / f"{part}-{number}-{pair}-img{side}.jpg").write_bytes(data)
        identity = f"{part}-{number}-{pair}-0"
        rows.append({"identifier": identity, "sentence": kind.format(shape), "label": str(label), "kind": kind.format("thing")})
    return rows


def _scene(rng: np.random.Generator, shape: str, wanted: bool) -> Scene:
    """One that holds the shape, or does not."""
    while True:
        scene = draw_scene(rng)
        if (shape in {thing.shape for thing in scene.things}) == wanted:
            return scene
