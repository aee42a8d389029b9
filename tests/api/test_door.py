"""`import blip_core` opens at once, and gives what docs/api.md says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import blip_core

ROOT = Path(__file__).parents[2]
LATE = ("torch", "pyarrow", "numpy", "PIL", "pandas", "mlflow", "transformers", "pydantic")


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_import_loads_nothing_heavy():
    loaded = modules_after("import blip_core; dir(blip_core)")
    assert not loaded & set(LATE) and not any(name.startswith("blip_core.") for name in loaded)


def test_a_generation_and_metrics_load_no_model():
    """Who looks at texts does not wait for torch."""
    loaded = modules_after("import blip_core; blip_core.open_generation, blip_core.evaluate_captions, blip_core.evaluate_retrieval")
    assert not loaded & {"torch", "transformers", "mlflow"}


def test_every_name_is_there_and_documented():
    for name in blip_core.__all__:
        assert getattr(blip_core, name).__doc__, name
        assert name in dir(blip_core)
    with pytest.raises(AttributeError, match="no attribute 'load_model'; it has .*load, open_generation"):
        blip_core.load_model  # noqa: B018


def test_the_page_has_every_name():
    shown = re.findall(r"^::: blip_core\.api\.\w+\.(\w+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
    assert sorted({*shown} - {"SamplerOptions", "Match"}) == sorted(blip_core.__all__) and len(shown) == len({*shown})
