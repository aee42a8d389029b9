"""Files of a part that DVC does not see: behind links, or outside the data folder. DVC tracks a link as a link, whatever changes behind it.

So they are noted in a small file in the data folder, as objects elsewhere are (sources.py): `blip list` writes it, `dvc add` notes it.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip_core.config.intake import IngestConfig, Place
from blip_core.files.content import write_json
from blip_core.intake.sources import PARTS, as_written, identity, is_remote, local_files
from blip_core.intake.walk import below

_WAYS = (
    "`blip list` notes what lies there in {note}, and again whenever it has changed (`dvc add data` then sees it); or have DVC keep the "
    "files themselves: `dvc import-url --to-cache` or a plain copy in place of the link"
)


def note_unseen(data: Path, cfg: IngestConfig) -> list[str]:
    """Note the files of each local part that DVC does not see, where they changed; lines for a person."""
    lines = []
    for part in PARTS:
        place, note = getattr(cfg, part), _note_path(data, part)
        if is_remote(place):
            continue
        if not (why := next(_unseen(data, place), None)):
            lines.append(f"ingest.{part}: {as_written(place)} lies in the data folder, where DVC sees its files; nothing to note")
            continue
        found = _state(data, part, place)
        changed = _noted(note) != found
        if changed:
            write_json(found, note)
        news = "`dvc add data` notes it" if changed else "as before"
        lines.append(f"{note}: {found['files']} files of ingest.{part}, for {why}; {news}")
    return lines


def require_noted(data: Path, cfg: IngestConfig) -> None:
    """ValueError where DVC would not see a change of the files that are about to be read."""
    if data.is_symlink():
        raise ValueError(f"{data} is a link, which DVC can't add: make it a folder, and link what lies in it, as {data}/web")
    for part in PARTS:
        place, note = getattr(cfg, part), _note_path(data, part)
        if is_remote(place) or not (why := next(_unseen(data, place), None)):
            continue
        if _noted(note) != _state(data, part, place):
            state = "is not that of the files as they are now" if note.exists() else "is missing"
            raise ValueError(f"ingest.{part}: {why}, so DVC does not see a change there, and {note} {state}. {_WAYS.format(note=note)}")


def _unseen(data: Path, place: Place) -> Iterator[str]:
    """Why DVC does not see all files of the place; nothing where it does."""
    root = data.resolve()
    for path in filter(Path.exists, local_files(data, place)):
        if not path.resolve().is_relative_to(root):
            yield f"{path} {'is a link' if path.is_symlink() else 'lies outside the data folder'}"
        found = below(path)
        yield from (f"{path / name} is a link" for name in found.linked if not (found.root / name).resolve().is_relative_to(root))


def _state(data: Path, part: str, place: Place) -> dict[str, Any]:
    """What changes when a file does: by name, size and time."""
    digest, num_files = hashlib.sha256(), 0
    for line in identity(data, part, place):
        if line.startswith(f"{_note_path(data, part).name} "):  # a part that is the whole data folder
            continue
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
        num_files += 1
    return {"source": [str(place)] if isinstance(place, str) else list(place), "files": num_files, "sha256": digest.hexdigest()}


def _note_path(data: Path, part: str) -> Path:
    return data / f"{part}.files.json"


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError):
        return None
