"""Lays out photographs with captions as a clean set, a crawl whose noise is known, and held-out pictures.

The input is a folder with `captions.csv` (file_name, split, caption; one row a caption) and the pictures, in `images.tar` or as files.
The output is `data/clean` and `data/web`, which `ingest` reads as they are, and `truth.csv` beside `data`, which no stage reads.
Everything is drawn from the seed.
"""

import csv
import io
import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blip_core.files.atomic import new_file

KINDS = {"true": 0.3, "terse": 0.1, "mismatched": 0.35, "boilerplate": 0.15, "one_word": 0.1}
TRIES = 100  # pictures that are asked for a caption of their own
FALSE = ("mismatched", "boilerplate", "one_word")
STOCK = (
    "photo by {n}",
    "IMG_{n}.JPG",
    "click to enlarge",
    "stock photo {n}",
    "image may be subject to copyright",
    "DSC{n}",
    "my album {n}",
)
# a word is exchanged for another of its group, so the text stays a sentence
EXCHANGED = (
    ("man", "woman", "boy", "girl"),
    ("men", "women", "boys", "girls"),
    ("dog", "cat", "horse", "bird", "child"),
    ("dogs", "cats", "horses", "birds", "children"),
    ("black", "white", "brown", "red", "blue", "green", "yellow", "orange", "pink", "purple"),
    ("two", "three", "four", "five"),
    ("running", "sitting", "jumping", "standing", "swimming", "climbing", "sleeping"),
    ("grass", "snow", "water", "sand", "street"),
    ("beach", "mountain", "field", "park", "pool", "city"),
    ("ball", "bike", "car", "boat", "stick"),
)
NAMED = {word for group in (*EXCHANGED[:4], *EXCHANGED[7:]) for word in group}
GROUP = {word: group for group in EXCHANGED for word in group}


@dataclass(frozen=True)
class Photo:
    file_name: str
    split: str
    captions: tuple[str, ...]


def read_photos(folder: Path) -> list[Photo]:
    """Those of captions.csv, in order of their file names. ValueError where the list lacks a column or has no train picture."""
    with (folder / "captions.csv").open(newline="") as f:
        rows = csv.DictReader(f)
        if missing := {"file_name", "split", "caption"} - set(rows.fieldnames or ()):
            raise ValueError(f"{folder}/captions.csv: no column {', '.join(sorted(missing))}; it has {rows.fieldnames}")
        captions: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in rows:
            captions[row["file_name"], row["split"]].append(row["caption"])
    photos = [Photo(name, split, tuple(texts)) for (name, split), texts in sorted(captions.items())]
    if not any(p.split == "train" for p in photos):
        raise ValueError(f"{folder}/captions.csv: no row of the split train; the splits are {sorted({p.split for p in photos})}")
    return photos


def pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """File name and bytes: the members of images.tar, else the files of the folder."""
    if (folder / "images.tar").exists():
        with tarfile.open(folder / "images.tar") as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)):
                    yield Path(member.name).name, file.read()
        return
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            yield path.name, path.read_bytes()


def lay_out(photos: Path, out: Path, *, num_clean: int, num_val: int, seed: int) -> None:
    """`num_clean` train pictures with all their captions are the clean set, the rest of train is the crawl, with one text each.

    The last split of the folder (test, else val) is the held-out test set; without a split of its own, val is `num_val` of train."""
    known, rng = read_photos(photos), random.Random(seed)
    splits = {p.split for p in known}
    train = [p for p in known if p.split == "train"]
    rng.shuffle(train)
    test = [p for p in known if p.split == ("test" if "test" in splits else "val")]
    val = [p for p in known if p.split == "val"] if {"val", "test"} <= splits else train[:num_val]
    train = [p for p in train if p not in set(val)]
    clean, crawl = train[:num_clean], train[num_clean:]
    if len(clean) < num_clean or len(crawl) < 2 or not test:
        raise ValueError(f"{photos}: {len(train)} train and {len(test)} held-out pictures; expected more than {num_clean} and at least one")
    listed = [(p, split) for split, part in (("train", clean), ("val", val), ("test", test)) for p in part]
    _write(out / "data/clean/captions.csv", ((p.file_name, s, text) for p, s in listed for text in p.captions), "split")
    texts = list(crawl_texts(crawl, rng))
    _write(out / "data/web/captions.csv", ((p.file_name, "train", text) for p, (_, text) in zip(crawl, texts, strict=True)), "split")
    home = {p.file_name: "clean" for p, _ in listed} | {p.file_name: "web" for p in crawl}
    for name, data in pictures(photos):
        if name in home:
            (out / "data" / home.pop(name) / name).write_bytes(data)
    if home:
        raise ValueError(f"{photos}: {len(home)} pictures of captions.csv are not there, as {next(iter(home))}")
    # last: where it stands, all is laid out
    _write(out / "truth.csv", ((p.file_name, kind, text) for p, (kind, text) in zip(crawl, texts, strict=True)), "kind")


def crawl_texts(crawl: list[Photo], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Kind and text for each picture."""
    makers: dict[str, Callable[[Photo], str | None]] = {
        "true": lambda p: rng.choice(p.captions),
        "terse": lambda p: terse(p, rng),
        "mismatched": lambda p: mismatched(p, crawl, rng),
        "boilerplate": lambda p: rng.choice(STOCK).format(n=rng.randrange(1000, 10000)),
        "one_word": lambda p: one_word_wrong(p, rng),
    }
    for photo in crawl:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        text = makers[kind](photo)
        if text is None:  # no word of its captions has a group
            kind, text = "mismatched", mismatched(photo, crawl, rng)
        yield kind, text


def mismatched(photo: Photo, crawl: list[Photo], rng: random.Random) -> str:
    """A caption of another picture, which this one does not have too."""
    for other in rng.choices(crawl, k=TRIES):
        if foreign := [text for text in other.captions if text not in photo.captions]:
            return rng.choice(foreign)
    raise ValueError(f"{TRIES} pictures have no caption that {photo.file_name} has not: nothing would be false of it")


def terse(photo: Photo, rng: random.Random) -> str | None:
    """A word that a caption of the picture has: true, and little."""
    found = sorted(set(re.findall(r"\w+", " ".join(photo.captions))) & NAMED)
    return rng.choice(found) if found else None


def one_word_wrong(photo: Photo, rng: random.Random) -> str | None:
    """A caption in which one word was exchanged for another that no caption of the picture has."""
    said = set(re.findall(r"\w+", " ".join(photo.captions).lower()))
    choices = []
    for caption in photo.captions:
        for place in re.finditer(r"\w+", caption):
            others = [w for w in GROUP.get(place[0], ()) if w not in said]
            choices += [caption[: place.start()] + w + caption[place.end() :] for w in others]
    return rng.choice(choices) if choices else None


def _write(path: Path, rows: Iterator[tuple[str, str, str]], middle: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("file_name", middle, "caption"), *rows])
    with new_file(path) as temporary:
        temporary.write_text(text.getvalue())
