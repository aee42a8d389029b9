"""A project of one's own without a clone: the repository's own files that say what runs, and on which values.

They are not written down a second time: a checkout has them, and a wheel packs them (runtime/installed.py). Of dvc.yaml only the code
differs: it is that of the installed package, whose version and hash DVC watches in its place.
"""

import os
import re
import tempfile
from pathlib import Path

import yaml

from blip_core.runtime.installed import NOTED, installed, named, repository_file
from blip_core.tracking.provenance import git

AS_THEY_ARE = ("params.yaml", ".dvc/config", ".dvc/plots.html", ".dvc/.gitignore", ".dvcignore", ".gitignore")
NOTES_THE_CODE = f"""stages:
  # The code of the stages is that of the installed package. All of them depend on what this one notes, so other code runs them again.
  version:
    cmd: python -m blip_core version --out {NOTED}
    always_changed: true
    outs: [{NOTED}]
    meta: {{pool: cpu}}

"""


def init(folder: Path) -> str:
    """Write the project's files, all or none; what to do next. ValueError names those that are there already."""
    files = project_files()
    names = sorted({Path(name).parts[0] for name in files})
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: no folder; name one")
    if taken := [name for name in names if os.path.lexists(folder / name)]:
        raise ValueError(f"{folder}: has {', '.join(taken)} already, and nothing is written over; name a folder without them")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="_tmp.init.") as staged:
        for name, text in files.items():
            path = Path(staged, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in names:
            os.rename(Path(staged, name), folder / name)
    return _next_steps(folder)


def project_files() -> dict[str, str]:
    """Name to text."""
    chain, deployments = (repository_file(name).read_text() for name in ("dvc.yaml", "prefect.yaml"))
    files = {"dvc.yaml": watching_the_package(chain), "prefect.yaml": of_the_package(deployments)}
    files |= {name: repository_file(name).read_text() for name in AS_THEY_ARE}
    rounds = yaml.safe_load(files["params.yaml"])["rounds"]
    return files | {f"{folder}/.gitkeep": "" for folder in ("columns", "frozen", *(each["labels"] for each in rounds.values()))}


def watching_the_package(chain: str) -> str:
    """dvc.yaml whose stages depend on what the package is, and on no file of code."""

    def without_code(deps: re.Match[str]) -> str:
        rest = re.sub(r",\s*(blip_core/|mlflow/)[^,\s\]]+", "", deps[0])
        return re.sub(r"^deps: \[(\s*)", rf"deps: [\1{NOTED}, ", rest)

    chain = re.sub(r"^stages:\n", NOTES_THE_CODE, chain, count=1, flags=re.MULTILINE)
    return re.sub(r"deps: \[.*?\]", without_code, chain, flags=re.DOTALL)


def of_the_package(deployments: str) -> str:
    """prefect.yaml whose flows are modules of the package, and no files of the folder."""
    return re.sub(r"entrypoint: flows/(\w+)\.py:", r"entrypoint: flows.\1.", deployments)


def _next_steps(folder: Path) -> str:
    repository = git(folder, "rev-parse", "--git-dir")
    steps = {
        f"cd {folder}": "",
        **({} if repository else {"git init": "DVC and the versions of what you make live in git"}),
        "blip sample --out data": "or your own pictures and texts in data/web and data/clean; `blip inspect data/web` looks at them",
        "blip plan": "what the trainings of params.yaml will cost",
        "dvc repro": "the whole chain; `python -m flows.bootstrap` runs it several stages at a time",
    }
    lines = [f"  {step:<24} {f'# {why}' if why else ''}".rstrip() for step, why in steps.items()]
    return "\n".join([f"{folder}: a project that runs by {named(installed())}. Next:", *lines])
