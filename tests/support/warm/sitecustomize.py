"""Python imports this at its start wherever the tests put its folder on PYTHONPATH: see server.py.

A program of the list below runs in a fork of the warm process, and so do the processes of pytest-xdist; this process stands for it until
it ends. All others start as ever, and so does one whose environment differs from the warm process's in what libraries read while they
are imported.
"""

import os
import sys

MODULES = ("blip_core", "dvc", "flows.")  # python -m …
SCRIPTS = ("dvc", "bootstrap.py", "team_stages.py")
XDIST = ["-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]  # how it starts a process that runs tests
READ_AT_IMPORT = tuple("CUDA HF_ LD_ MALLOC MKL_ NUMEXPR OMP_ OPENBLAS_ PYTHON RANK TORCH_ TORCHDYNAMO_".split())
OF_EACH = ("PYTHONPATH", "PYTHONUNBUFFERED")  # read by a fork itself (server.py)


def read_at_import(environ) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(READ_AT_IMPORT) and name not in OF_EACH}


def _may_run_warm(argv: list[str]) -> bool:
    """`argv` as the interpreter got it; one with flags of its own does not count, but for XDIST."""
    if argv[1:] == XDIST:
        return True
    if argv[1:2] == ["-m"] and len(argv) > 2:
        return argv[2].startswith(MODULES)
    return len(argv) > 1 and os.path.basename(argv[1]) in SCRIPTS


def _folder() -> str | None:
    """Where the warm process listens, if this one may ask it."""
    folder = os.environ.get("BLIP_WARM")
    if not folder or not _may_run_warm(sys.orig_argv):
        return None
    import json

    try:
        with open(os.path.join(folder, "environment.json")) as file:
            same = json.load(file) == {"prefix": sys.prefix, **read_at_import(os.environ)}
    except OSError:  # it has ended
        return None
    return folder if same else None


if folder := _folder():
    from client import run_warm

    run_warm(folder)
