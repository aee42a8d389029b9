"""What the benchmarks of two implementations share: sizes, alternating runs, a table and a JSON file."""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from blip_core.config.model import ModelConfig  # noqa: E402
from blip_core.config.params import load_params  # noqa: E402
from blip_core.model.blip import Blip  # noqa: E402
from blip_core.tokenizer.tokenizer import Tokenizer  # noqa: E402
from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer  # noqa: E402
from blip_core.weights.checkpoint import new_model  # noqa: E402
from blip_core.weights.sizes import INIT  # noqa: E402

SIZES = ("tiny", "vit-b16", "vit-l16")
Times = dict[str, list[tuple[float, float]]]  # per side and run: seconds by the clock, and of CPU


def model_config(size: str, *, image_size: int) -> ModelConfig:
    """Sizes of a model without dropout and stochastic depth, so that two implementations can be compared number by number."""
    cfg = load_params(ROOT / f"configs/{'vit-l16' if size == 'vit-l16' else 'vit-b16'}.yaml").model.model_dump()
    vision, text = {"image_size": image_size, "drop_path": 0.0}, {"dropout": 0.0}
    if size == "tiny":
        vision |= {"patch_size": 16, "width": 48, "depth": 2, "heads": 3}
        text |= {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
    # larger than a training begins with: small weights give all pairs the same score, and sides would agree by chance
    vision, text = cfg["vision"] | vision, cfg["text"] | text
    init = INIT.model_copy(update={"weight": text["width"] ** -0.5})
    return ModelConfig(**{**cfg, "vision": vision, "text": text, "init": init})


def build(size: str, *, image_size: int) -> tuple[Blip, Tokenizer]:
    """A model with random weights and a vocabulary of made-up words, as large as that of BERT but for tiny."""
    num_words = 200 if size == "tiny" else 30522 - len(BERT_TOKENS)
    tokenizer = bert_tokenizer([*BERT_TOKENS, *(f"w{i}" for i in range(num_words))])
    return new_model(model_config(size, image_size=image_size), tokenizer, seed=0), tokenizer


def random_texts(tokenizer: Tokenizer, lengths: list[int], *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random words between [CLS] and [SEP], padded to the longest: ids and mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), tokenizer.pad)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(len(BERT_TOKENS), len(tokenizer.vocab), (length,), generator=generator)
        row[0], row[length - 1] = tokenizer.cls, tokenizer.sep
    return ids, ids != tokenizer.pad


def alternate(sides: dict[str, Callable[[], object]], *, runs: int, warmup: int = 1) -> Times:
    """Seconds of each side, one after the other in every round, so that a busy machine is busy for all of them."""
    times: Times = {name: [] for name in sides}
    for i in range(warmup + runs):
        for name, side in sides.items():
            began, began_cpu = time.perf_counter(), cpu_seconds()
            side()
            if i >= warmup:
                times[name].append((time.perf_counter() - began, cpu_seconds() - began_cpu))
    return times


def cpu_seconds() -> float:
    """Of this process and of those it started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def compared(times: Times, *, theirs: str) -> list[dict]:
    """A row per side: median, least and most seconds, and how many times faster than `theirs`; the same in CPU seconds of all threads.

    The ratio is the median of the ratios of each round, with the least and the greatest of them. CPU seconds leave out what other
    programs took of a shared machine, so with one thread they are the steadier measure.
    """
    rows = []
    for name, runs in times.items():
        row: dict = {"side": name, "runs": len(runs)}
        for i, kind in enumerate(("wall", "cpu")):
            seconds, reference = [r[i] for r in runs], [r[i] for r in times[theirs]]
            row[f"{kind}_seconds"] = spread(seconds)
            row[f"{kind}_times_faster"] = spread([t / s for t, s in zip(reference, seconds, strict=True)])
        rows.append(row)
    return rows


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(v, 5) for v in (statistics.median(values), min(values), max(values))]


def show(title: str, rows: list[dict], *, items: int, unit: str) -> None:
    print(f"\n{title}; median (least - most) of {rows[0]['runs']} runs\n")
    print(f"| side | s | CPU s | {unit} per CPU s | times faster | times faster in CPU s |\n|---|---|---|---|---|---|")
    for row in rows:
        wall, cpu, faster, cpu_faster = (row[k] for k in ("wall_seconds", "cpu_seconds", "wall_times_faster", "cpu_times_faster"))
        rate = f"{items / cpu[0]:.3g}"
        print(f"| {row['side']} | {cell(wall, 3)} | {cell(cpu, 3)} | {rate} | {cell(faster, 2)} | {cell(cpu_faster, 2)} |")


def cell(values: list[float], digits: int) -> str:
    middle, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{middle} ({low} - {high})"


def write(name: str, results: dict) -> Path:
    """benchmarks/results/<name>.json, with the machine and the versions that the numbers belong to."""
    import transformers

    machine = {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} thread(s) used",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path = ROOT / "benchmarks/results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**machine, **results}, indent=1) + "\n")
    return path
