"""How busy the stage `caption` keeps a server, and what memory it takes for many pictures.

    OMP_NUM_THREADS=1 python benchmarks/speed/endpoint.py [--images N] [--tables N] [--slots N] [--seconds S]

The server is a process of its own that computes nothing: each of its slots takes an answer's time, drawn between half and one and a half
times --seconds, and what comes meanwhile waits. So what it could do is known: slots / seconds. It says which part of its slots' time was
in use, from the first question to the last answer. The stage is the real one, with pictures of 256 pixels, ledger and tables. Peak memory
is that of the stage's process behind each table. Writes benchmarks/results/endpoint-<images>.json.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import simplejpeg
from side_by_side import ROOT, write

from blip_core.capfilt import engine
from blip_core.config.capfilt import CaptionConfig
from blip_core.config.params import load_params
from blip_core.files.content import write_json
from blip_core.stages.caption import caption
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.tables.shards import ShardWriter

SIDE = 256
ANSWER = {
    "model": "m",
    "choices": [{"message": {"content": "a dog on the grass"}, "finish_reason": "stop"}],
    "usage": {"total_tokens": 300},
}


class Server:
    """Slots that take their time."""

    def __init__(self, slots: int, seconds: float):
        self.slots, self.seconds, self.rng = asyncio.Semaphore(slots), seconds, random.Random(0)
        self.used, self.first, self.last = 0.0, 0.0, 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, which the client keeps."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0)
                await reader.readexactly(length)
                body = json.dumps(await self.answer(head)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except asyncio.IncompleteReadError:
            writer.close()

    async def answer(self, head: str) -> dict:
        if head.startswith("GET"):
            return {"data": []}
        async with self.slots:
            start = time.monotonic()
            self.first = self.first or start
            await asyncio.sleep(self.seconds * self.rng.uniform(0.5, 1.5))
            self.last = time.monotonic()
            self.used += self.last - start
        return ANSWER


def run_server(slots: int, seconds: float, pipe: Connection) -> None:
    """Tells its port; at the end the seconds in use and those that passed."""

    async def run() -> None:
        server = Server(slots, seconds)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20)
        pipe.send(listening.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        pipe.send((server.used, server.last - server.first))
        os._exit(0)  # connections that still wait have nothing to say

    asyncio.run(run())


def make_world(folder: Path, tables: int, images: int) -> None:
    """Shards of one picture under many keys, with a web text each."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=85)
    with ShardWriter(folder / "shards", "web", num_images=images) as writer:
        for table in range(tables):
            keys = [f"{table:04d}{i:05d}" for i in range(images)]
            for key in keys:
                writer.add(key, jpeg, image_id=key, width=SIDE, height=SIDE)
            rows = [{"key": key, "image_id": key, "text": "a", "source": "web", "candidate": 0, "reason": "kept"} for key in keys]
            write_table(caption_table(rows), folder / f"generation/web-{table:05d}.parquet")
    for part in ("shards", "generation"):
        write_manifest(folder / part)
    write_json({"passed": True, "generation": content_hash(folder / "generation")}, folder / "gate.json")


def settings(port: int, slots: int) -> CaptionConfig:
    cfg = load_params(ROOT / "params.yaml").caption.model_dump()
    sampler = cfg["writers"][0]["sampler"] | {"min_tokens": 0, "repetition_penalty": 1.0}
    cfg["writers"] = [cfg["writers"][0] | {"captioner": f"openai:http://127.0.0.1:{port}#m", "sampler": sampler}]
    cfg["endpoint"] |= {"in_flight": slots}
    return CaptionConfig(**cfg)


def peak() -> float:
    """MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path, port: int, slots: int) -> list[float]:
    """Peak memory behind each table."""
    peaks, write_out = [], engine.write_table

    def noting(*args: object) -> None:
        write_out(*args)
        peaks.append(round(peak(), 1))

    engine.write_table = noting
    inputs = [folder, folder / "generation", folder / "shards", folder / "gate.json", folder / "captions"]
    caption(*inputs, round="r1", cfg=settings(port, slots), seed=0, work=folder / "work")
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="of a table")
    parser.add_argument("--tables", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.6)
    args = parser.parse_args()
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_server, args=(args.slots, args.seconds, its), daemon=True)
    process.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(folder, args.tables, args.images)
        peaks = measure(folder, ours.recv(), args.slots)
    ours.send("end")
    used, passed = ours.recv()
    images = args.tables * args.images
    found = {**vars(args), "images_in_all": images, "busy": used / (args.slots * passed), "images/s": images / passed, "peaks_mib": peaks}
    print(f"{images} pictures, {images / passed:.0f} a second: slots in use {found['busy']:.1%}; peak {peaks[0]} MiB, then {peaks[-1]} MiB")
    write(f"endpoint-{images}", found)


if __name__ == "__main__":
    main()
