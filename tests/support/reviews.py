"""A small crawl that a round has judged, whose truth is known, and people who say it or not."""

import json
from pathlib import Path

import numpy as np

from blip_core.pictures.images import decode_rgb
from blip_core.review.choose import Card
from blip_core.selection.labels import VERSION, Label
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import write_manifest
from blip_core.tables.shards import ShardWriter
from tests.support.archives import jpeg

THRESHOLD = {"web": 0.8, "synthetic": 0.9}
GENERATION, SHEET = "9" * 16, "5" * 16


def write_generation(folder: Path, num_images: int, *, seed: int = 0, shards: int = 2) -> dict[str, bool]:
    """A web text and two synthetic ones of each picture; returns which texts are right: as often as `match` says, less where synthetic."""
    draw, truth = np.random.default_rng(seed), {}
    for shard in range(shards):
        rows = [human(shard)]
        for number in range(shard, num_images, shards):
            for source, candidate in (("web", 0), ("synthetic", 0), ("synthetic", 1)):
                match = float(draw.beta(0.6, 0.5))
                text = f"{source} text {candidate} of {number}"
                truth[text] = bool(draw.random() < (match if source == "web" else 0.7 * match))
                rows.append(row(number, text, source, candidate, match))
        write_table(caption_table(rows), folder / f"web-{shard:05d}.parquet")
    write_manifest(folder, rule={"score": "match", "threshold": THRESHOLD})
    return truth


def row(number: int, text: str, source: str, candidate: int, match: float, **changes) -> dict:
    fate = "kept" if match >= THRESHOLD[source] else "below_threshold"
    about = {"key": f"web-{number:09d}", "image_id": f"i{number}", "text": text, "source": source, "candidate": candidate, "reason": fate}
    about |= {"round": "r1" if source == "synthetic" else "", "filter": "f" * 16, "match": match, "itm": match**2, "itc": match / 2}
    return about | changes


def human(number: int) -> dict:
    return {"key": f"train-{number:09d}", "image_id": f"t{number}", "text": "a ball", "source": "human", "candidate": 0, "reason": "kept"}


def write_shards(folder: Path, rows: list[dict], *, prefix: str = "web", pictures: dict[str, bytes] | None = None) -> None:
    """One shard with the pictures of these rows, each of its own colour; others go by `pictures`."""
    with ShardWriter(folder, prefix, num_images=10**6) as writer:
        for key, image_id in {r["key"]: r["image_id"] for r in rows}.items():
            picture = (pictures or {}).get(key) or jpeg(key)
            height, width, _ = decode_rgb(picture).shape
            writer.add(key, picture, image_id=image_id, width=width, height=height)


def said(cards: list[Card], verdicts: dict[str, str], *, reviewer: str = "ada", **changes) -> list[Label]:
    """Labels of all texts of a sheet."""
    about = {"version": VERSION, "sheet": SHEET, "generation": GENERATION, "reviewer": reviewer, "blind": True}
    about["time"] = "2026-01-02T03:04:05Z"
    rows = [r for card in cards for r in card.rows]
    own = [{"filter": r.filter, "weight": r.weight, "verdict": verdicts[r.pair.text], **r.pair._asdict()} for r in rows]
    return [Label.model_validate_json(json.dumps(about | r | changes)) for r in own]


def words(truth: dict[str, bool]) -> dict[str, str]:
    return {text: "right" if right else "wrong" for text, right in truth.items()}


def write_labels(path: Path, labels: list[Label]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{label.model_dump_json()}\n" for label in labels))
    return path
