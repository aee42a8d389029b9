"""Training batches per core: our shards and `Batches` against full image files, Pillow and a torch Dataset.

    python benchmarks/speed/data_path.py [--size tiny|vit-b16] [--runs N] [--threads N] [--workers N]

Both sides make augmented, normalised batches at 224 pixels (tiny: 32): random resized crop of scale 0.5 to 1, bicubic, and flip, by the
settings of `tune_captioner` in configs/vit-b16.yaml, the same crops of the same pictures in the same order. Ours tokenizes the texts
too; the plain side hands them over as they are. Pictures are made by seed, at quality 85. Where both sides read the same bytes, their
pixels may differ by two grey levels, or nothing is timed; in the rows "stored with short_side" ours reads the smaller files that ingest
makes of the pictures, other bytes than the plain side. RandAugment is off but for a row of its own; the plain side has none. CPU
seconds are those of all processes, in the tables with loading processes with their start. Writes benchmarks/results/data-path-<size>.json.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from PIL import Image
from side_by_side import ROOT, SIZES, alternate, compared, show, write
from torch.utils.data import DataLoader, Dataset

from blip_core.config.model import MEAN, STD
from blip_core.config.params import load_params
from blip_core.files.content import hash64
from blip_core.pictures.images import admit
from blip_core.tables.manifest import write_manifest
from blip_core.tables.shards import ShardImages, ShardWriter
from blip_core.tokenizer.build import build_vocab
from blip_core.tokenizer.wordpiece import bert_tokenizer
from blip_core.training.augment import NUM_DRAWS, crop_box
from blip_core.training.batches import Batches, Rows, pick

SEED, MOST_LEVELS = 0, 2
Side = Callable[[], Iterator[torch.Tensor]]  # all batches


@dataclass(frozen=True)
class Pictures:
    width: int
    height: int
    number: int
    passes: int
    short_sides: tuple[int | None, ...]  # with which ingest stores them; None keeps their bytes

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True)
class Scale:
    image_size: int
    batch_size: int
    pictures: tuple[Pictures, ...]


SCALES = {
    "tiny": Scale(32, 8, (Pictures(80, 60, 16, 1, (None, 40)),)),
    "vit-b16": Scale(224, 64, (Pictures(500, 375, 512, 3, (None, 256)), Pictures(1600, 1200, 128, 2, (None, 384)))),
}


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Clouds of many sizes, a few hard edges and some noise: about as many bytes at quality 85 as a photo of the size."""
    image = torch.full((3, height, width), 120.0)
    for cells, contrast in ((3, 60), (9, 35), (27, 22), (90, 14), (width // 2, 10)):
        grey, colour = torch.from_numpy(rng.standard_normal((2, 3, max(2, cells * height // width), cells))).float()
        clouds = 0.7 * grey[:1] + 0.5 * colour
        image += contrast * torch.nn.functional.interpolate(clouds[None], (height, width), mode="bicubic")[0]
    for _ in range(8):
        left, top = rng.integers(width), rng.integers(height)
        image[:, top : top + height // 4, left : left + width // 4] += torch.from_numpy(rng.normal(0, 40, (3, 1, 1)))
    image += torch.from_numpy(rng.normal(0, 4, (1, height, width)))
    return np.ascontiguousarray(image.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def write_pictures(folder: Path, pictures: Pictures) -> list[Path]:
    """JPEG files as a camera or a web site makes them."""
    rng = np.random.default_rng(SEED)
    paths = [folder / f"{i:06d}.jpg" for i in range(pictures.number)]
    folder.mkdir()
    for path in paths:
        path.write_bytes(simplejpeg.encode_jpeg(picture(rng, pictures.width, pictures.height), quality=85, colorsubsampling="420"))
    return paths


def text_of(place: int) -> str:
    return f"a photo of thing {place} standing beside some other things"


# --- ours


def store(paths: list[Path], folder: Path, *, short_side: int | None) -> ShardImages:
    """Shards of the files, as ingest makes them."""
    ingest = load_params(ROOT / "configs/vit-b16.yaml").ingest
    with ShardWriter(folder, "web", num_images=ingest.shard_images) as writer:
        for path in paths:
            image = admit(path.read_bytes(), ingest.images, short_side=short_side, quality=ingest.quality, format=ingest.format)
            writer.add(path.stem, image.data, image_id=path.stem, width=image.width, height=image.height)
    write_manifest(folder)
    return ShardImages(folder)


def make_batches(images: ShardImages, keys: list[str], passes: int, scale: Scale, workers: int, *, randaugment: bool = False) -> Batches:
    texts = [text_of(i) for i in range(len(keys))]
    columns = (pa.array(images.shards * len(keys)), pa.array(keys), pa.array(texts))
    rows = Rows(*columns, np.array([hash64(key) for key in keys]), {"web": np.arange(len(keys))})
    cfg = load_params(ROOT / "configs/vit-b16.yaml").tune_captioner.optim
    changes = {"batch_size": scale.batch_size, "steps": passes * len(keys) // scale.batch_size, "accumulate": 1, "workers": workers}
    if not randaugment:
        changes["augment"] = cfg.augment.model_copy(update={"randaugment": None})
    options = {"shares": {"web": 1.0}, "cfg": cfg.model_copy(update=changes), "image_size": scale.image_size}
    return Batches(rows, images, bert_tokenizer(build_vocab(texts, 200)), **options, prompt="", seed=SEED)


def ours(batches: Batches) -> Iterator[torch.Tensor]:
    return (batch.pixels for batch in batches.loader(0))


# --- the plain way


class Files(Dataset):
    """Image files and their texts, as torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize treat pictures of
    Pillow. Order and crops are those of `batches`."""

    def __init__(self, paths: list[Path], batches: Batches):
        self.paths, self.scale, self.size = paths, batches.cfg.augment.crop, batches.image_size
        size, steps = batches.cfg.batch_size, range(batches.cfg.steps)
        self.order = np.concatenate([pick(batches.rows, batches.shares, step=s, batch_size=size, seed=SEED) for s in steps])
        self.draws = np.concatenate([np.random.default_rng([SEED, s, 1]).random((size, NUM_DRAWS)) for s in steps])
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, str]:
        draw = self.draws[place]
        image = Image.open(self.paths[self.order[place]]).convert("RGB")
        top, left, height, width = crop_box(image.height, image.width, self.scale, draw)
        image = image.crop((left, top, left + width, top + height)).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if draw[9] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(self.mean).div_(self.std), text_of(self.order[place])


def plain(files: Files, *, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    return (pixels for pixels, _ in DataLoader(files, batch_size=batch_size, num_workers=workers))


# --- checked and timed


def make_sides(folder: Path, pictures: Pictures, scale: Scale, workers: int) -> dict[str, Side]:
    """How each side makes all batches; the first two read the same bytes."""
    if not folder.exists():
        folder.mkdir()
        write_pictures(folder / "files", pictures)
    paths = sorted((folder / "files").iterdir())
    sides: dict[str, Side] = {}
    for short_side in pictures.short_sides:
        stored = folder / f"shards-{short_side}"
        images = ShardImages(stored) if stored.exists() else store(paths, stored, short_side=short_side)
        batches = make_batches(images, [p.stem for p in paths], pictures.passes, scale, workers)
        if not sides:
            sides["plain"] = partial(plain, Files(paths, batches), batch_size=scale.batch_size, workers=workers)
            distorted = make_batches(images, [p.stem for p in paths], pictures.passes, scale, workers, randaugment=True)
            sides["ours, with RandAugment"] = partial(ours, distorted)
        sides["ours, the same bytes" if short_side is None else f"ours, stored with short_side {short_side}"] = partial(ours, batches)
    return sides


def check(sides: dict[str, Side]) -> float:
    """The greatest difference of two pixels in grey levels; ValueError when it is above MOST_LEVELS."""
    levels = torch.tensor(STD)[:, None, None] * 255
    theirs, same = (sides[name]() for name in ("plain", "ours, the same bytes"))
    worst = max(((a - b).abs() * levels).max().item() for a, b in zip(theirs, same, strict=True))
    if worst > MOST_LEVELS + 0.01:  # they normalise in another order
        raise ValueError(f"pixels of ours and of the plain way differ by {worst:.1f} grey levels; expected {MOST_LEVELS} at most")
    return round(worst, 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scale, tables = SCALES[args.size], []
    with tempfile.TemporaryDirectory() as folder:
        for pictures in scale.pictures:
            for workers in (0, args.workers):
                sides = make_sides(Path(folder) / str(pictures), pictures, scale, workers)
                difference = check(sides)
                rows = compared(alternate({name: partial(consume, side) for name, side in sides.items()}, runs=args.runs), theirs="plain")
                show(f"{pictures}, {workers} loading processes", rows, items=pictures.passes * pictures.number, unit="images")
                facts = {"pictures": str(pictures), "number": pictures.number, "passes": pictures.passes, "loading_processes": workers}
                tables.append({**facts, "greatest_difference_in_levels": difference, "rows": rows})
    print(write(f"data-path-{args.size}", {"size": args.size, "image_size": scale.image_size, "tables": tables}))


def consume(side: Side) -> None:
    for _ in side():
        pass


if __name__ == "__main__":
    main()
