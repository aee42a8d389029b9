"""The package as it is installed: its version, a hash of its code, and the repository's files that are no code.

A project that `blip init` made holds no code that DVC could watch. There the chain begins with `blip version --out artifacts/version.json`,
and every stage depends on that file: another version of the package, or the same one with other code, runs the chain again.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

NAME = "blip-bootstrap"
NOTED = Path("artifacts/version.json")
PACKAGE = Path(__file__).parents[1]
PACKED = PACKAGE / "packed"  # in a wheel alone; setup.py fills it
SERVED = "mlflow/serve.py"


def repository_file(name: str) -> Path:
    """A file by its path in the repository: a checkout has it beside blip_core, a wheel packs it. ValueError where neither does."""
    for folder in (PACKED, PACKAGE.parent):
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{PACKAGE.parent / name}: missing; it stands beside blip_core in a checkout, and in a wheel of {NAME}: install one")


def installed() -> dict[str, str]:
    """{"version": of the package's metadata, "code": SHA-256 over names and contents of its files and of the served model's script}."""
    found = {str(p.relative_to(PACKAGE)): p for p in PACKAGE.rglob("*") if p.is_file() and PACKED not in p.parents}
    files = {name: path for name, path in found.items() if path.suffix != ".pyc"} | {SERVED: repository_file(SERVED)}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    try:
        version = version_of(NAME)
    except PackageNotFoundError:  # a checkout on the path, which nobody installed
        version = "not installed"
    return {"version": version, "code": digest.hexdigest()}


def named(package: dict[str, str]) -> str:
    return f"{NAME} {package['version']} (code {package['code'][:12]})"


def require_same_code(root: Path) -> None:
    """Where the project's chain has noted the package, a stage runs with no other. ValueError names both."""
    if not (root / NOTED).exists():
        return
    noted, here = json.loads((root / NOTED).read_text()), installed()
    if noted != here:
        raise ValueError(
            f"{NOTED}: what was made so far is of {named(noted)}, and {named(here)} is installed: "
            "`dvc repro version` notes it, and the chain runs anew with it; or install the other again"
        )
