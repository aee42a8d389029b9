"""How fast on a GPU: a pre-training step, captions and ITM scores, and how much of the GPU's arithmetic they use.

    python benchmarks/speed/gpu.py [--size vit-b16|vit-l16|tiny] [--parts step,largest,captions,scores] [--batch 64] [--runs 5]

Runs from a bare checkout with torch, numpy, pydantic and PyYAML; a message names what is missing. Random weights and pixels, no data
loading, no dropout. Every side runs alone, is warmed up, and gives median, least and most of its runs; the device is waited for.

step      one whole step (ITC + ITM + LM forward and backward, clipping, AdamW, momentum update) at --batch images: ours against a plain
          writing of the public one (public_step.py, which pads texts to 30 tokens), in fp32, tf32 and bf16, plain, compiled block by
          block, and captured whole (CUDA graphs); with a momentum twin in fp32 and in bf16. Before, losses must agree: ours with the
          public one's in fp32, each other side of ours with that.
largest   ours in bf16, plain, compiled and captured, at the largest batch that fits into memory, searched by doubling and halving
captions  at 384 pixels, 20 new tokens each: beam search of 3 beams, and 5 captions of each image by nucleus sampling
scores    ITM of 6 texts of 12 tokens with each image at 384 pixels

Utilisation is the work that a step must do (blip_core/preview/plan.py: matrix products, forward once, backward twice, nothing computed
again) by the rate of a large matrix product measured here in the same precision; the vendor's rate is printed beside it. Writes
benchmarks/results/gpu-<size>.json, or --out. `--size tiny --device cpu --eager` shows in seconds that all of it runs: there torch.compile
compiles nothing.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = {"torch": "torch", "numpy": "numpy", "pydantic": "pydantic", "yaml": "pyyaml"}
if missing := [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]:
    sys.exit(f"benchmarks/speed/gpu.py: not installed here: {', '.join(missing)}; pip install {' '.join(missing)}")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # before torch: a search for the largest batch leaves gaps

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_sides as sides  # noqa: E402
from gpu_sides import READ_PIXELS, ROOT, SAMPLES, SIZES, TOKENS, Setting, free, make_step, matmuls  # noqa: E402

from blip_core.preview.plan import cross_flops, keys_values_flops, step_flops, text_flops, vit_flops  # noqa: E402

PARTS = ("step", "largest", "captions", "scores")
TEXTS, TEXT_TOKENS = 6, 12  # of an image that are scored
WARM = 3
# dense bf16 with fp32 sums, FLOP/s, of the vendor's data sheets
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(act: Callable[[int], object], runs: int) -> list[float]:
    """Of one call: median, least and most of the runs. A run has as many calls as take half a second, on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for n in range(WARM):
        wait()
        began = time.perf_counter()
        act(n)
        wait()
    calls = max(1, round(0.5 / (time.perf_counter() - began))) if torch.cuda.is_available() else 1
    times = []
    for run in range(runs):
        began = time.perf_counter()
        for n in range(calls):
            act(WARM + run * calls + n)
        wait()
        times.append((time.perf_counter() - began) / calls)
    return [statistics.median(times), min(times), max(times)]


def largest(fits: Callable[[int], bool], *, first: int, most: int) -> int:
    """The largest count that fits, to an eighth: doubled until one does not, then by halving the gap. 0 when `first` does not fit."""
    good, bad = 0, first
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, most + 1)
    while good and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fits(act: Callable[[], object]) -> bool:
    try:
        act()
        wait()
        return True
    except torch.OutOfMemoryError:
        pass  # outside of the handler nothing holds the tensors of the failed step
    gc.collect()
    torch.cuda.empty_cache()
    return False


def peak(setting: Setting, precision: str) -> float:
    """FLOP/s of a large matrix product on random data."""
    n = 8192 if setting.device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=setting.device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    with matmuls(precision):
        return 2 * n**3 / seconds(lambda _: a @ b, 5)[0]


