"""What a crawl of so many images asks for, on paper: shards, bytes, S3 requests, GPU-hours, money. Nothing is run.

    python benchmarks/speed/sizing.py [--images 100000000] [--gpus 64] [--set NAME=VALUE ...]

Rates are those that benchmarks/results holds; prices and what was not measured are assumptions. The first table says which is which
and where each comes from; --set replaces any of them by its name. docs/scale.md has the tables as they come out without options.
"""

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
MODELS = {"vit-b16": "ViT-B/16", "vit-l16": "ViT-L/16"}
KB, MB, GB = 10**3, 10**6, 10**9


@dataclass(frozen=True)
class Input:
    """A number that the rest is made from, and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass
class Sizing:
    """Results in the order of the table: what, amount, money where it costs some."""

    rows: list[tuple[str, str, float | None]] = field(default_factory=list)

    def add(self, what: str, amount: str, cost: float | None = None) -> None:
        self.rows.append((what, amount, cost))


def gpu_rate(size: str, part: str, side: str, unit: str) -> float:
    """Of a row of the GPU's results; the last one, where there are several. ValueError when it was not measured."""
    path = RESULTS / f"gpu-{size}.json"
    rows = [r for r in json.loads(path.read_text())["parts"].get(part, []) if r["side"] == side]
    if not rows:
        raise ValueError(f"{path}: no {part} of {side!r}; give the rate with --set")
    return rows[-1][f"{unit}_per_second"]


def reader_rate() -> float:
    """Images that a core reads, crops and resizes in a second, at 500 x 375 pixels, with loading processes."""
    tables = json.loads((RESULTS / "data-path-vit-b16.json").read_text())["tables"]
    table = next(t for t in tables if t["pictures"] == "500 x 375" and t["loading_processes"] == 2)
    row = next(r for r in table["rows"] if r["side"] == "ours, the same bytes")
    return table["number"] * table["passes"] / row["cpu_seconds"][0]


def inputs() -> dict[str, Input]:
    """All of them by name."""
    measured = {}
    for size in MODELS:
        source, device = f"measured: gpu-{size}.json", json.loads((RESULTS / f"gpu-{size}.json").read_text())["device"]
        captions = gpu_rate(size, "captions", "nucleus, bf16", "captions") / 5
        texts = gpu_rate(size, "scores", "ITM, bf16", "texts") / 6
        measured |= {
            f"caption-{size}": Input(captions, "images/s", f"{source}, {device}, five captions of each image, 384 pixels"),
            f"score-{size}": Input(texts, "images/s", f"{source}, {device}, six texts of each image, 384 pixels"),
        }
    base = gpu_rate("vit-b16", "largest", "ours, bf16", "images")
    fp32 = [gpu_rate(size, "step", "ours, fp32", "images") for size in MODELS]
    return measured | {
        "pretrain-vit-b16": Input(base, "images/s", "measured: gpu-vit-b16.json, whole step, bf16, 1,408 images, 224 pixels"),
        "pretrain-vit-l16": Input(
            base * fp32[1] / fp32[0], "images/s", "ASSUMED: that of ViT-B times the measured ratio of the two in fp32"
        ),
        "reader": Input(reader_rate(), "images/s", "measured: data-path-vit-b16.json, a core of its machine, 500 x 375 pixels"),
        "epochs": Input(20, "", "the paper's"),
        "image-bytes": Input(54 * KB, "B", "ASSUMED: a JPEG of about 500 x 375 at quality 85"),
        "text-bytes": Input(100, "B", "ASSUMED: a row of a caption table in Parquet"),
        "shard-images": Input(4000, "images", "params.yaml: ingest.shard_images"),
        "raw-images": Input(10_000, "images", "ASSUMED: a tar of the raw crawl, as img2dataset makes them"),
        "range-bytes": Input(16 * 2**20, "B", "blip_core/remote/storage.py: a range that is fetched, a part that is sent"),
        "capfilt-efficiency": Input(
            0.8, "", "ASSUMED: share of the GPU's rate that caption and score keep with reading, loading and tails"
        ),
        "training-efficiency": Input(0.7, "", "ASSUMED: likewise of a training over many GPUs, gradients exchanged"),
        "gpu-hour": Input(4.0, "$", "ASSUMED: price of a GPU as that measured; take your own"),
        "gb-month": Input(0.023, "$", "ASSUMED: list price of S3 Standard, us-east-1, as known in 2025; not looked up"),
        "1000-gets": Input(0.0004, "$", "ASSUMED: likewise"),
        "1000-puts": Input(0.005, "$", "ASSUMED: likewise; lists cost the same"),
    }


