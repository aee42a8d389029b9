"""Content hashes of folders of others' models."""

from pathlib import Path

from blip_core.files.content import hash_files

_DECIDES = (".json", ".txt", ".safetensors", ".bin", ".model", ".jinja")  # also of adapters, processors and pooling in folders below


def folder_hash(folder: Path) -> str:
    """Content hash of a model of others: of all its files but texts for people."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix in _DECIDES)
    seen = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]  # a download leaves a .cache
    return hash_files(folder, seen)
