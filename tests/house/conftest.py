"""The site of docs/, built once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import HANG

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -c constraints.txt -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder)  # not --quiet: it hides warnings from --strict
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
