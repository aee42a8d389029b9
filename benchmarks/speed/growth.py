"""How time and memory of the stages grow with the number of crawled images, by the real stage functions on data made by seed.

    OMP_NUM_THREADS=1 python benchmarks/speed/growth.py [--sizes N,N,..] [--stages NAME,NAME,..] [--models-at-most N] [--folder PATH]

Pictures of 32 pixels, a text each, in tars of ingest.shard_images (so shards grow in number, not in size), beside a clean set that stays
as it is. Each stage runs in a process of its own. `caption` and `score` use a tiny random model and walk one shard after the other; they
are left out above --models-at-most images. `assemble` and `gate` read a table of scores that is written by seed: an untrained captioner
says the same of every picture, which would be no load for them. Almost all texts are different, which is the worst case for counting them.

CPU seconds are those of all threads and processes of the stage, its imports left out; peak memory is that of the largest process, and
`start` what it held when the imports were done. "per further image" is the slope from the size before: a stage that grows as its work
has the same slope everywhere. Writes benchmarks/results/growth.json.
"""

import argparse
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from blip_core.config.model import ModelConfig  # noqa: E402
from blip_core.config.params import Params, load_params  # noqa: E402

STAGES = ("ingest", "validate", "caption", "score", "assemble", "gate", "export", "history", "inspect")
SIDE = 32  # pixels
CLEAN = {"train": 300, "val": 300, "test": 100}
QUIET = {"DO_NOT_TRACK": "true", "GX_ANALYTICS_ENABLED": "false", "HF_HUB_OFFLINE": "1"}
HEAVY = {"validate": ["great_expectations"], "gate": ["great_expectations", "scipy.special"], "ingest": ["tokenizers"]}
SMALL_MODEL = {
    "vision": {"image_size": SIDE, "patch_size": 16, "width": 32, "depth": 1, "heads": 2},
    "text": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64},
}


def settings() -> Params:
    """params.yaml with a tiny model and limits that let random scores pass."""
    params = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    for part, values in SMALL_MODEL.items():
        params["model"][part] |= values
    params["gate"] |= {"max_noise": {"web": 1.0, "synthetic": 1.0}, "max_residual_noise": 1.0, "min_coverage": 0.0, "max_degenerate": 1.0}
    params["validate"] |= {"max_duplicate": 1.0}
    params["ingest"] |= {"vocab_size": 500}  # that the smallest size reaches too: a larger vocabulary makes captions dearer
    return Params(**params)


# --- data by seed


def texts(rng: np.random.Generator, count: int) -> list[str]:
    """Eight to fourteen words each, frequent and rare ones as in a language; one text in a hundred is a common one."""
    places = np.minimum((rng.pareto(0.8, (count, 14)) * 30).astype(int), 19_999)
    lengths = rng.integers(8, 15, count)
    made = [" ".join(f"word{p}" for p in row[:n]) for row, n in zip(places.tolist(), lengths, strict=True)]
    return ["stock photo" if draw < 0.01 else text for text, draw in zip(made, rng.random(count), strict=True)]


def pictures(rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """JPEGs of coarse random squares."""
    import simplejpeg

    for small in rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8):
        large = small.repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)
        yield simplejpeg.encode_jpeg(np.ascontiguousarray(large), quality=90)


