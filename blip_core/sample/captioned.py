"""Pictures of the sample world with five human captions each, which no other data of the sample has: for retrieval and captioning."""

from pathlib import Path

import numpy as np

from blip_core.sample.files import jpeg, whole_folder, write_rows
from blip_core.sample.questions import PARTS
from blip_core.sample.scene_texts import human_captions
from blip_core.sample.scenes import draw_scene, render

STREAMS = {"retrieval": 400, "caption": 500}  # apart from the generators of the other writers


def write_captioned(out: Path, *, kind: str, seed: int, sizes: dict[str, int]) -> None:
    """Write `out`/images and `out`/train.jsonl, val.jsonl, test.jsonl with so many pictures each; `out` appears whole, by rename.

    A row has image, its captions, and things and background, for slices. `kind`: of STREAMS, each with pictures of its own.
    """
    with whole_folder(out) as temporary:
        (temporary / "images").mkdir()
        for part, count in sizes.items():
            rows = [_picture(temporary / "images", part, number, [seed, STREAMS[kind] + PARTS.index(part)]) for number in range(count)]
            write_rows(rows, temporary / f"{part}.jsonl")


def _picture(folder: Path, part: str, number: int, stream: list[int]) -> dict[str, object]:
    rng = np.random.Generator(np.random.PCG64([*stream, number]))
    scene = draw_scene(rng)
    name = f"{part}-{number:06d}.jpg"
    (folder / name).write_bytes(jpeg(render(scene, rng)))
    facts = {"things": len(scene.things), "background": scene.background}
    return {"image": f"images/{name}", "captions": human_captions(rng, scene), **facts}
