"""Frozen image encoders for a Q-Former: what they give is what the Q-Former's own norm begins upon."""

import pytest
import torch
import transformers

from blip_core.config.model import MEAN, STD
from blip_core.files.content import write_json
from blip_core.weights.checkpoint import save_model
from blip_core.weights.encoders import load_encoder
from tests.support.blip2s import retrieval_folder
from tests.support.peers import peer, random_pixels, randomize, save

CLOSE = dict(atol=1e-5, rtol=1e-5)
VIT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8)


def pixels(size: int = 16):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_vit_of_a_blip_is_whole_but_for_its_last_norm(model, tokenizer, tmp_path):
    """Ours, and a folder of transformers."""
    save_model(model, tokenizer, tmp_path / "ours")
    theirs = peer("BlipForImageTextRetrieval", "equal", tokenizer)
    save(theirs, tokenizer, tmp_path / "theirs")
    for folder, expected, size in (
        ("ours", model.image_tokens, model.cfg.vision.image_size),
        ("theirs", lambda p: theirs.vision_model(p).last_hidden_state, theirs.config.vision_config.image_size),
    ):
        found = load_encoder(tmp_path / folder)
        assert found.image_size == size and not any(p.requires_grad for p in found.module.parameters())
        torch.testing.assert_close(found.norm(found(pixels(size))), expected(pixels(size)), **CLOSE)


@torch.no_grad()
def test_the_vit_of_a_blip2_alone_or_in_its_whole(tokenizer, tmp_path):
    whole = retrieval_folder("even", tokenizer, tmp_path / "whole")
    whole.vision_model.save_pretrained(tmp_path / "alone")
    expected = whole.vision_model(random_pixels(whole, 2)).last_hidden_state
    for name in ("whole", "alone"):
        found = load_encoder(tmp_path / name)
        torch.testing.assert_close(found.norm(found(random_pixels(whole, 2))), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CLIPVision", "CLIP", "SiglipVision"])
def test_of_clip_and_siglip_the_last_layer_is_left_out(kind, tmp_path):
    """SigLIP has no [CLS], and was trained on pixels of another mean and deviation, which its folder says."""
    config = getattr(transformers, f"{kind}Config")
    config = config(**VIT) if "Vision" in kind else config(vision_config=VIT, text_config=VIT | {"vocab_size": 9})
    theirs = randomize(getattr(transformers, f"{kind}Model")(config), 0)
    theirs.save_pretrained(tmp_path)
    mean, std = ([0.5] * 3, [0.5] * 3) if "Siglip" in kind else (MEAN, STD)
    write_json({"image_mean": mean, "image_std": std}, tmp_path / "preprocessor_config.json")
    own = (
        pixels() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None] - torch.tensor(mean)[:, None, None]
    ) / torch.tensor(std)[:, None, None]
    expected = getattr(theirs, "vision_model", theirs)(own, output_hidden_states=True).hidden_states[2]
    found = load_encoder(tmp_path)
    torch.testing.assert_close(found(pixels()), expected, **CLOSE)
    assert found(pixels()).shape == (2, 4 + ("CLIP" in kind), found.width) and found.norm is None


def test_a_folder_of_no_image_encoder_is_refused(tmp_path):
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no patches; expected a vision transformer"):
        load_encoder(tmp_path)
