"""What the tests of tasks begin with."""

import pytest

from blip_core.weights.checkpoint import new_model, save_model


@pytest.fixture(scope="session")
def base(tmp_path_factory, model_cfg, tokenizer):
    """A folder with a small model that has learned nothing; tests read it only."""
    folder = tmp_path_factory.mktemp("base") / "g0"
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, folder, prompt="there is ", max_tokens=20, precision="fp32")
    return folder