def write_tar(path: Path, keys: list[str], captions: list[list[str]], rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, own, jpeg in zip(keys, captions, pictures(rng, len(keys)), strict=True):
            for end, data in (("jpg", jpeg), ("json", json.dumps({"caption": own}).encode())):
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_data(folder: Path, num_images: int, *, shard_images: int) -> None:
    """The crawl in tars, and the clean set with five texts to a picture."""
    for number, start in enumerate(range(0, num_images, shard_images)):
        rng = np.random.default_rng([0, number])
        count = min(shard_images, num_images - start)
        keys = [f"{i:09d}" for i in range(start, start + count)]
        write_tar(folder / "web" / f"{number:05d}.tar", keys, [[text] for text in texts(rng, count)], rng)
    for number, (split, count) in enumerate(CLEAN.items()):
        rng = np.random.default_rng([1, number])
        flat = texts(rng, 5 * count)
        keys = [f"{split[:2]}{i:06d}" for i in range(count)]
        write_tar(folder / "clean" / f"{split}-00000.tar", keys, [flat[5 * i : 5 * i + 5] for i in range(count)], rng)


def write_scores(a: Path) -> None:
    """What `score` would leave: the web text and a synthetic one of each image, and controls, with random scores."""
    import pyarrow as pa

    from blip_core.capfilt.controls import plant
    from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
    from blip_core.tables.captions import CONTROLS, SCHEMA, caption_table, read_table, table_paths, write_table
    from blip_core.tables.heldout import heldout_halves
    from blip_core.tables.manifest import write_manifest

    out = a / "scores"
    for number, path in enumerate(p for p in table_paths(a / "generations/g0") if p.name.startswith("web-")):
        rng, web = np.random.default_rng([2, number]), read_table(path).to_pylist()
        made = {"source": "synthetic", "round": "r1", "model": "captioner", "sampler": "nucleus p=0.9", "seed": 0}
        rows = [r | {"text": t} | made for r, t in zip(web, texts(rng, len(web)), strict=True)]
        scored = [r | dict.fromkeys(("match", "itm", "itc"), float(s)) for r, s in zip(web + rows, rng.random(2 * len(web)), strict=True)]
        table = caption_table([r | {"filter": "filter", "reason": ""} for r in scored])
        write_table(table.sort_by([("key", "ascending"), ("source", "descending")]), out / path.name)
    controls = plant(heldout_halves(a / "heldout")[1], per_image=5, seed=0)
    controls = controls.set_column(SCHEMA.get_field_index("filter"), SCHEMA.field("filter"), pa.array(["filter"] * controls.num_rows))
    passes = np.where(controls["truth"].to_numpy(), 0.9, 0.1) > np.random.default_rng(3).random(controls.num_rows)
    for name in ("match", "itm", "itc"):
        column = pa.array(np.where(passes, 0.95, 0.05))
        controls = controls.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    write_table(controls, out / CONTROLS)
    write_manifest(out)
    write_calibrations([Calibrated("filter", "tuned", Calibration(1.0, 0.0, 0.0), None)], a / "calibration.json", facts={})


def write_models(a: Path, params: Params) -> None:
    """A captioner and a filter of random weights."""
    from blip_core.tokenizer.folders import load_tokenizer
    from blip_core.weights.checkpoint import new_model, save_model

    tokenizer = load_tokenizer(a / "tokenizer.json")
    for name in ("captioner", "filter"):
        save_model(new_model(ModelConfig(**params.model.model_dump()), tokenizer, seed=0), tokenizer, a / name, prompt="", max_tokens=24)


# --- one stage, in a process of its own


def calls(root: Path, params: Params) -> dict[str, Callable[[Callable], object]]:
    """By stage: its call, the function given."""
    a, seed, work = root / "artifacts", params.seed, root / "work"
    g0, g1, shards, heldout, scores = a / "generations/g0", a / "generations/g1", a / "shards", a / "heldout", a / "scores"
    outs = (shards, g0, heldout, a / "metadata", a / "tokenizer.json", a / "quarantine.parquet", a / "metrics/ingest.json")
    gates, docs, metrics = a / "gates", a / "docs", a / "metrics"
    cfg = params.section
    shared = {"seed": seed, "work": work}
    return {
        "ingest": lambda f: f(root / "data", *outs, cfg=cfg("ingest"), work=work),
        "validate": lambda f: f(
            *(g0, heldout, shards, gates / "g0.json", a / "decisions/g0.json", metrics / "v.json", docs / "v"),
            **{"cfg": cfg("validate"), "gate_cfg": cfg("gate"), "score_cfg": cfg("score")},
        ),
        "caption": lambda f: f(a / "captioner", g0, shards, gates / "g0.json", a / "captions", round="r1", cfg=cfg("caption"), **shared),
        "score": lambda f: f(a / "filter", g0, a / "captions", shards, heldout, a / "scored", cfg=cfg("score"), **shared),
        "assemble": lambda f: f(g0, scores, a / "calibration.json", g1, metrics / "a.json", cfg=cfg("assemble")),
        "gate": lambda f: f(
            g1,
            scores,
            a / "calibration.json",
            shards,
            gates / "g1.json",
            metrics / "g.json",
            docs / "g",
            cfg=cfg("gate"),
            assemble_cfg=cfg("assemble"),
        ),
        "export": lambda f: f(g1, root / "exported", form="parquet"),
        "history": lambda f: f("web-00000-000000000", a),
        "inspect": lambda f: f(root / "data/web", cfg=cfg("ingest"), limit=0),
    }


def run_one(stage: str, root: Path) -> dict[str, float]:
    """Seconds and memory of one stage in this process."""
    place = {"export": "blip_core.export.data", "history": "blip_core.explain.history", "inspect": "blip_core.preview.inspect"}
    module = importlib.import_module(place.get(stage, f"blip_core.stages.{stage}"))
    for name in HEAVY.get(stage, []):
        importlib.import_module(name)
    call = calls(root, settings())[stage]
    start, began = peak_mib(), cpu_seconds()
    call(getattr(module, stage))
    return {"cpu_seconds": cpu_seconds() - began, "peak_mib": peak_mib(), "start_mib": start}


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_mib() -> float:
    """Of this process since it began, or of its largest child. A process's own ru_maxrss would hold its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


# --- all of them


def measure(stage: str, root: Path) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", stage, "--folder", str(root)]
    done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{stage} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_size(num_images: int, root: Path, stages: list[str], *, models_at_most: int) -> dict[str, dict[str, float]]:
    """By stage. Those that others need run in any case."""
    params, a, found = settings(), root / "artifacts", {}
    write_data(root / "data", num_images, shard_images=params.ingest.shard_images)
    for stage in STAGES:
        models = stage in ("caption", "score")
        needed = stage in ("ingest", "validate") or (stage == "assemble" and {"gate", "export", "history"} & set(stages))
        if (models and num_images > models_at_most) or (
            stage not in stages and not needed and not (stage == "caption" and "score" in stages)
        ):
            continue
        if stage == "caption":
            write_models(a, params)
        if stage == "assemble":
            write_scores(a)
        found[stage] = measure(stage, root)
        print(f"{num_images} {stage}: {found[stage]}", file=sys.stderr, flush=True)
    return {stage: found[stage] for stage in stages if stage in found}


def table(results: dict[int, dict[str, dict[str, float]]]) -> list[dict]:
    """A row for each stage and size."""
    rows = []
    for stage in STAGES:
        before = None
        for size in sorted(results):
            if stage in results[size]:
                row = {"stage": stage, "images": size, **results[size][stage]}
                row["us_per_image"] = row["cpu_seconds"] / size * 1e6
                more = before and (row["cpu_seconds"] - before["cpu_seconds"]) / (size - before["images"])
                rows.append(row | {"us_per_further": more and more * 1e6})
                before = row
    return rows


def show(rows: list[dict]) -> None:
    print("| stage | images | CPU s | µs per image | µs per further image | peak MiB | start MiB |\n|---|---|---|---|---|---|---|")
    for r in rows:
        slope = "" if r["us_per_further"] is None else f"{r['us_per_further']:.0f}"
        numbers = f"{r['cpu_seconds']:.1f} | {r['us_per_image']:.0f} | {slope} | {r['peak_mib']:.0f} | {r['start_mib']:.0f}"
        print(f"| {r['stage']} | {r['images']:,} | {numbers} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--models-at-most", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the data is made, and left; default: a temporary folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.folder)))
        return
    results = {}
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            root = args.folder / str(size) if args.folder else Path(temporary)
            results[size] = measure_size(size, root, args.stages.split(","), models_at_most=args.models_at_most)
    rows = table(results)
    show(rows)
    from side_by_side import write

    print(write("growth", {"models_at_most": args.models_at_most, "rows": rows}))


if __name__ == "__main__":
    main()
