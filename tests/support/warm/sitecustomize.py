"""Python imports this at its start wherever the tests put its folder on PYTHONPATH: see server.py.

A program of the lists below runs in a fork of the warm process; this process stands for it until it ends. All others start as ever, and
so does one whose environment differs from the warm process's in what libraries read while they are imported.
"""

import os
import sys

MODULES = ("blip_core", "dvc", "flows.", "uvicorn")  # python -m …
SCRIPTS = ("dvc", "bootstrap.py", "team_stages.py")
CODE = ("# warm\n", "import sys;exec(eval(sys.stdin.readline()))")  # python -c …; by the second, pytest-xdist starts those that run tests
READ_AT_IMPORT = tuple("CUDA HF_ LD_ MALLOC MKL_ NUMEXPR OMP_ OPENBLAS_ PYTHON RANK TORCH_ TORCHDYNAMO_".split())
OF_EACH = ("PYTHONPATH", "PYTHONUNBUFFERED")  # read by a fork itself (server.py)


def read_at_import(environ) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(READ_AT_IMPORT) and name not in OF_EACH}


def _may_run_warm(words: list[str]) -> bool:
    """What the interpreter got; with flags of its own but -u it does not count, and Prefect's workers need processes of their own."""
    what, *rest = words or [""]
    if what in ("-m", "-c") and rest:
        return rest[0].startswith(MODULES if what == "-m" else CODE)
    name = os.path.basename(what)
    return name in SCRIPTS or (name == "prefect" and "worker" not in rest)


def _folder(words: list[str]) -> str | None:
    """Where the warm process listens, if this one may ask it."""
    folder = os.environ.get("BLIP_WARM")
    if not folder or not _may_run_warm(words):
        return None
    import json

    try:
        with open(os.path.join(folder, "environment.json")) as file:
            same = json.load(file) == {"prefix": sys.prefix, **read_at_import(os.environ)}
    except OSError:  # it has ended
        return None
    return folder if same else None


given = sys.orig_argv[2 if sys.orig_argv[1:2] == ["-u"] else 1 :]
if folder := _folder(given):
    from client import run_warm

    run_warm(folder, given)
