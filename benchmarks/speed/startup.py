"""What is paid before any work: the CLI, the imports of each stage, a chain with nothing to do.

    python benchmarks/speed/startup.py [--runs 3] [--workspace PATH]

Seconds by the clock and of CPU, children included; median of the runs, behind one that is not counted. `--workspace` is a folder whose
chain is up to date (default: this one, when it has artifacts): there `dvc repro`, `dvc status` and the flow are timed, all of which
must find nothing to do. Writes benchmarks/results/startup.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from blip_core.stages import STAGES  # noqa: E402

BIN = Path(sys.executable).parent
ENV = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
}
ENV |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false"}
NOTHING = {"dvc repro": "up to date", "dvc status": "up to date", "python -m flows.bootstrap": "0 stages run, 0 restored"}


def cost(command: list[str], *, cwd: Path, says: str = "") -> tuple[float, float]:
    """Seconds by the clock and of CPU of one run. ValueError when it fails, or does not say what it should."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or says not in said:
        raise ValueError(f"{' '.join(command)} in {cwd}: exit code {process.returncode}, expected 0 and {says!r} in:\n{said[-2000:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def measure(command: list[str], *, runs: int, cwd: Path = ROOT, says: str = "") -> dict[str, float]:
    times = [cost(command, cwd=cwd, says=says) for _ in range(runs + 1)][1:]
    return {name: round(statistics.median(t[i] for t in times), 3) for i, name in enumerate(("seconds", "cpu_seconds"))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workspace", type=Path, default=ROOT if (ROOT / "artifacts/report").exists() else None)
    args = parser.parse_args()
    python = [sys.executable]
    rows = {"python": measure([*python, "-c", ""], runs=args.runs)}
    rows |= {f"blip_core {v}": measure([*python, "-m", "blip_core", v], runs=args.runs) for v in ("--help", "params")}
    rows |= {f"import {s}": measure([*python, "-c", f"import blip_core.stages.{s}"], runs=args.runs) for s in STAGES}
    if args.workspace:
        for command, says in NOTHING.items():
            name, *rest = command.split()
            rows[f"{command}, nothing to do"] = measure([str(BIN / name), *rest], runs=args.runs, cwd=args.workspace, says=says)
    else:
        print("no chain that is up to date: `make demo` first, or --workspace, to time dvc and the flow with nothing to do")
    print("| what | s | CPU s |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} |")
    out = ROOT / "benchmarks/results/startup.json"
    out.parent.mkdir(exist_ok=True)
    about = {"machine": f"{os.cpu_count()} {platform.machine()} cores", "python": platform.python_version(), "runs": args.runs}
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
