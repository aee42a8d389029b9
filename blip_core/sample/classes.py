"""Pictures of the sample world by the shapes in them: a class list with known truth, for zero-shot classification."""

from pathlib import Path

import numpy as np

from blip_core.sample.files import jpeg, whole_folder, write_rows
from blip_core.sample.scenes import SHAPES, draw_scene, render

_STREAM = 200  # apart from the generators of write.py and questions.py


def write_classes(out: Path, *, seed: int, pictures: int, several: bool = False) -> None:
    """Write `out`/classes.csv, `out`/images and `out`/test.jsonl; `out` appears whole, by rename.

    Each picture shows one thing, and its `label` is the thing's shape; with `several` it shows one or two, and has `labels`.
    """
    with whole_folder(out) as temporary:
        (temporary / "images").mkdir()
        rows = [_picture(temporary / "images", number, seed, several) for number in range(pictures)]
        write_rows(rows, temporary / "test.jsonl")
        lines = [f"{shape},a {shape},there is a {shape},a photo of a {shape}" for shape in SHAPES]
        (temporary / "classes.csv").write_text("\n".join(["class,prompt,prompt,prompt", *lines]) + "\n")


def _picture(folder: Path, number: int, seed: int, several: bool) -> dict[str, object]:
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM + several, number]))
    scene = draw_scene(rng)
    while len(scene.things) > 1 and not several:
        scene = draw_scene(rng)
    name = f"test-{number:06d}.jpg"
    (folder / name).write_bytes(jpeg(render(scene, rng)))
    shapes = [thing.shape for thing in scene.things]
    row: dict[str, object] = {"image": f"images/{name}", "things": len(shapes), "background": scene.background}
    return {**row, "labels": shapes} if several else {**row, "label": shapes[0]}
