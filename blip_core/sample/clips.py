"""Short moving scenes of the sample world, one thing that goes left, right, up or down: with captions, and questions with known answers.

A clip is an mp4 where PyAV is installed, else a folder of JPEGs. Shape, colour and background tell clips apart, so that a caption fits one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from blip_core.sample.files import jpeg, whole_folder, write_rows
from blip_core.sample.languages import ENGLISH
from blip_core.sample.questions import PEOPLE, add_questions
from blip_core.sample.scenes import BACKGROUNDS, CELL_SIDE, COLOURS, SHADES, SHAPES, SPRITE_SIDES, Scene, Thing, render

FRAMES, RATE = 16, 8  # of a clip, and in a second
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOST_CLIPS = len(SHAPES) * len(COLOURS) * len(BACKGROUNDS)
_STILL = FRAMES // 4  # frames before and behind the movement
_STREAM = 600  # apart from the generators of the other writers


@dataclass(frozen=True)
class Clip:
    """`scene`: as it begins; its only thing goes one cell on."""

    scene: Scene
    direction: str

    @property
    def thing(self) -> Thing:
        return self.scene.things[0]


def write_clips(out: Path, *, seed: int, clips: int) -> None:
    """Write `out`/videos and `out`/test.jsonl; `out` appears whole, by rename.

    A row has video, direction and two captions, one of which tells the movement.
    """
    with whole_folder(out) as temporary:
        rows = []
        for name, clip in _written(temporary, seed, clips):
            phrase = ENGLISH.places[clip.scene.background][0]
            what = f"a {clip.thing.colour} {clip.thing.shape}"
            captions = [f"{what} {phrase}", f"{what} moves {clip.direction} {phrase}"]
            rows.append({"video": name, "captions": captions, "direction": clip.direction})
        write_rows(rows, temporary / "test.jsonl")


def write_clip_questions(out: Path, *, seed: int, sizes: dict[str, int], clips: int) -> None:
    """Write questions about pictures (train.jsonl, val.jsonl) as questions.py does, about clips (test.jsonl), and answers.txt with all
    answers; `out` appears whole, by rename."""
    with whole_folder(out) as temporary:
        answers = add_questions(temporary, seed=seed, sizes=sizes)
        rows = [row for name, clip in _written(temporary, seed, clips) for row in _questions(name, clip)]
        write_rows(rows, temporary / "test.jsonl")
        answers.update(*(row["answers"] for row in rows), DIRECTIONS)
        (temporary / "answers.txt").write_text("".join(f"{answer}\n" for answer in sorted(answers)))


def _questions(name: str, clip: Clip) -> list[dict[str, Any]]:
    """One of each kind. Nothing in a single picture answers the one about the movement."""
    asked = {
        "colour": (f"what colour is the {clip.thing.shape}?", clip.thing.colour),
        "shape": (f"what is {clip.thing.colour}?", clip.thing.shape),
        "background": ("what is the background?", clip.scene.background),
        "direction": (f"which way does the {clip.thing.shape} move?", clip.direction),
    }
    shared: dict[str, Any] = {"video": name}
    return [{**shared, "question": q, "question_type": kind, "answers": [a] * PEOPLE} for kind, (q, a) in asked.items()]


def _written(folder: Path, seed: int, clips: int) -> Iterator[tuple[str, Clip]]:
    """Clips with their paths below the folder. ValueError for more than there are."""
    if clips > MOST_CLIPS:
        raise ValueError(f"{clips} clips; shape, colour and background tell {MOST_CLIPS} apart")
    kinds = np.random.Generator(np.random.PCG64([seed, _STREAM])).permutation(MOST_CLIPS)
    (folder / "videos").mkdir()
    for number in range(clips):
        rng = np.random.Generator(np.random.PCG64([seed, _STREAM + 1, number]))
        clip = _draw(rng, int(kinds[number]))
        yield _write(folder, f"videos/clip{number:03d}", [render(scene, rng) for scene in _scenes(clip)]), clip


def _draw(rng: np.random.Generator, kind: int) -> Clip:
    """`kind`: the number of its shape, colour and background."""
    shape, colour, background = list(product(SHAPES, COLOURS, BACKGROUNDS))[kind]
    direction = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    side, shade = SPRITE_SIDES[rng.integers(len(SPRITE_SIDES))], int(rng.integers(SHADES[0], SHADES[1] + 1))
    column, row = ({-1: 1, 1: 0}.get(step, int(rng.integers(2))) for step in DIRECTIONS[direction])
    left, top = (CELL_SIDE * place + (CELL_SIDE - side) // 2 for place in (column, row))
    return Clip(Scene(background, shade, (Thing(shape, colour, side, left, top, shade),)), direction)


def _scenes(clip: Clip) -> Iterator[Scene]:
    """That of each frame: still at first and at last."""
    right, down = DIRECTIONS[clip.direction]
    for frame in range(FRAMES):
        gone = CELL_SIDE * min(max(frame - _STILL, 0), FRAMES - 2 * _STILL) // (FRAMES - 2 * _STILL)
        moved = replace(clip.thing, left=clip.thing.left + right * gone, top=clip.thing.top + down * gone)
        yield replace(clip.scene, things=(moved,))


def _write(folder: Path, name: str, frames: list[ndarray]) -> str:
    """The name of the file or folder, below the folder."""
    if find_spec("av") is None:
        (folder / name).mkdir()
        for number, pixels in enumerate(frames):
            (folder / name / f"{number:02d}.jpg").write_bytes(jpeg(pixels))
        return name
    import av

    with av.open(str(folder / f"{name}.mp4"), "w") as container:
        # one thread and no look ahead, which at this size reads what was in memory before: one seed gives the same bytes
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "12", "threads": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return f"{name}.mp4"
