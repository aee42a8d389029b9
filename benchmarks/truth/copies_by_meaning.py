"""Which copies of a picture do hashes find, which an image encoder's embeddings, and how many other pictures does either take for copies?

    python benchmarks/truth/copies_by_meaning.py FOLDER MODEL [PICTURES] [SEED]

FOLDER holds image files, or any data set that ingest reads; MODEL is a folder of transformers, as for ingest.near_copies.meaning. Of each
picture a copy of each kind is made, with choices (corner, offset) by the seed. Recall is the share of the copies that are within the limit
of their own picture. Precision is of all pairs of a copy and a picture within the limit, the share that is of one picture: every copy is
compared with every picture. Pairs of pictures that are near copies themselves by hashes (at most SAME bits of each) do not count.
Prints the tables; writes benchmarks/results/copies_by_meaning.json. A minute of CPU for 300 pictures and a small encoder.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks/truth")]

import numpy as np  # noqa: E402
from near_duplicates import COPIES, SAME, crop, encoded, pictures, seconds  # noqa: E402
from PIL import Image, ImageDraw, ImageEnhance, ImageOps  # noqa: E402

from blip_core.config.intake import MeaningConfig  # noqa: E402
from blip_core.intake.alike import firsts, on_grid  # noqa: E402
from blip_core.intake.duplicates import distances, fingerprint  # noqa: E402
from blip_core.intake.embedder import Embedder, load_embedder  # noqa: E402

BITS = (4, 6, 10)
COSINES = (0.85, 0.9, 0.95, 0.98, 0.99)
EITHER = (10, 0.95)  # both looks, as ingest has them
_ROWS = 256  # copies that are compared at a time


def captioned(image: Image.Image) -> Image.Image:
    """A white band with two lines of text, over a quarter of the height."""
    image, (w, h) = image.copy(), image.size
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0.72 * h, w, 0.97 * h), fill="white")
    draw.text((0.05 * w, 0.74 * h), "WHEN YOU SEE IT", fill="black")
    draw.text((0.05 * w, 0.86 * h), "example.org", fill="black")
    return image


def framed(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.expand(image, round(share * min(image.size)), "white")


def turned(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white")


FURTHER: dict[str, Callable[[Image.Image, random.Random], np.ndarray]] = {
    "cropped by 15 %": lambda image, rng: encoded(crop(image, 0.15, rng)),
    "cropped by 30 %": lambda image, rng: encoded(crop(image, 0.3, rng)),
    "colour taken by half": lambda image, rng: encoded(ImageEnhance.Color(image).enhance(0.5)),
    "text over a quarter": lambda image, rng: encoded(captioned(image)),
    "white border of 10 %": lambda image, rng: encoded(framed(image, 0.1)),
    "turned by 5 degrees": lambda image, rng: encoded(turned(image, 5)),
    "turned by 90 degrees": lambda image, rng: encoded(image.transpose(Image.Transpose.ROTATE_90)),
}
KINDS = {name: make for name, make in COPIES.items() if name != "mirrored, compared as held-out"} | FURTHER


def embeddings(embedder: Embedder, pixels: list[np.ndarray]) -> np.ndarray:
    size = embedder.batch_size
    batches = ([embedder.prepared(own) for own in pixels[start : start + size]] for start in range(0, len(pixels), size))
    return on_grid(np.concatenate([embedder.vectors(batch) for batch in batches]))


def prints(pixels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Fingerprints [n, 2], and which pictures have one."""
    found = [fingerprint(own) for own in pixels]
    return np.array([own or (0, 0) for own in found], np.uint64), np.array([own is not None for own in found])


