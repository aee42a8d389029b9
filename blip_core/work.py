"""Unfinished work: kept in a folder named by all that decides its result, so that a rerun goes on and a changed input starts afresh."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from blip_core.captions import write_manifest


def run_folder(work: Path, name: str, **identity) -> Path:
    """`work`/name-<hash of identity>. Values of identity are what json can write, or have a telling str()."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return work / f"{name}-{digest}"


def publish(staged: Path, out: Path, **facts) -> None:
    """Seal a folder of finished tables and give it its final name; an older folder of that name is replaced."""
    write_manifest(staged, **facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        shutil.rmtree(out)
    os.replace(staged, out)
