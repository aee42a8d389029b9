"""Sealed folders: whole when manifest.json, written last, names every file with its bytes and sha256."""

import hashlib
import json
from pathlib import Path
from typing import Any

from blip_core.files.content import sha256_file, write_json
from blip_core.tables.stopped import require_made


def write_manifest(folder: Path, **facts: Any) -> dict[str, Any]:
    """Seal a folder: list its Parquet and tar files with size and sha256. `facts` are kept beside (counts, parents)."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".parquet", ".tar") and not p.name.startswith("_tmp."))
    listed = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}
    manifest = {**facts, "files": listed}
    write_json(manifest, folder / "manifest.json")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder. ValueError when it is missing or a listed file is missing or has another size."""
    path = folder / "manifest.json"
    require_made(folder)
    if not path.exists():
        raise ValueError(f"{path}: no manifest, so {folder} is unfinished; run the stage that makes it")
    manifest = json.loads(path.read_text())
    for name, listed in manifest["files"].items():
        file = folder / name
        size = file.stat().st_size if file.exists() else None
        if size != listed["bytes"]:
            raise ValueError(f"{file}: expected {listed['bytes']} bytes by the manifest, got {size}; run the stage that makes it again")
    return manifest


def read_makers(folder: Path) -> dict[str, str]:
    """Who wrote and judged the texts of a sealed folder, in words, by content hash; empty of an ingested one."""
    return read_manifest(folder).get("makers", {})


def content_hash(folder: Path) -> str:
    """Identity of a sealed folder by what its files hold now, not by what the manifest says they held."""
    return _identity({name: sha256_file(folder / name) for name in read_manifest(folder)["files"]})


def listed_hash(folder: Path) -> str:
    """The same by the manifest alone: for who has just compared the files with it."""
    return _identity({name: listed["sha256"] for name, listed in read_manifest(folder)["files"].items()})


def _identity(sha256: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {sha256[name]}\n" for name in sorted(sha256)).encode()).hexdigest()
