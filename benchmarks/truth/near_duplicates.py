"""How many copies of a picture are found, how many pictures are taken for copies that are none, and what does it cost?

    python benchmarks/truth/near_duplicates.py FOLDER [PICTURES] [SEED]

FOLDER holds image files, or any data set that ingest reads. Of each picture copies are made, where one has a choice (corner, offset) by
the seed, and compared with it. For pictures that are no copies, each is also cut into 4, 9 and 16 tiles: plain, small pictures, the hard
case for a hash. Pairs of tiles of one picture do not count, nor those of two pictures that are near copies themselves (which are listed).
Times are CPU seconds of one core. Prints the tables; writes benchmarks/results/near_duplicates.json. A minute for 480 pictures.
"""

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageEnhance, ImageOps  # noqa: E402

from blip_core.config.params import load_params  # noqa: E402
from blip_core.files.rejected import Rejected  # noqa: E402
from blip_core.intake.duplicates import distances, fingerprint, firsts, nearest  # noqa: E402
from blip_core.intake.formats import Record, recognise  # noqa: E402
from blip_core.intake.formats.files import IMAGE_ENDS  # noqa: E402
from blip_core.pictures.images import Admitted, admit  # noqa: E402

SHOWN = (2, 4, 6, 8, 10, 12)
SAME = 12  # pictures that near are one, for this measurement
LEAST_TILE = 48


def crop(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    """Without `share` of each side, cut from both ends."""
    cut = [round(side * share) for side in image.size]
    left, top = (rng.randint(0, c) for c in cut)
    return image.crop((left, top, image.width - cut[0] + left, image.height - cut[1] + top))


def smaller(image: Image.Image, share: float) -> Image.Image:
    return image.resize(tuple(max(1, round(side * share)) for side in image.size), Image.Resampling.LANCZOS)


def stamp(image: Image.Image, rng: random.Random) -> Image.Image:
    """A white box with a name in a corner: a fifth of the width, a twentieth of the height."""
    image, (w, h) = image.copy(), image.size
    left, top = rng.choice((0.03, 0.77)) * w, rng.choice((0.03, 0.92)) * h
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, left + 0.2 * w, top + 0.05 * h), fill="white")
    draw.text((left, top), "example.org", fill="black")
    return image


def encoded(image: Image.Image, quality: int = 90) -> np.ndarray:
    """Its pixels after a trip through JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


COPIES: dict[str, Callable[[Image.Image, random.Random], np.ndarray]] = {
    "JPEG quality 50": lambda image, rng: encoded(image, 50),
    "60 % of the size": lambda image, rng: encoded(smaller(image, 0.6)),
    "cropped by 3 %": lambda image, rng: encoded(crop(image, 0.03, rng)),
    "cropped by 6 %": lambda image, rng: encoded(crop(image, 0.06, rng)),
    "brighter by 20 %": lambda image, rng: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "grey": lambda image, rng: encoded(image.convert("L").convert("RGB")),
    "stamped": lambda image, rng: encoded(stamp(image, rng)),
    "60 %, stamped, quality 50": lambda image, rng: encoded(stamp(smaller(image, 0.6), rng), 50),
    "white border of 3 %": lambda image, rng: encoded(ImageOps.expand(image, round(0.03 * min(image.size)), "white")),
    "mirrored": lambda image, rng: encoded(ImageOps.mirror(image)),
    "mirrored, compared as held-out": lambda image, rng: encoded(ImageOps.mirror(image))[:, ::-1],
}


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Image files by their path; where there are none, the records of a data set by their key."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDS)
    yield from ((str(p.relative_to(folder)), p.read_bytes()) for p in paths)
    if not paths:
        module = recognise(folder)
        items = (item for unit in module.units(folder) for item in module.read(unit))
        yield from ((item.key, item.image) for item in items if isinstance(item, Record))


def pictures(folder: Path, most: int) -> tuple[list[str], list[bytes], list[Admitted]]:
    """Keys, bytes as found, and what ingest makes of them."""
    cfg, found = load_params(ROOT / "params.yaml").ingest, []
    for name, data in islice(files(folder), most):
        try:
            found.append((name, data, admit(data, cfg.images, short_side=cfg.short_side, quality=cfg.quality, format=cfg.format)))
        except Rejected as e:
            print(f"{name}: {e}")
    keys, data, images = zip(*found, strict=True)
    return list(keys), list(data), list(images)


def prints_of(pixels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of those that have a fingerprint, and these [n, 2]."""
    found = {i: p for i, p in enumerate(map(fingerprint, pixels)) if p is not None}
    return np.array([*found], np.int64), np.array([*found.values()], np.uint64).reshape(-1, 2)


