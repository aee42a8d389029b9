"""Questions about the sample world with known answers, as files that VQA's own tools read: colour, shape, count, where, is there.

Each picture has its own random generator, by (seed, part, number), and one question of each kind. Ten people agree on each answer.
"""

from pathlib import Path
from typing import Any

import numpy as np

from blip_core.sample.files import jpeg, whole_folder, write_rows
from blip_core.sample.scenes import CELL_SIDE, COLOURS, SHAPES, Scene, Thing, draw_scene, render

PARTS = ("train", "val", "test")
PEOPLE = 10
_STREAM = 100  # apart from the generators of write.py


def write_questions(out: Path, *, seed: int, sizes: dict[str, int]) -> None:
    """Write `out`/images and `out`/train.jsonl, val.jsonl, test.jsonl with so many pictures each; `out` appears whole, by rename.

    A row has image, question, question_id, question_type and the answers of ten people.
    """
    with whole_folder(out) as temporary:
        add_questions(temporary, seed=seed, sizes=sizes)


def add_questions(folder: Path, *, seed: int, sizes: dict[str, int]) -> set[str]:
    """The same in a folder that is there. The answers that occur."""
    (folder / "images").mkdir()
    answers: set[str] = set()
    for part, count in sizes.items():
        rows = [row for number in range(count) for row in _picture(folder / "images", part, number, seed)]
        write_rows(rows, folder / f"{part}.jsonl")
        answers.update(*(row["answers"] for row in rows))
    return answers


def _picture(folder: Path, part: str, number: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM + PARTS.index(part), number]))
    scene = draw_scene(rng)
    name = f"{part}-{number:06d}.jpg"
    (folder / name).write_bytes(jpeg(render(scene, rng)))
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        question, answer = KINDS[kind](rng, scene)
        identity = f"{part}-{number:06d}-{kind.replace(' ', '-')}"
        row: dict[str, Any] = {"image": f"images/{name}", "question_id": identity, "question": question, "question_type": kind}
        rows.append({**row, "answers": [answer] * PEOPLE})
    return rows


def _pick(rng: np.random.Generator, scene: Scene) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


def _colour(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    thing = _pick(rng, scene)
    return f"what colour is the {thing.shape}?", thing.colour


def _shape(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Of two things of one colour it asks for the background."""
    thing = _pick(rng, scene)
    if sum(t.colour == thing.colour for t in scene.things) > 1:
        return "what is the background?", scene.background
    return f"what is {thing.colour}?", thing.shape


def _count(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    return "how many things are there?", ("one", "two")[len(scene.things) - 1]


def _where(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """The quarter of the picture."""
    thing = _pick(rng, scene)
    row, column = ("top" if thing.top < CELL_SIDE - 2 else "bottom"), ("left" if thing.left < CELL_SIDE - 2 else "right")
    return f"where is the {thing.shape}?", f"{row} {column}"


def _is_there(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Half of the answers are yes. A no is about the thing in another colour, or another shape in its colour."""
    thing = _pick(rng, scene)
    if rng.random() < 0.5:
        return f"is there a {thing.colour} {thing.shape}?", "yes"
    if rng.random() < 0.5:
        colours = [c for c in COLOURS if c != thing.colour]
        return f"is there a {colours[int(rng.integers(len(colours)))]} {thing.shape}?", "no"
    shapes = [s for s in SHAPES if s not in {t.shape for t in scene.things}]
    return f"is there a {thing.colour} {shapes[int(rng.integers(len(shapes)))]}?", "no"


KINDS = {"colour": _colour, "shape": _shape, "count": _count, "where": _where, "is there": _is_there}
