"""Pictures of staged shards, and what a model says of them. That is kept, so that another limit, or an ingest of the same pictures, runs
no model."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from blip_core.pictures.images import decode_rgb


def picture(tar: BinaryIO, offset: int, size: int) -> np.ndarray:
    """uint8 [height, width, 3]. Threads may share the open file."""
    return decode_rgb(os.pread(tar.fileno(), size, offset))


def digest(index: pa.Table, asked: str) -> str:
    """By the pictures of a shard's index and by what is asked of them: the model's content hash, and how it is run."""
    found = hashlib.sha256(asked.encode())
    for sha256 in index["sha256"].to_pylist():
        found.update(sha256.encode())
    return found.hexdigest()[:32]


def remove_unused(kept: Path, used: Iterable[Path]) -> None:
    """`kept`: the folder of what models said. What no shard of this run used goes."""
    for path in set(kept.glob("*")) - set(used):
        path.unlink()