class Table:
    """Rows that are printed and written as they come: a run that is cut short leaves what it had."""

    def __init__(self, out: Path, about: dict):
        self.out, self.results = out, {**about, "parts": {}}

    def begin(self, part: str, unit: str) -> None:
        self.part, self.unit = part, unit
        self.results["parts"][part] = []
        print(f"\n{part}\n\n| side | images | ms (least - most) | {unit}/s | utilisation | peak GiB |", flush=True)
        print("|---|---|---|---|---|---|", flush=True)

    def add(self, side: str, count: int, times: list[float], *, items: int, flops: float | None = None, rate: float = 1.0) -> None:
        """`flops` of one call, `rate` the measured peak."""
        use = None if flops is None else flops / times[0] / rate
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
        row = {"side": side, "images": count, "seconds": times, f"{self.unit}_per_second": items / times[0]}
        self.results["parts"][self.part].append(row | {"flops": flops, "utilisation": use, "peak_gib": memory})
        ms, low, high = (f"{1000 * t:.2f}" for t in times)
        shown = ["" if v is None else f"{v:{form}}" for v, form in ((use, ".1%"), (memory, ".1f"))]
        print(f"| {side} | {count} | {ms} ({low} - {high}) | {items / times[0]:.4g} | {shown[0]} | {shown[1]} |", flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")


def flops_per_image(setting: Setting) -> float:
    return step_flops(setting.model_config(), "pretrain", tokens=TOKENS, vocabulary=setting.vocabulary)


def time_steps(setting: Setting, table: Table, args: argparse.Namespace, rates: dict[str, float]) -> None:
    names = [*(f"{whose}, {p}" for p in rates for whose in ("public", "ours")), "ours, bf16, bf16 twin"]
    names += ["ours, bf16, compiled", "ours, bf16, captured", "ours, bf16, captured, bf16 twin"]
    table.results["loss_differences"] = sides.check(setting, names, min(8, args.batch))
    print("losses agree:", ", ".join(f"{name} {d:.1e}" for name, d in table.results["loss_differences"].items()))
    table.begin("step", "images")
    for name in names:
        time_step(setting, table, name, args.batch, args.runs, rates)


def time_largest(setting: Setting, table: Table, args: argparse.Namespace, rates: dict[str, float]) -> None:
    table.begin("largest", "images")
    count = largest_batch(setting, first=args.batch)
    for name in ("ours, bf16", "ours, bf16, compiled", "ours, bf16, captured"):
        own = count
        while own > 1 and not time_step(setting, table, name, own, args.runs, rates):  # a compiled one may need more memory
            own -= max(1, own // 16)


def largest_batch(setting: Setting, *, first: int) -> int:
    free()
    step = make_step(setting, "ours, bf16")
    most = 4096 if setting.device.type == "cuda" else 2 * first
    return largest(lambda count: fits(lambda: [step(n, count) for n in range(2)]), first=first, most=most)


def time_step(setting: Setting, table: Table, name: str, count: int, runs: int, rates: dict[str, float]) -> bool:
    """A row of the table; False when the step does not fit into memory."""
    free()
    step = make_step(setting, name)
    done = fits(lambda: [step(n, count) for n in range(2)])
    if done:
        times = seconds(lambda n: step(n + 2, count), runs)
        table.add(name, count, times, items=count, flops=count * flops_per_image(setting), rate=rates[name.split(", ")[1]])
    else:
        print(f"| {name} | {count} | does not fit into memory | | | |", flush=True)
    return done


def time_reading(setting: Setting, table: Table, args: argparse.Namespace, rates: dict[str, float], part: str) -> None:
    table.begin(part, "captions" if part == "captions" else "texts")
    cfg, count = setting.model_config(READ_PIXELS), args.batch
    once = vit_flops(cfg) + keys_values_flops(cfg)
    flops = count * (once + TEXTS * (text_flops(cfg, TEXT_TOKENS, first_only=True) + cross_flops(cfg, TEXT_TOKENS, first_only=True)))
    for precision, compiled in [("fp32", False), ("bf16", False), ("bf16", True)]:
        free()
        name = f"{precision}{', compiled' if compiled else ''}"
        reader = sides.Reader(setting, count, precision=precision, compiled=compiled)
        if part == "scores":
            times = seconds(lambda _, r=reader: r.score(TEXTS, TEXT_TOKENS), args.runs)
            table.add(f"ITM, {name}", count, times, items=count * TEXTS, flops=flops, rate=rates[precision])
        else:
            for search, captions in (("beam", 1), ("nucleus", SAMPLES)):
                times = seconds(lambda _, r=reader, s=search: r.caption(s), args.runs)
                table.add(f"{search}, {name}", count, times, items=count * captions)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="vit-b16")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--batch", type=int, help="images; default: 64 (tiny: 4); a divisor of the queue's 57,600 (tiny: 64)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="torch.compile compiles nothing, which takes minutes; to see that all runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    args.batch = args.batch or (4 if args.size == "tiny" else 64)
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts {','.join(unknown)}; expected some of {','.join(PARTS)}")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # blip_core takes a GPU that it sees
    elif not torch.cuda.is_available():
        parser.error("this torch sees no GPU; --device cpu --size tiny shows that the script runs")
    if args.eager:
        torch.compiler.set_stance("force_eager")
    setting = Setting(args.size, torch.device(args.device))
    if setting.contrast.queue_size % args.batch:
        parser.error(f"--batch {args.batch}; expected a divisor of the queue's {setting.contrast.queue_size}")
    rates = {p: peak(setting, p) for p in ("fp32", "tf32", "bf16")}
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    vendor = next((rate for model, rate in PEAKS.items() if model in name), None)
    about = {"size": args.size, "device": name, "torch": torch.__version__, "python": sys.version.split()[0], "tokens": TOKENS}
    about |= {"runs": args.runs, "measured_flops_per_second": rates, "vendor_bf16_flops_per_second": vendor}
    measured = ", ".join(f"{p} {r / 1e12:.4g}" for p, r in rates.items())
    said = f"; the vendor says {vendor / 1e12:.0f} in bf16" if vendor else ""
    print(f"{name}, torch {torch.__version__}; matrix product, TFLOP/s: {measured}{said}")
    table = Table(args.out or ROOT / "benchmarks/results" / f"gpu-{args.size}.json", about)
    failed = []
    for part in args.parts.split(","):
        act = {"step": time_steps, "largest": time_largest}.get(part, lambda *a, part=part: time_reading(*a, part))
        try:
            act(setting, table, args, rates)
        except (RuntimeError, ValueError) as e:  # time on such a machine is dear: the other parts still run
            failed.append(f"{part}: {type(e).__name__}: {e}")
            print(failed[-1], flush=True)
            free()
    print(f"\n{table.out}")
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main()
