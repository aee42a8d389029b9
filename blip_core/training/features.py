"""What a frozen image encoder makes of the pictures of a training: computed with each batch, or once, and read from disk from then on.

A cache is a folder with one file for each shard, named by all that decides its content: the shard's bytes, the encoder, the size of the
pictures, the precision. Each appears by rename; what no training asks for any more makes room, the oldest first.

N image tokens, W width of the encoder.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from blip_core.compute.distributed import device, every, rank, world_size
from blip_core.compute.pixels import load_pixels, normalize, read_picture
from blip_core.compute.precision import autocast, resolved
from blip_core.config.model import FeatureConfig
from blip_core.config.training import AugmentConfig
from blip_core.files.atomic import new_file
from blip_core.tables.manifest import read_manifest
from blip_core.tables.shards import ShardImages, index_path, read_index
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Picked, RowBatches, Rows, pair_fields, read_views
from blip_core.training.step import FeatureBatch
from blip_core.weights.encoders import Encoder

log = logging.getLogger(__name__)
_AT_ONCE = 32  # pictures
PLAIN = AugmentConfig(crop=(1.0, 1.0), shift=0, brightness=0.0, flip=False, randaugment=None)


@dataclass(frozen=True)
class Frozen:
    """An encoder at a precision; its features have that precision, cached or not."""

    encoder: Encoder
    precision: str

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels to B x N x W."""
        with autocast(self.precision):
            return self.encoder(pixels_B3HW).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if resolved(self.precision) == "bf16" else torch.float32

    @property
    def identity(self) -> str:
        return f"{self.encoder.identity} {self.encoder.image_size} {self.dtype}"


class FeatureCache:
    """The features of all pictures of some shards. Pickles without its open files, so any loading process may use it."""

    def __init__(self, images: ShardImages, shards: list[str], frozen: Frozen, cfg: FeatureConfig):
        """Fill what is missing, each process its part. ValueError when the whole does not fit into cfg.max_gib."""
        assert cfg.cache is not None
        self.folder = cfg.cache
        self._open: dict[str, Any] = {}  # parts of files, by shard
        listed = read_manifest(images.folder)["files"]
        names = {shard: hashlib.sha256(f"{listed[f'{shard}.tar']['sha256']} {frozen.identity}".encode()).hexdigest() for shard in shards}
        self.paths = {shard: self.folder / f"{name}.safetensors" for shard, name in names.items()}
        self._keys = {shard: {k: i for i, k in enumerate(_keys(images, shard))} for shard in shards}
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            self._make_room(frozen, cfg.max_gib)
        every(None)  # the others wait
        for shard in sorted(shards)[rank() :: world_size()]:
            if not self.paths[shard].exists():
                self._fill(images, shard, frozen)
        every(None)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def read(self, shards: list[str], keys: list[str]) -> Tensor:
        """Of so many pictures: B x N x W."""
        places = [(self._features(shard), self._keys[shard][key]) for shard, key in zip(shards, keys, strict=True)]
        return torch.cat([features[place : place + 1] for features, place in places])

    def _features(self, shard: str) -> Any:
        if shard not in self._open:
            self._open[shard] = safe_open(self.paths[shard], "pt").get_slice("features")  # type: ignore[no-untyped-call]
        return self._open[shard]

    def _make_room(self, frozen: Frozen, max_gib: float) -> None:
        size = frozen.encoder.image_size
        one = frozen(torch.zeros(1, 3, size, size, device=device()))
        num = sum(map(len, self._keys.values()))
        needed = num * one.nbytes
        most = max_gib * 2**30
        if needed > most:
            raise ValueError(
                f"features of {num} pictures, {one.nbytes / 2**20:.3g} MiB each, take {needed / 2**30:.3g} GiB, but features.max_gib "
                f"is {max_gib:g}: raise it, or set features.cache to null, which computes them with each batch"
            )
        others = [p for p in self.folder.glob("*.safetensors") if p not in self.paths.values()]
        left = needed + sum(p.stat().st_size for p in others)
        for path in sorted(others, key=lambda p: p.stat().st_mtime):
            if left > most:
                log.info("%s: dropped, to keep the features within %g GiB", path, max_gib)
                left -= path.stat().st_size
                path.unlink()

    def _fill(self, images: ShardImages, shard: str, frozen: Frozen) -> None:
        keys, found = list(self._keys[shard]), []
        for start in range(0, len(keys), _AT_ONCE):
            pictures = [read_picture(images, shard, key) for key in keys[start : start + _AT_ONCE]]
            found.append(frozen(load_pixels(pictures, frozen.encoder.image_size)).cpu())
        with new_file(self.paths[shard]) as temporary:
            save_file({"features": torch.cat(found)}, temporary)
        log.info("features of the %d pictures of %s: %s", len(keys), shard, self.paths[shard])


class FeatureBatches(RowBatches):
    """Batches with features in place of pixels. `batch` makes one of the features, the keys and the texts."""

    def __init__(self, rows: Rows, images: ShardImages, frozen: Frozen, features: FeatureConfig, **options: Any):
        """`options` are those of RowBatches. ValueError when a cache is wanted and the pictures are to vary."""
        super().__init__(rows, images, **options)
        self.frozen, self.cache = frozen, None
        if features.cache is not None:
            if self.cfg.augment != PLAIN:
                raise ValueError(
                    f"features.cache holds one view of a picture, but optim.augment asks for others ({self.cfg.augment}): set crop [1, 1], "
                    "shift 0, brightness 0, flip false, randaugment null, or features.cache null"
                )
            self.cache = FeatureCache(images, rows.shard.dictionary.to_pylist(), frozen, features)

    def read(self, place: int) -> Any:
        """Without a cache its features are pixels yet, in [0, 255]."""
        picked = self.picked(place)
        shards, keys, texts = self.rows.at(picked.rows)
        size, views = self.frozen.encoder.image_size, self.cfg.augment
        seen = self.cache.read(shards, keys) if self.cache else read_views(self.images, shards, keys, picked.draws, size=size, cfg=views)
        return self.batch(seen, picked, keys, texts)

    def batch(self, seen: Tensor, picked: Picked, keys: list[str], texts: list[str]) -> Any:
        raise NotImplementedError

    def finish(self, batch: Any) -> Any:
        batch = batch.to(device())
        return batch if self.cache else replace(batch, features=self.frozen(normalize(batch.features)))


class QueryBatches(FeatureBatches):
    """Of stage 1."""

    def __init__(self, *args: Any, tokenizer: Tokenizer, prompt: str, **options: Any):
        super().__init__(*args, **options)
        self.tokenizer, self.prompt = tokenizer, prompt

    def batch(self, seen: Tensor, picked: Picked, keys: list[str], texts: list[str]) -> FeatureBatch:
        fields = pair_fields(self.rows, picked, texts, self.tokenizer, prompt=self.prompt, max_tokens=self.cfg.max_tokens)
        return FeatureBatch(features=seen, keys=tuple(keys), **fields)


def _keys(images: ShardImages, shard: str) -> list[str]:
    return read_index(index_path(images.folder, shard))["key"].to_pylist()
