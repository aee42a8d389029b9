"""The convolutional stem: as many tokens as patches, features of pictures apart from the start, and no export to what has none."""

import pytest
import torch

from blip_core.config.model import VisionConfig
from blip_core.model.blip import Blip
from blip_core.model.stem import patch_embedding
from blip_core.preview.plan import vit_flops
from blip_core.training.objectives import mean_cosine
from blip_core.weights.checkpoint import load_model, new_model, save_model
from blip_core.weights.export import export_huggingface


@pytest.fixture
def conv(model_cfg, tokenizer) -> Blip:
    vision = model_cfg.vision.model_copy(update={"stem": "conv", "patch_size": 8})
    return new_model(model_cfg.model_copy(update={"vision": vision}), tokenizer, seed=0)


def test_a_stem_makes_the_tokens_of_its_patches_and_keeps_pictures_apart(conv):
    cfg, noise = conv.cfg.vision, torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert patch_embedding(cfg)(noise).shape == (6, cfg.width, 2, 2)
    tokens = conv.vit(noise)
    assert tokens.shape == (6, 5, cfg.width)
    with torch.no_grad():
        assert mean_cosine(conv.image_features(tokens)) < 0.9
    assert 0 < vit_flops(conv.cfg)


def test_it_is_saved_and_loaded_and_no_public_format_has_it(conv, tokenizer, tmp_path):
    save_model(conv, tokenizer, tmp_path / "model")
    again, _ = load_model(tmp_path / "model")
    picture = torch.ones(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.vit(picture), conv.eval().vit(picture))
    with pytest.raises(ValueError, match="model.vision.stem is conv, and transformers has no such model"):
        export_huggingface(conv, tokenizer, tmp_path / "hf", kind="captioning")


def test_a_picture_is_halved_so_patches_are_powers_of_two(model_cfg):
    values = model_cfg.vision.model_dump() | {"stem": "conv", "image_size": 48, "patch_size": 12}
    with pytest.raises(ValueError, match="patch_size is 12; the stem conv halves the picture"):
        VisionConfig(**values)
