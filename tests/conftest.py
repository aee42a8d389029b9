"""Shared fixtures: a tiny random model and its tokenizer. Everything runs on the CPU, offline, on data made here."""

import os
from pathlib import Path

import pytest

for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS"):
    os.environ.setdefault(name, "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = "a red blue green ball box star on grass and next to there is photo of".split()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("BLIP_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"shared reference data not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from blip_core.tokenizer import Tokenizer, build_vocab

    return Tokenizer(build_vocab([" ".join(WORDS)] * 2, 200))


@pytest.fixture(scope="session")
def model_cfg():
    from blip_core.config import ModelConfig

    return ModelConfig(
        vision=dict(image_size=16, patch_size=8, width=32, depth=2, heads=4, mlp_ratio=2.0, activation="gelu", norm_eps=1e-6, drop_path=0.0),
        text=dict(width=24, depth=2, heads=3, mlp_width=48, max_positions=24, activation="gelu", norm_eps=1e-12, dropout=0.0),
        embed_dim=16,
        init=dict(weight=0.2, patch=0.2, image_position=0.2, token=0.2, text_position=0.2),
    )


@pytest.fixture
def model(model_cfg, tokenizer):
    from blip_core.checkpoint import new_model

    return new_model(model_cfg, tokenizer, seed=0).eval()
