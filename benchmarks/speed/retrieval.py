"""Retrieval among thousands of images and texts: time and peak memory, by blocks and by the dense matrix; and of the whole of `evaluate`.

    OMP_NUM_THREADS=1 python benchmarks/speed/retrieval.py [--sizes N,N] [--sides NAME,NAME] [--rerank K]

Five texts an image. `blocks` and `argsort` rank random features of 256 numbers by cosine: the first as `evaluate` does, the second as
public evaluations do, by the whole matrix of which each row and column is sorted. Their recalls must be equal, or nothing is shown.
`evaluate` is the stage on pictures of 32 pixels with a tiny random model: encoding, ITC, ITM of the K best both ways, captions, metrics
with intervals. Each runs in a process of its own. CPU seconds leave out its imports; `start` is what it held when they were done.
Writes benchmarks/results/retrieval.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import growth
import numpy as np
from growth import SIDE, cpu_seconds, peak_mib

from blip_core.evaluation.metrics import image_ranks, recalls, text_ranks

TEXTS, WIDTH = 5, 256
SIDES = ("blocks", "argsort", "evaluate")


def features(num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors in which a text lies near its image, so that recalls are neither 0 nor 1; and each text's image."""
    rng, owner = np.random.default_rng(0), np.repeat(np.arange(num_images), TEXTS)
    images = rng.standard_normal((num_images, WIDTH), np.float32)
    texts = images[owner] + 5.5 * rng.standard_normal((len(owner), WIDTH), np.float32)
    return *(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, texts)), owner


def by_blocks(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    import torch

    from blip_core.evaluation.retrieval import Similarities

    scores = Similarities(torch.from_numpy(images), torch.from_numpy(texts))
    return recalls(text_ranks(scores, owner), "tr") | recalls(image_ranks(scores, owner), "ir")


def by_argsort(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """The place of the best right one in each sorted row, and column."""
    scores, found = images @ texts.T, {}
    for name, by_row, right in (("tr", scores, lambda i: owner == i), ("ir", np.ascontiguousarray(scores.T), lambda t: owner[t])):
        order = np.argsort(by_row, axis=1)[:, ::-1]
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(order.shape[1])[None], axis=1)
        found |= recalls(np.array([places[i, right(i)].min() for i in range(len(by_row))]), name)
    return found


def evaluate_stage(folder: Path, num_images: int, k: int):
    """A call of the stage, its inputs made."""
    from blip_core.config.model import ModelConfig
    from blip_core.stages.evaluate import evaluate
    from blip_core.tables.captions import caption_table, write_table
    from blip_core.tables.manifest import write_manifest
    from blip_core.tables.shards import ShardWriter
    from blip_core.tokenizer.build import build_vocab
    from blip_core.tokenizer.wordpiece import bert_tokenizer
    from blip_core.weights.checkpoint import new_model, save_model

    rng, params, rows = np.random.default_rng(1), growth.settings(), []
    texts = growth.texts(rng, TEXTS * num_images)
    with ShardWriter(folder / "shards", "test", num_images=num_images) as writer:
        for i, jpeg in enumerate(growth.pictures(rng, num_images)):
            writer.add(f"test-{i:06d}", jpeg, image_id=str(i), width=SIDE, height=SIDE)
            own = texts[TEXTS * i : TEXTS * (i + 1)]
            rows += [{"key": f"test-{i:06d}", "image_id": str(i), "text": t, "source": "human", "candidate": n} for n, t in enumerate(own)]
    write_table(caption_table(rows), folder / "heldout/test-00000.parquet")
    for name in ("shards", "heldout"):
        write_manifest(folder / name)
    tokenizer = bert_tokenizer(build_vocab(texts, 500))
    model = new_model(ModelConfig(**params.model.model_dump()), tokenizer, seed=0)
    save_model(model, tokenizer, folder / "model", prompt="", max_tokens=24)
    cfg = params.evaluate.model_copy(update={"rerank": k})
    outs = folder / "out", folder / "metrics.json"
    return lambda: evaluate(folder / "model", folder / "heldout", folder / "shards", *outs, cfg=cfg, seed=0)


def run_one(side: str, num_images: int, k: int, folder: Path) -> dict:
    import torch  # noqa: F401  before the memory at the start is read

    call = {
        "blocks": lambda: by_blocks(*given),
        "argsort": lambda: by_argsort(*given),
        "evaluate": lambda: stage(),
    }[side]
    if side == "evaluate":
        stage = evaluate_stage(folder, num_images, k)
    else:
        import blip_core.evaluation.retrieval  # noqa: F401

        given = features(num_images)
    start, began = peak_mib(), cpu_seconds()
    found = call()
    return {"cpu_seconds": cpu_seconds() - began, "peak_mib": peak_mib(), "start_mib": start, "recalls": found}


def measure(side: str, num_images: int, k: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", side, "--sizes", str(num_images), "--rerank", str(k), "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{side} of {num_images} images failed:\n{done.stderr[-2000:]}")
    return {"side": side, "images": num_images, "texts": TEXTS * num_images, **json.loads(done.stdout.splitlines()[-1])}


def check(rows: list[dict]) -> None:
    """ValueError when two ways find other recalls for the same features."""
    for row in rows:
        for other in rows:
            if row["images"] == other["images"] and row["recalls"] and other["recalls"] and row["recalls"] != other["recalls"]:
                raise ValueError(f"{row['images']} images: {row['side']} finds {row['recalls']}, {other['side']} {other['recalls']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="1000,5000", help="numbers of images")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rerank", type=int, default=16)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [int(n) for n in args.sizes.split(",")]
    if args.one:
        print(json.dumps(run_one(args.one, sizes[0], args.rerank, args.folder)))
        return
    rows = [measure(side, n, args.rerank) for side in args.sides.split(",") for n in sizes]
    check(rows)
    print("| side | images x texts | CPU s | peak MiB | start MiB |\n|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['side']} | {r['images']:,} x {r['texts']:,} | {r['cpu_seconds']:.1f} | {r['peak_mib']:.0f} | {r['start_mib']:.0f} |")
    from side_by_side import write

    print(write("retrieval", {"rerank": args.rerank, "rows": rows}))


if __name__ == "__main__":
    main()
