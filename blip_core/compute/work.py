"""Unfinished work: kept in a folder named by all that decides its result, so that a rerun goes on and a changed input starts afresh."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from blip_core.compute.distributed import rank
from blip_core.files.atomic import replace_folder
from blip_core.files.content import write_json
from blip_core.tables.manifest import write_manifest

log = logging.getLogger(__name__)
IDENTITY = "identity.json"
ANSWERS = "answers"  # beside the runs: what was paid for, in a folder of each endpoint, serves other runs too


class Halt(ValueError):
    """Why no table can be made any more; another ValueError is the fault of one of them."""


# keys of OptimConfig that decide when something is written or said, and no number
INDIFFERENT = {"checkpoint_every", "workers", "health", "timeout"}


def run_folder(work: Path, name: str, **identity: Any) -> Path:
    """Where a stage keeps its unfinished work: named by all that decides its result, so that a changed input starts afresh.

    `identity["cfg"]` may hold the settings; the indifferent ones of its `optim` do not count. Says what has changed against an
    unfinished run of the same name.
    """
    identity = json.loads(json.dumps(identity, sort_keys=True, default=str))
    if isinstance(identity.get("cfg"), dict) and "optim" in identity["cfg"]:
        identity["cfg"]["optim"] = {k: v for k, v in identity["cfg"]["optim"].items() if k not in INDIFFERENT}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = work / f"{name}-{digest}"
    if rank() == 0 and not folder.exists():
        _say_what_changed(folder, name, identity)
        write_json(identity, folder / IDENTITY)
    return folder


def _say_what_changed(folder: Path, name: str, identity: dict[str, Any]) -> None:
    others = [p for p in folder.parent.glob(f"{name}-*/{IDENTITY}") if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{16}}", p.parent.name)]
    if others:
        newest = max(others, key=lambda p: p.stat().st_mtime)
        changes = ", ".join(_changes(json.loads(newest.read_text()), identity))
        log.info("%s: config or input changed (%s): starting fresh; the work of before stays in %s", name, changes, newest.parent)


def _changes(old: object, new: object, name: str = "") -> list[str]:
    """The entries in which two nested dicts differ, as `a.b 1 -> 2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [c for k in sorted({*old, *new}) for c in _changes(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name} {old} -> {new}"]


def discard(folder: Path) -> None:
    """Drop what a finished stage no longer needs."""
    shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, out: Path, **facts: Any) -> None:
    """Seal a folder of finished tables and give it its final name; an older folder of that name is replaced."""
    (staged / IDENTITY).unlink(missing_ok=True)
    write_manifest(staged, **facts)
    replace_folder(staged, out)