def hits(images: list[Admitted], seed: int) -> dict[str, dict[int, float]]:
    """Of each kind of copy the share that is found, by distance. A picture without a fingerprint is not."""
    found = {}
    for name, make in COPIES.items():
        rng = random.Random(seed)
        pairs = [(fingerprint(i.pixels), fingerprint(make(Image.fromarray(i.pixels), rng))) for i in images]
        worst = np.array([65 if None in p else distances(*np.array(p, np.uint64)).max() for p in pairs])
        found[name] = {d: float((worst <= d).mean()) for d in SHOWN}
    return found


def tiles(pixels: np.ndarray) -> list[np.ndarray]:
    """The picture, its quarters, ninths and sixteenths, as far as they are no crumbs."""
    found = []
    for n in (1, 2, 3, 4):
        h, w = pixels.shape[0] // n, pixels.shape[1] // n
        if min(h, w) >= LEAST_TILE:
            found += [pixels[y * h : (y + 1) * h, x * w : (x + 1) * w] for y in range(n) for x in range(n)]
    return found


def false_pairs(images: list[Admitted]) -> tuple[dict[str, dict[str, float]], list[tuple[int, int]]]:
    """Pairs of different pictures that are within a distance, by what is compared; and the pictures that are copies of others."""
    whole, prints = prints_of([i.pixels for i in images])
    first = whole[firsts(prints, distance=SAME)]
    group = np.arange(len(images))
    group[whole] = first
    cut = [(group[i], tile) for i, image in enumerate(images) for tile in tiles(image.pixels)]
    has, prints = prints_of([tile for _, tile in cut])
    groups = np.array([g for g, _ in cut])[has]
    counts = {name: dict.fromkeys(SHOWN, 0) for name in ("pHash alone", "dHash alone", "both")}
    total = 0
    for n in range(1, len(prints)):
        others = groups[:n] != groups[n]
        p, d = distances(prints[:n][others], prints[n]).T
        total += len(p)
        for name, distance in (("pHash alone", p), ("dHash alone", d), ("both", np.maximum(p, d))):
            for most in SHOWN:
                counts[name][most] += int((distance <= most).sum())
    copies = [(int(a), int(b)) for a, b in zip(whole, first, strict=True) if a != b]
    return {"pairs": total, "tiles": len(cut), "without_fingerprint": len(cut) - len(has), "counts": counts}, copies


def seconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def costs(data: list[bytes], images: list[Admitted]) -> dict[str, float]:
    """Microseconds a picture: to admit it (decode and check), its fingerprint, and the search among others (made up, by the million)."""
    cfg = load_params(ROOT / "params.yaml").ingest
    rng = np.random.default_rng(0)
    many, few = (rng.integers(0, 2**64, (n, 2), dtype=np.uint64) for n in (1_000_000, 20_000))
    measured = {
        "admit": seconds(lambda: [admit(d, cfg.images, short_side=None, quality=90, format=cfg.format) for d in data]) / len(data),
        "fingerprint": seconds(lambda: [fingerprint(i.pixels) for i in images]) / len(images),
        **{f"among 20,000 held-out, distance {d}": seconds(lambda d=d: nearest(many, few, distance=d)) / 1e6 for d in (6, 10)},
        **{f"within a million, distance {d}": seconds(lambda d=d: firsts(many, distance=d)) / 1e6 for d in (4, 6, 8)},
    }
    return {name: 1e6 * value for name, value in measured.items()}


def main(folder: Path, most: int, seed: int) -> None:
    keys, data, images = pictures(folder, most)
    found, (wrong, copies) = hits(images, seed), false_pairs(images)
    print(f"| share of {len(images)} pictures' copies that are found | " + " | ".join(f"≤ {d}" for d in SHOWN) + " |")
    print("|---|" + "---|" * len(SHOWN))
    for name, shares in found.items():
        print(f"| {name} | " + " | ".join(f"{shares[d]:.3f}" for d in SHOWN) + " |")
    print(
        f"\n| false among {wrong['pairs'] / 1e6:.1f} million pairs of {wrong['tiles']} tiles | "
        + " | ".join(f"≤ {d}" for d in SHOWN)
        + " |"
    )
    print("|---|" + "---|" * len(SHOWN))
    for name, counts in wrong["counts"].items():
        print(f"| {name} | " + " | ".join(str(counts[d]) for d in SHOWN) + " |")
    cost = costs(data, images)
    print("\n| cost | µs a picture |\n|---|---|")
    for name, value in cost.items():
        print(f"| {name} | {value:.1f} |")
    print(
        f"\n{len(copies)} pictures are near copies of an earlier one: {', '.join(f'{keys[a]} of {keys[b]}' for a, b in copies) or 'none'}"
    )
    out = ROOT / "benchmarks/results/near_duplicates.json"
    out.parent.mkdir(exist_ok=True)
    results = {"pictures": len(images), "seed": seed, "found": found, "false": wrong, "copies": len(copies), "microseconds": cost}
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    args = parser.parse_args()
    main(args.folder, args.pictures, args.seed)
