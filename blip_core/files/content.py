"""What a file holds: its hash, and JSON of which equal values are equal bytes."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip_core.files.atomic import new_file


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def hash_files(folder: Path, names: Iterable[str]) -> str:
    """Of the names and bytes of files below a folder, in this order."""
    return hashlib.sha256("".join(f"{name} {sha256_file(folder / name)}\n" for name in names).encode()).hexdigest()[:16]


def write_json(value: object, path: Path) -> None:
    """Write JSON by rename, keys sorted, so that equal values are equal bytes."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """ValueError names the file and the line when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path}: not valid JSON: {e}") from None


def hash64(text: str) -> int:
    """A signed 64-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
