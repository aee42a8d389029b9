"""What was not made because the rounds stopped before it: a placeholder stands in its place and says why.

DVC knows the whole graph beforehand, so a stage of a round that is not run still leaves every output. `blip STAGE` does
so where an input is a placeholder itself, or the decision to go on says no; a reader that meets one says the reason.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from blip_core.files.atomic import new_file, new_folder

if TYPE_CHECKING:
    from blip_core.config.params import Params

KEY = "stopped"  # in a JSON file: the reason
FILE = "stopped.json"  # in a folder
HEADER = "step,loss\n"  # of a training's history: columns that dvc.yaml plots


def stopped(path: Path) -> str | None:
    """Why the rounds stopped before this file or folder; None where it is anything else, or nothing."""
    try:
        found = json.loads((path if path.suffix == ".json" else path / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found.get(KEY) if isinstance(found, dict) else None


def require_made(path: Path) -> None:
    """ValueError where a placeholder stands."""
    if reason := stopped(path):
        raise ValueError(f"{path}: was not made, for the rounds stopped before it: {reason}")


def newest_trained(folder: Path, model: str, params: "Params") -> tuple[str, str | None]:
    """The model, where `folder` (models or evaluations) holds it; or the newest before it that was trained, and why it takes its place."""
    makers, asked, not_run = {r.next: (name, r) for name, r in params.rounds.items()}, model, {}
    while reason := stopped(folder / model):
        name, made_by = makers[params.models[model].generation]
        not_run[name], model = reason, made_by.base  # a model is named as its generation (config/params.py)
    if not not_run:
        return model, None
    return model, f"{asked} was not trained, since {' and '.join(reversed(not_run))} did not follow: {next(iter(not_run.values()))}"


def write_stopped(reason: str, path: Path) -> None:
    """A placeholder for a JSON file, a history or a folder, by the suffix; what stood there is replaced."""
    if path.suffix == ".json":
        _write(json.dumps({KEY: reason}, indent=1, ensure_ascii=False) + "\n", path)
    elif path.suffix == ".csv":
        _write(HEADER, path)
    else:
        with new_folder(path) as temporary:
            write_stopped(reason, temporary / FILE)


def _write(text: str, path: Path) -> None:
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
