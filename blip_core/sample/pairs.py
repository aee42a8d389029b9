"""Sentences about two pictures of the sample world, with true labels, as NLVR2 has them: each sentence has four pairs, two of them true,
so that the sentence alone tells nothing.

They speak of a shape, a colour or the background, and a pair that shows more of it is the likelier to be true: a small model begins by
learning that. With a fifth of the sentences saying "no picture", which pull the other way, a short training stays at chance.
"""

from pathlib import Path

import numpy as np

from blip_core.sample.files import jpeg, whole_folder, write_rows
from blip_core.sample.questions import PARTS
from blip_core.sample.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, draw_scene, render

_STREAM = 300  # apart from the generators of the other writers
# a sentence, and whether left and right picture show it where it is true, and where it is false
_Shown = tuple[tuple[bool, bool], ...]
_BOTH, _LEFT, _RIGHT, _NONE = (True, True), (True, False), (False, True), (False, False)
STATEMENTS: dict[str, tuple[_Shown, _Shown]] = {
    "there is {} in the left picture": ((_LEFT, _BOTH), (_RIGHT, _NONE)),
    "there is {} in the right picture": ((_RIGHT, _BOTH), (_LEFT, _NONE)),
    "there is {} in both": ((_BOTH, _BOTH), (_LEFT, _RIGHT)),
    "there is {} in at least one picture": ((_LEFT, _RIGHT), (_NONE, _NONE)),
}
# what is spoken of: how it is said, and its names
SUBJECTS = {"shape": ("a {}", tuple(SHAPES)), "colour": ("a {} thing", tuple(COLOURS)), "background": ("{}", tuple(BACKGROUNDS))}


def write_pairs(out: Path, *, seed: int, sizes: dict[str, int]) -> None:
    """Write `out`/images and `out`/train.jsonl, val.jsonl, test.jsonl with so many sentences each; `out` appears whole, by rename.

    A row is as NLVR2's: sentence, label ("True" or "False") and identifier, with the kind of sentence and its subject besides.
    """
    with whole_folder(out) as temporary:
        (temporary / "images").mkdir()
        for part, count in sizes.items():
            rows = [row for number in range(count) for row in _sentence(temporary / "images", part, number, seed)]
            write_rows(rows, temporary / f"{part}.jsonl")


def _sentence(folder: Path, part: str, number: int, seed: int) -> list[dict[str, str]]:
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM + PARTS.index(part), number]))
    kind, subject = list(STATEMENTS)[rng.integers(len(STATEMENTS))], list(SUBJECTS)[rng.integers(len(SUBJECTS))]
    said, names = SUBJECTS[subject]
    name = names[rng.integers(len(names))]
    true, false = STATEMENTS[kind]
    rows = []
    for pair, (shown, label) in enumerate([*((s, True) for s in true), *((s, False) for s in false)]):
        for side, wanted in enumerate(shown):
            scene = _scene(rng, name, wanted)
            data = jpeg(render(scene, rng))
            (folder / f"{part}-{number}-{pair}-img{side}.jpg").write_bytes(data)
        row = {"identifier": f"{part}-{number}-{pair}-0", "sentence": kind.format(said.format(name)), "label": str(label)}
        rows.append({**row, "kind": kind.removeprefix("there is {} "), "subject": subject})
    return rows


def _scene(rng: np.random.Generator, name: str, wanted: bool) -> Scene:
    """One that shows what is named, or does not."""
    while True:
        scene = draw_scene(rng)
        if (name in shown(scene)) == wanted:
            return scene


def shown(scene: Scene) -> set[str]:
    """The names of its shapes, colours and background; no two subjects have a name in common."""
    return {scene.background} | {name for thing in scene.things for name in (thing.shape, thing.colour)}