def size(images: int, gpus: int, given: dict[str, Input]) -> Sizing:
    value, made = {name: i.value for name, i in given.items()}, Sizing()
    shards = math.ceil(images / value["shard-images"])
    stored, shard_bytes = images * value["image-bytes"], value["shard-images"] * value["image-bytes"]
    made.add("shards", f"{shards:,} of {shard_bytes / MB:,.0f} MB")
    made.add("images in S3, a month", f"{stored / 1e12:,.1f} TB", stored / GB * value["gb-month"])
    made.add("a generation's tables", f"{2 * images * value['text-bytes'] / GB:,.0f} GB, two texts an image")
    _requests(made, images, shards, shard_bytes, value)
    for model, name in MODELS.items():
        for stage, passes, kept in (("caption", 1, "capfilt"), ("score", 1, "capfilt"), ("pretrain", value["epochs"], "training")):
            hours = images * passes / (value[f"{stage}-{model}"] * value[f"{kept}-efficiency"]) / 3600
            said = f"{hours:,.0f} GPU-hours, {hours / gpus:,.1f} h on {gpus} GPUs"
            made.add(f"{stage}, {name}", said, hours * value["gpu-hour"])
    made.add("cores to feed a GPU in pretrain", f"{value['pretrain-vit-b16'] / value['reader']:.1f} (ViT-B)")
    rate = value["caption-vit-b16"] * value["capfilt-efficiency"]
    made.add("a shard of caption, ViT-B", f"{value['shard-images'] / rate:,.0f} s: what a GPU that dies costs at most")
    return made


def _requests(made: Sizing, images: int, shards: int, shard_bytes: float, value: dict[str, float]) -> None:
    """Of the raw crawl into ingest, of finished shards to DVC's remote and back to a machine, and of what we do not do."""
    tars, raw_bytes = math.ceil(images / value["raw-images"]), value["raw-images"] * value["image-bytes"]
    get, put = value["1000-gets"] / 1000, value["1000-puts"] / 1000
    gets = tars * (1 + math.ceil(raw_bytes / value["range-bytes"]))
    lists = math.ceil(tars / 1000)
    made.add("ingest reads the crawl", f"{gets:,} GET and HEAD, {lists:,} LIST", gets * get + lists * put)
    parts = math.ceil(shard_bytes / value["range-bytes"])
    made.add("shards sent once, in parts", f"{shards * (parts + 2):,} PUT and POST", shards * (parts + 2) * put)
    made.add("shards fetched by ranges, each time", f"{shards * parts:,} GET", shards * parts * get)
    samples = images * value["epochs"]
    made.add("for comparison: a GET for each image of each epoch", f"{samples:,.0f} GET", samples * get)


def as_text(images: int, given: dict[str, Input], made: Sizing) -> str:
    lines = ["| from | value | source |", "|---|---|---|"]
    lines += [f"| {name} | {i.value:,.6g} {i.unit}".rstrip() + f" | {i.source} |" for name, i in given.items()]
    lines += ["", f"| {images:,} images | | $ |", "|---|---|---|"]
    lines += [
        f"| {what} | {amount} | {'' if cost is None else f'{cost:,.0f}' if cost >= 10 else f'{cost:,.2f}'} |"
        for what, amount, cost in made.rows
    ]
    return "\n".join(lines)


def replaced(given: dict[str, Input], settings: list[str]) -> dict[str, Input]:
    """With those of `NAME=VALUE`. ValueError names what there is."""
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in given:
            raise ValueError(f"--set {setting}: no such number; there are {', '.join(given)}")
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"--set {setting}: expected NAME=NUMBER") from None
        given = given | {name: Input(value, given[name].unit, "given by --set")}
    return given


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args(argv)
    try:
        given = replaced(inputs(), args.set)
    except ValueError as e:
        parser.error(str(e))
    print(as_text(args.images, given, size(args.images, args.gpus, given)))


if __name__ == "__main__":
    main()
