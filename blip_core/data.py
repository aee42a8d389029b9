"""From a generation of captions and its shards to batches of tensors.

The samples of a step are a pure function of (rows, seed, step): any number of workers or processes sees the same order, and
a resumed run goes on exactly where it stopped. No loader holds state.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blip_core.captions import kept, read_tables
from blip_core.config import AugmentConfig, OptimConfig
from blip_core.distributed import rank, world_size
from blip_core.images import decode_rgb
from blip_core.objectives import Batch
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer

# of CLIP, as the public BLIP uses
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Rows:
    """The texts that a training may use, and which of them come from which source."""

    shard: list[str]
    key: list[str]
    text: list[str]
    image_id: np.ndarray  # int64 hashes
    by_source: dict[str, np.ndarray]  # indices of rows

    @classmethod
    def of(cls, generation: Path, sources: list[str]) -> "Rows":
        """Kept rows of a generation. ValueError when a source is unknown to it or none is left."""
        table = kept(read_tables(generation, ["key", "image_id", "text", "source", "reason"]))
        table = table.filter(pc.is_in(table["source"], pa.array(sources)))
        if not table.num_rows:
            raise ValueError(f"{generation}: no kept text of the sources {sources}")
        source = np.array(table["source"].to_pylist())
        image_ids = np.array([hash64(i) for i in table["image_id"].to_pylist()], dtype=np.int64)
        by_source = {s: np.flatnonzero(source == s) for s in sources if (source == s).any()}
        return cls(table["shard"].to_pylist(), table["key"].to_pylist(), table["text"].to_pylist(), image_ids, by_source)


def batch_shares(rows: Rows, *, human: float, synthetic: float) -> dict[str, float]:
    """Share of each source in a batch. A source that the rows lack leaves its share to the others of the crawl, then to all."""
    crawl = {"web": (1 - human) * (1 - synthetic), "synthetic": (1 - human) * synthetic}
    crawl = {s: share for s, share in crawl.items() if s in rows.by_source}
    if "human" not in rows.by_source:
        human = 0.0
    total = sum(crawl.values())
    shares = {s: share / total * (1 - human) for s, share in crawl.items()} if total else {}
    if human or not shares:
        shares["human"] = 1 - sum(shares.values())
    return shares


def pick(rows: Rows, shares: dict[str, float], *, step: int, batch_size: int, seed: int, orders: dict | None = None) -> np.ndarray:
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


class Batches(Dataset):
    """Training batches of this process: cfg.accumulate micro-batches for each step.

    Micro-batch p of a step holds the p-th block of its rows, and each process the block's part that its rank says: the pairs
    that meet in a micro-batch are the same for any number of processes.
    """

    def __init__(
        self,
        rows: Rows,
        images: ShardImages,
        tokenizer: Tokenizer,
        *,
        shares: dict[str, float],
        cfg: OptimConfig,
        image_size: int,
        prompt: str,
        seed: int,
    ):
        self.rows, self.images, self.tokenizer, self.shares = rows, images, tokenizer, shares
        self.cfg, self.image_size, self.prompt, self.seed = cfg, image_size, prompt, seed
        self.rank, self.world_size = rank(), world_size()
        self._orders: dict = {}
        if cfg.batch_size % (self.world_size * cfg.accumulate) or cfg.batch_size < 2 * cfg.accumulate:
            raise ValueError(
                f"batch_size {cfg.batch_size} does not divide into {cfg.accumulate} micro-batches of two images or more, each shared out "
                f"among {self.world_size} processes; take a multiple of {cfg.accumulate * self.world_size}"
            )

    def __len__(self) -> int:
        return self.cfg.steps * self.cfg.accumulate

    def __getitem__(self, place: int) -> Batch:
        step, part = divmod(place, self.cfg.accumulate)
        size = self.cfg.batch_size // (self.world_size * self.cfg.accumulate)
        own = slice((part * self.world_size + self.rank) * size, (part * self.world_size + self.rank + 1) * size)
        picked = pick(self.rows, self.shares, step=step, batch_size=self.cfg.batch_size, seed=self.seed, orders=self._orders)[own]
        draws = np.random.default_rng([self.seed, step, 1]).random((self.cfg.batch_size, NUM_DRAWS))[own]
        pixels = [
            augment(decode_rgb(self.images.bytes(self.rows.shard[i], self.rows.key[i])), self.image_size, self.cfg.augment, draw)
            for i, draw in zip(picked, draws, strict=True)
        ]
        texts = [self.prompt + self.rows.text[i] for i in picked]
        ids, mask = tokenize(self.tokenizer, texts, max_tokens=self.cfg.max_tokens)
        return Batch(
            pixels=normalize(torch.stack(pixels)),
            ids=ids,
            mask=mask,
            prompt_tokens=len(self.tokenizer.encode_prompt(self.prompt)) - 1,
            image_ids=torch.from_numpy(self.rows.image_id[picked]),
            text_ids=torch.tensor([hash64(t) for t in texts]),
            step=step,
            progress=step / self.cfg.steps,
            seed=self.seed,
            keys=tuple(self.rows.key[i] for i in picked),
            part=part,
            parts=self.cfg.accumulate,
        )

    def loader(self, start: int) -> Iterator[Batch]:
        """Micro-batches from step `start` to the last, read ahead by cfg.workers processes."""
        places = range(start * self.cfg.accumulate, len(self))
        return iter(DataLoader(self, batch_size=None, sampler=places, num_workers=self.cfg.workers, persistent_workers=False))


NUM_DRAWS = 10  # uniform numbers that `augment` uses for one image


def augment(image_HW3: np.ndarray, size: int, cfg: AugmentConfig, draw: np.ndarray) -> Tensor:
    """A training view: float 3 x size x size in [0, 255]. All randomness comes from `draw`, NUM_DRAWS numbers in [0, 1)."""
    height, width, _ = image_HW3.shape
    top, left, h, w = crop_box(height, width, cfg.crop, draw[:4])
    pixels = resize(image_HW3[top : top + h, left : left + w], size).float()
    if cfg.shift:
        dy, dx = (int(d * (2 * cfg.shift + 1)) for d in draw[4:6])
        padded = F.pad(pixels[None], [cfg.shift] * 4, mode="replicate")[0]
        pixels = padded[:, dy : dy + size, dx : dx + size]
    if cfg.brightness:
        gain = 1 + cfg.brightness * (2 * draw[6] - 1) + 0.5 * cfg.brightness * (2 * draw[7:10] - 1)
        pixels = (pixels * torch.from_numpy(gain).float()[:, None, None]).clamp(0, 255)
    if cfg.flip and draw[9] < 0.5:
        pixels = pixels.flip(2)
    return pixels


def crop_box(height: int, width: int, scale: tuple[float, float], draw: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random resized crop: area share in `scale`, aspect 3/4 to 4/3; [1, 1] is the whole image."""
    if scale == (1.0, 1.0):
        return 0, 0, height, width
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])
    aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * draw[1])
    w = min(width, max(1, round(float(np.sqrt(area * aspect)))))
    h = min(height, max(1, round(float(np.sqrt(area / aspect)))))
    return int(draw[2] * (height - h + 1)), int(draw[3] * (width - w + 1)), h, w


def resize(image_HW3: np.ndarray, size: int) -> Tensor:
    """uint8 3 x size x size, bicubic with antialias; the aspect is not kept, as in the public BLIP."""
    pixels = torch.from_numpy(np.ascontiguousarray(image_HW3)).permute(2, 0, 1)
    if pixels.shape[1:] == (size, size):
        return pixels
    return F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0]


def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] (uint8 or float), ... x 3 x H x W, to what the model takes."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] * 255 for v in (MEAN, STD))
    return (pixels.float() - mean) / std


def load_pixels(images: list[np.ndarray], size: int) -> Tensor:
    """Decoded images as an evaluation sees them: B x 3 x size x size, normalised."""
    return normalize(torch.stack([resize(i, size) for i in images]))


def tokenize(tokenizer: Tokenizer, texts: list[str], *, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded to the longest of the texts: B x T each."""
    encoded = [tokenizer.encode(t, max_tokens=max_tokens) for t in texts]
    length = max(map(len, encoded))
    ids = torch.tensor([e + [tokenizer.pad] * (length - len(e)) for e in encoded])
    return ids, torch.arange(length)[None] < torch.tensor([[len(e)] for e in encoded])


def hash64(text: str) -> int:
    """A signed 64-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
