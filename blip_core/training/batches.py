"""From a generation of captions and its shards to batches of tensors.

The samples of a step are a pure function of (rows, seed, step): any number of workers or processes sees the same order, and
a resumed run goes on exactly where it stopped. No loader holds state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from blip_core.compute.distributed import device, rank, world_size
from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import normalize, read_picture
from blip_core.config.training import AugmentConfig, OptimConfig
from blip_core.files.content import hash64
from blip_core.runtime.cores import loading_workers
from blip_core.tables.captions import WRITTEN, each_table, kept
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.augment import augment, draw_numbers
from blip_core.training.step import Batch, MicroBatch, PixelBatch

AnyBatch = TypeVar("AnyBatch", bound=PixelBatch)


@dataclass(frozen=True)
class Rows:
    """The texts that a training may use, and which of them come from which source.

    Arrow arrays and no lists: a quarter of the memory, and loading processes share it (reading a Python string writes its count).
    """

    shard: pa.Array
    key: pa.Array
    text: pa.Array
    image_id: np.ndarray  # int64 hashes
    by_source: dict[str, np.ndarray]  # indices of rows

    @classmethod
    def of(cls, generation: Path, sources: list[str]) -> "Rows":
        """Kept rows of a generation. ValueError when a source is unknown to it or none is left."""
        tables = each_table(generation, ["key", "image_id", "text", "source", "reason"])
        table = pa.concat_tables(t.filter(pc.is_in(t["source"], pa.array(sources))) for t in map(kept, tables))
        if not table.num_rows:
            raise ValueError(f"{generation}: no kept text of the sources {sources}")
        hashes = (hash64(i) for chunk in table["image_id"].chunks for i in chunk.to_pylist())
        places = {s: np.flatnonzero(pc.equal(table["source"], s).to_numpy()) for s in sources}
        return cls(
            table["shard"].dictionary_encode().combine_chunks(),
            # offsets of 32 bits end at 2 GiB of text
            table["key"].cast(pa.large_string()).combine_chunks(),
            table["text"].cast(pa.large_string()).combine_chunks(),
            np.fromiter(hashes, np.int64, count=table.num_rows),
            {s: rows for s, rows in places.items() if len(rows)},
        )

    def at(self, picked: np.ndarray) -> tuple[list[str], list[str], list[str]]:
        """Shards, keys and texts of some rows."""
        shard, key, text = (column.take(pa.array(picked)).to_pylist() for column in (self.shard, self.key, self.text))
        return shard, key, text


def batch_shares(rows: Rows, *, human: float, synthetic: float) -> dict[str, float]:
    """Share of each source in a batch; synthetic and fused texts share theirs by their numbers.

    A source that the rows lack leaves its share to the others of the crawl, then to all."""
    written = {s: len(rows.by_source[s]) for s in WRITTEN if s in rows.by_source}
    crawl = {"web": (1 - human) * (1 - synthetic)} if "web" in rows.by_source else {}
    crawl |= {s: (1 - human) * synthetic * (num / sum(written.values())) for s, num in written.items()}
    if "human" not in rows.by_source:
        human = 0.0
    total = sum(crawl.values())
    shares = {s: share / total * (1 - human) for s, share in crawl.items()} if total else {}
    if human or not shares:
        shares["human"] = 1 - sum(shares.values())
    return shares


Orders = dict[tuple[str, int], np.ndarray]  # by source and pass


def pick(rows: Rows, shares: dict[str, float], *, step: int, batch_size: int, seed: int, orders: Orders | None = None) -> np.ndarray:
    """Row indices of a global batch. Each source is walked through in its own order, shuffled anew at every pass.

    `orders` keeps the current orders between calls: shuffling millions of rows takes a good part of a second.
    """
    orders = {} if orders is None else orders
    bounds = np.round(np.cumsum([0.0, *shares.values()]) * batch_size).astype(int)
    parts = []
    for source, count in zip(shares, np.diff(bounds), strict=True):
        pool = rows.by_source[source]
        places = np.arange(step * count, (step + 1) * count)
        for epoch in np.unique(places // len(pool)):
            if (source, epoch) not in orders:
                orders[source, epoch] = np.random.default_rng([seed, hash64(source) & 0xFFFFFFFF, int(epoch)]).permutation(pool)
                orders.pop((source, epoch - 2), None)
            parts.append(orders[source, epoch][places[places // len(pool) == epoch] % len(pool)])
    return np.random.default_rng([seed, step]).permutation(np.concatenate(parts))


class Picked(NamedTuple):
    """What a micro-batch is made of."""

    rows: np.ndarray  # of this process's part
    places: np.ndarray  # of each in the step's batch: what a row draws follows from (seed, step, place)
    draws: np.ndarray  # for `augment`, a line of numbers a row
    about: dict[str, Any]  # the fields that every micro-batch has, but for the keys


class RowBatches:
    """Training batches of this process: cfg.accumulate micro-batches for each step. `read` makes one.

    Micro-batch p of a step holds the p-th block of its rows, and each process the block's part that its rank says: the pairs
    that meet in a micro-batch are the same for any number of processes.
    """

    def __init__(self, rows: Rows, images: ShardImages, *, shares: dict[str, float], cfg: OptimConfig, seed: int):
        self.rows, self.images, self.shares, self.cfg, self.seed = rows, images, shares, cfg, seed
        self.rank, self.world_size = rank(), world_size()
        self._orders: Orders = {}
        if cfg.batch_size % (self.world_size * cfg.accumulate) or cfg.batch_size < 2 * cfg.accumulate:
            raise ValueError(
                f"batch_size {cfg.batch_size} does not divide into {cfg.accumulate} micro-batches of two images or more, each shared out "
                f"among {self.world_size} processes; take a multiple of {cfg.accumulate * self.world_size}"
            )

    def __len__(self) -> int:
        return self.cfg.steps * self.cfg.accumulate

    def __getitem__(self, place: int) -> MicroBatch:
        return self.finish(self.read(place))

    def read(self, place: int) -> Any:
        """Micro-batch `place`; what a loading process hands over."""
        raise NotImplementedError

    def finish(self, batch: Any) -> Any:
        """On this process's device."""
        return batch.to(device())

    def picked(self, place: int) -> Picked:
        step, part = divmod(place, self.cfg.accumulate)
        size = self.cfg.batch_size // (self.world_size * self.cfg.accumulate)
        own = slice((part * self.world_size + self.rank) * size, (part * self.world_size + self.rank + 1) * size)
        rows = pick(self.rows, self.shares, step=step, batch_size=self.cfg.batch_size, seed=self.seed, orders=self._orders)
        draws = draw_numbers(self.cfg.augment, count=self.cfg.batch_size, seed=self.seed, step=step)
        about = {"step": step, "progress": step / self.cfg.steps, "seed": self.seed, "part": part, "parts": self.cfg.accumulate}
        return Picked(rows[own], np.arange(len(rows))[own], draws[own], about)

    def loader(self, start: int) -> Iterator[Any]:
        """Micro-batches from step `start` to the last, on this process's device, read ahead by cfg.workers processes."""
        places = range(start * self.cfg.accumulate, len(self))
        workers = loading_workers(threads=self.cfg.threads) if self.cfg.workers is None else self.cfg.workers
        # any sequence will do for the places
        loader: DataLoader[MicroBatch] = DataLoader(places, batch_size=None, collate_fn=self.read, num_workers=workers)  # type: ignore[arg-type]
        yield from map(self.finish, loader)


