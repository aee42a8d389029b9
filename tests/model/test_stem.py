"""Stems other than a ViT's own: as many tokens as patches, features of pictures apart from the start, and no export to what has none."""

import pytest
import torch

from blip_core.compute.pixels import normalize
from blip_core.config.model import VisionConfig
from blip_core.model.blip import Blip
from blip_core.model.stem import ORIENTATIONS, SHADES, Cells, patch_embedding
from blip_core.preview.plan import vit_flops
from blip_core.training.contrast import mean_cosine
from blip_core.weights.checkpoint import load_model, new_model, save_model
from blip_core.weights.export import export_huggingface


@pytest.fixture(params=["conv", "cells"])
def stemmed(request, model_cfg, tokenizer) -> Blip:
    vision = model_cfg.vision.model_copy(update={"stem": request.param, "patch_size": 8})
    return new_model(model_cfg.model_copy(update={"vision": vision}), tokenizer, seed=0)


def test_a_stem_makes_the_tokens_of_its_patches_and_keeps_pictures_apart(stemmed):
    cfg, noise = stemmed.cfg.vision, torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert patch_embedding(cfg)(noise).shape == (6, cfg.width, 2, 2)
    tokens = stemmed.vit(noise)
    assert tokens.shape == (6, 5, cfg.width)
    with torch.no_grad():
        assert mean_cosine(stemmed.image_features(tokens)) < 0.9
    assert 0 < vit_flops(stemmed.cfg)


def test_it_is_saved_and_loaded_and_no_public_format_has_it(stemmed, tokenizer, tmp_path):
    save_model(stemmed, tokenizer, tmp_path / "model")
    again, _ = load_model(tmp_path / "model")
    picture = torch.ones(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.vit(picture), stemmed.eval().vit(picture))
    with pytest.raises(ValueError, match=f"model.vision.stem is {stemmed.cfg.vision.stem}, and transformers has no such model"):
        export_huggingface(stemmed, tokenizer, tmp_path / "hf", kind="captioning")


def test_a_picture_is_halved_so_patches_are_powers_of_two(model_cfg):
    values = model_cfg.vision.model_dump() | {"stem": "conv", "image_size": 48, "patch_size": 12}
    with pytest.raises(ValueError, match="patch_size is 12; the stem conv halves the picture"):
        VisionConfig(**values)


def test_cells_see_the_colours_and_the_edges_of_each_patch():
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, 0, :8], picture[:, 2, 8:] = 255, 255  # red above blue
    picture[:, :, 8:, 12:] = 255  # and white beside the blue
    means, _, histogram, edges = Cells(8)(normalize(picture))[0].split([3, 3, SHADES**3, ORIENTATIONS])
    red, blue, white = ((r * SHADES + g) * SHADES + b for r, g, b in ((3, 0, 0), (0, 0, 3), (3, 3, 3)))
    assert histogram[:, 0, 0].nonzero().flatten().tolist() == [red]
    assert histogram[:, 1, 1].nonzero().flatten().tolist() == [blue, white]
    assert means[0, 0, 0] > means[0, 1, 1] > means[0, 1, 0]
    rightward, downward = 0, ORIENTATIONS // 2  # where brightness rises
    below_left, below_right = edges[:, 1, 0], edges[:, 1, 1]
    assert below_right[rightward] > below_right[downward] > below_right.min()
    assert (below_left == below_left.min()).all(), "a red and a blue of one brightness have no edge"