def bits_apart(pixels: list[np.ndarray], known: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[copies, pictures]: the larger number of bits that differ in the two hashes; 65 where one has none."""
    own, has = prints(pixels)
    found = np.concatenate([distances(own[i : i + _ROWS, None], known[0]).max(axis=-1) for i in range(0, len(own), _ROWS)])
    return np.where(has[:, None] & known[1], found, 65)


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    some, others = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (some.astype(np.float64), others.astype(np.float64)))
    return some @ others.T


def measured(near: np.ndarray, others: np.ndarray) -> tuple[float, int, int]:
    """Recall, and the true and false pairs, of the pairs [copies, pictures] that are near. `others`: which of these are no copies."""
    return float(near.diagonal().mean()), int(near.diagonal().sum()), int((near & others).sum())


def compare(images: list[np.ndarray], embedder: Embedder, seed: int) -> dict[str, dict[str, tuple[float, int, int]]]:
    """By limit and kind of copy: recall, true and false pairs."""
    known, vectors = prints(images), embeddings(embedder, images)
    others = bits_apart(images, known) > SAME
    np.fill_diagonal(others, False)
    found: dict[str, dict[str, tuple[float, int, int]]] = {}
    for kind, make in KINDS.items():
        rng = random.Random(seed)
        copies = [make(Image.fromarray(own), rng) for own in images]
        apart, cosine = bits_apart(copies, known), cosines(embeddings(embedder, copies), vectors)
        for limit in BITS:
            found.setdefault(f"≤ {limit} bits", {})[kind] = measured(apart <= limit, others)
        for limit in COSINES:
            found.setdefault(f"cos ≥ {limit}", {})[kind] = measured(cosine >= limit, others)
        found.setdefault("either of {} bits, {}".format(*EITHER), {})[kind] = measured((apart <= EITHER[0]) | (cosine >= EITHER[1]), others)
    return found


def precision(of_limit: dict[str, tuple[float, int, int]]) -> tuple[float, int]:
    """Over all kinds; and the false pairs."""
    true, false = (sum(own[i] for own in of_limit.values()) for i in (1, 2))
    return true / max(1, true + false), false


def costs(images: list[np.ndarray], embedder: Embedder) -> dict[str, float]:
    """Milliseconds of CPU a picture for either fingerprint, and for the search within 20,000 random vectors of that width."""
    vectors = embeddings(embedder, images[: embedder.batch_size])
    many = on_grid(np.random.default_rng(0).standard_normal((20_000, vectors.shape[1])))
    found = {
        "its hashes": seconds(lambda: prints(images)) / len(images),
        "its embedding": seconds(lambda: embeddings(embedder, images)) / len(images),
        f"copies within 20,000 pictures, {vectors.shape[1]} numbers each": seconds(lambda: firsts(many, cosine=0.95)) / len(many),
    }
    return {name: 1e3 * value for name, value in found.items()}


def show(found: dict[str, dict[str, tuple[float, int, int]]], num: int) -> None:
    print(f"| recall of {num} pictures' copies | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for kind in KINDS:
        print(f"| {kind} | " + " | ".join(f"{own[kind][0]:.3f}" for own in found.values()) + " |")
    totals = [precision(own) for own in found.values()]
    print("| **precision over all** | " + " | ".join(f"{value:.3f}" for value, _ in totals) + " |")
    print("| false pairs | " + " | ".join(f"{false:,}" for _, false in totals) + " |")


def main(folder: Path, model: Path, most: int, seed: int) -> None:
    cfg = MeaningConfig(model=model, heldout_cosine=0.95, web="off", web_cosine=0.95, batch_size=64, precision="fp32")
    embedder, images = load_embedder(cfg), [image.pixels for image in pictures(folder, most)[2]]
    found, cost = compare(images, embedder, seed), costs(images, embedder)
    show(found, len(images))
    print("\n| cost | CPU ms a picture |\n|---|---|")
    for name, value in cost.items():
        print(f"| {name} | {value:.2f} |")
    out = ROOT / "benchmarks/results/copies_by_meaning.json"
    out.parent.mkdir(exist_ok=True)
    results = {"pictures": len(images), "seed": seed, "identity": embedder.identity, "found": found, "milliseconds": cost}
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=int, nargs="?", default=300)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    args = parser.parse_args()
    main(args.folder, args.model, args.pictures, args.seed)