class Batches(RowBatches):
    """Pictures and texts as MED takes them."""

    def __init__(self, rows: Rows, images: ShardImages, tokenizer: Tokenizer, *, image_size: int, prompt: str, **options: Any):
        """`options` are those of RowBatches."""
        super().__init__(rows, images, **options)
        self.tokenizer, self.image_size, self.prompt = tokenizer, image_size, prompt

    def read(self, place: int) -> Batch:
        """Its pixels are in [0, 255] yet, so bytes where they can be, a quarter of what they are normalised."""
        picked = self.picked(place)
        shards, keys, texts = self.rows.at(picked.rows)
        pixels = read_views(self.images, shards, keys, picked.draws, size=self.image_size, cfg=self.cfg.augment)
        fields = pair_fields(self.rows, picked, texts, self.tokenizer, prompt=self.prompt, max_tokens=self.cfg.max_tokens)
        return Batch(pixels=pixels, keys=tuple(keys), **fields)

    def finish(self, batch: Batch) -> Batch:
        return finished(batch)


def read_views(images: ShardImages, shards: list[str], keys: list[str], draws: np.ndarray, *, size: int, cfg: AugmentConfig) -> Tensor:
    """A training view of each picture: B x 3 x size x size in [0, 255], as `augment`."""
    kind = np.float32 if cfg.brightness else np.uint8
    pixels = torch.from_numpy(np.empty((len(keys), size, size, 3), kind)).permute(0, 3, 1, 2)
    for view, shard, key, draw in zip(pixels, shards, keys, draws, strict=True):
        view.copy_(augment(read_picture(images, shard, key), size, cfg, draw))
    return pixels


def pair_fields(rows: Rows, picked: Picked, texts: list[str], tokenizer: Tokenizer, *, prompt: str, max_tokens: int) -> dict[str, Any]:
    """All fields of a TextBatch but the keys."""
    texts = [prompt + text for text in texts]
    ids, mask = tokenize(tokenizer, texts, max_tokens=max_tokens)
    return {
        "ids": ids,
        "mask": mask,
        "prompt_tokens": len(tokenizer.encode_prompt(prompt)) - 1,
        "image_ids": torch.from_numpy(rows.image_id[picked.rows]),
        "text_ids": torch.tensor([hash64(t) for t in texts]),
        **picked.about,
    }


def finished(batch: AnyBatch) -> AnyBatch:
    """On this process's device, normalised there."""
    return replace(batch, pixels=normalize(batch.pixels.to(device()))).to(device())
