"""Pictures per second of `blip fetch` on one core, against img2dataset.

    python -m venv I2D && I2D/bin/pip install img2dataset
    python benchmarks/speed/fetch.py --peer I2D/bin/python [--rows N] [--runs N]

Without `--peer` ours alone is measured. Each side is its whole command, start included, in processes that share one core. A server in a
process of its own, on the other cores, answers behind a delay. The list names HOSTS hosts (127.0.0.x), so ours runs by its defaults: it
reads each one's robots.txt and has at most 8 requests there. Both have 256 requests at once, make a picture smaller than 512 pixels at
the shorter side only where it is larger, at quality 95, and leave the bytes of the others; ours cuts metadata out of them besides, and
keeps each outcome on the disk before the next. Nothing fails, as img2dataset tries no row again. Writes benchmarks/results/fetch.json.
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import simplejpeg
from data_path import picture
from PIL import Image
from side_by_side import ROOT, alternate, compared, show, write

SIZES = ((500, 375), (1024, 768))
DELAYS = (0.0, 0.5)  # seconds until an answer begins
KINDS, HOSTS, SHORT_SIDE, QUALITY = 40, 100, 512, 95
THEIRS = "img2dataset"


def run_server(pictures: list[bytes], delay: float, pipe: Connection) -> None:
    """Tells its port, and answers until it is ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection: one request after the other, for as long as the client keeps it."""
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(None, 2)[1]
                await asyncio.sleep(delay)
                at = path.strip(b"/").removesuffix(b".jpg")
                status, body = (b"200 OK", pictures[int(at) % len(pictures)]) if at.isdigit() else (b"404 Not Found", b"")
                writer.write(b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "0.0.0.0", 0, backlog=1024)  # 127.0.0.1 to .100
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def make_pictures(width: int, height: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [simplejpeg.encode_jpeg(picture(rng, width, height), quality=85, colorsubsampling="420") for _ in range(KINDS)]


def write_list(file: Path, rows: int, port: int) -> None:
    urls = (f"http://127.0.0.{1 + i % HOSTS}:{port}/{i}.jpg,text {i}\n" for i in range(rows))
    file.write_text("url,caption\n" + "".join(urls))


def commands(listing: Path, folder: Path, peer: Path | None) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "blip_core", "fetch", listing, "--out", folder / "ours", "--allow-private"]
    theirs = [peer, "-c", "from img2dataset import main; main()", "--url_list", listing, "--output_folder", folder / THEIRS]
    values = {"input_format": "csv", "url_col": "url", "caption_col": "caption", "output_format": "webdataset", "processes_count": 1}
    values |= {"thread_count": 256, "image_size": SHORT_SIDE, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    values |= {"skip_reencode": True, "encode_quality": QUALITY, "enable_wandb": False}
    theirs += [word for name, value in values.items() for word in (f"--{name}", value)]
    return {name: list(map(str, words)) for name, words in {THEIRS: theirs, "ours": ours}.items() if peer or name == "ours"}


def on_one_core(words: list[str], out: Path) -> None:
    """The command anew. ValueError where it fails."""
    shutil.rmtree(out, ignore_errors=True)
    core = min(os.sched_getaffinity(0))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(["taskset", "-c", str(core), *words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")


def check(outs: list[Path], rows: int, short_side: int) -> None:
    """Both have all pictures, and of the same sizes; ValueError otherwise."""
    for out in outs:
        sizes = [size for tar in out.glob("*.tar") for size in sizes_of(tar)]
        if len(sizes) != rows or {min(size) for size in sizes} != {short_side}:
            raise ValueError(f"{out}: {len(sizes)} pictures of {sorted(set(sizes))}; expected {rows}, of {short_side} at the shorter side")


def sizes_of(tar: Path) -> list[tuple[int, int]]:
    with tarfile.open(tar) as archive:
        return [Image.open(io.BytesIO(archive.extractfile(m).read())).size for m in archive if m.name.endswith(".jpg")]


def measure(width: int, height: int, delay: float, args: argparse.Namespace) -> list[dict]:
    """A row for each side."""
    away, here = multiprocessing.Pipe()
    server = multiprocessing.Process(target=run_server, args=(make_pictures(width, height), delay, here), daemon=True)
    server.start()
    others = os.sched_getaffinity(0) - {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(server.pid, others or {0})
    with tempfile.TemporaryDirectory() as folder:
        write_list(listing := Path(folder) / "list.csv", args.rows, away.recv())
        words = commands(listing, Path(folder), args.peer)
        sides: dict[str, Callable[[], object]] = {n: lambda n=n: on_one_core(words[n], Path(folder) / n) for n in words}
        rows = compared(alternate(sides, runs=args.runs, warmup=0), theirs=next(iter(sides)))
        check([Path(folder) / name for name in words], args.rows, min(height, SHORT_SIDE))
    server.terminate()
    server.join()
    for row in rows:
        row["pictures_per_second"] = round(args.rows / row["wall_seconds"][0], 1)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", type=Path, help="python of an environment that has img2dataset")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    tables = []
    for width, height in SIZES:
        for delay in DELAYS:
            rows = measure(width, height, delay, args)
            show(f"{width} x {height}, answers behind {delay:g} s, {args.rows} rows", rows, items=args.rows, unit="pictures")
            tables.append({"pictures": f"{width} x {height}", "delay_seconds": delay, "rows": rows})
    print(write("fetch", {"rows": args.rows, "hosts": HOSTS, "peer": version(args.peer), "tables": tables}))


def version(peer: Path | None) -> str | None:
    asked = "from importlib.metadata import version as v; print('img2dataset', v('img2dataset'), 'numpy', v('numpy'))"
    return subprocess.run([peer, "-c", asked], capture_output=True, text=True, check=True).stdout.strip() if peer else None


if __name__ == "__main__":
    main()
