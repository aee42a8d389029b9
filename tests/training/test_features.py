"""Features of a frozen encoder: with each batch, or from disk; and what is kept there."""

import logging

import pytest
import torch

from blip_core.compute.pixels import load_pixels, read_picture
from blip_core.config.model import FeatureConfig
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.training.batches import Rows, batch_shares
from blip_core.training.features import PLAIN, FeatureCache, Frozen, QueryBatches
from blip_core.weights.encoders import of_vit
from tests.support.small import small_params


@pytest.fixture
def frozen(model):
    return Frozen(of_vit(model.vit, "a"), "fp32")


def batches(artifacts, frozen, features: FeatureConfig, **optim) -> QueryBatches:
    rows = Rows.of(artifacts / "generations/g0", ["human", "web"])
    cfg = small_params().pretrain.optim.model_copy(update={"steps": 3, "batch_size": 8, "workers": 0, "augment": PLAIN, **optim})
    shares = batch_shares(rows, human=0.4, synthetic=0.2)
    options = dict(tokenizer=load_tokenizer(artifacts / "tokenizer.json"), prompt="", shares=shares, cfg=cfg, seed=0)
    return QueryBatches(rows, ShardImages(artifacts / "shards"), frozen, features, **options)


def test_features_from_disk_are_those_that_the_encoder_makes_with_each_batch(ingested, frozen, tmp_path):
    """And the texts, pictures and their order are the same; loading processes read them too."""
    made = list(batches(ingested, frozen, FeatureConfig(cache=None, max_gib=1)).loader(0))
    cached = batches(ingested, frozen, FeatureConfig(cache=tmp_path, max_gib=1), workers=1)
    for one, other in zip(made, cached.loader(0), strict=True):
        torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.ids, other.ids) and one.keys == other.keys and torch.equal(one.image_ids, other.image_ids)
    assert made[0].features.shape == (8, 5, 32) and not torch.equal(made[0].features[0], made[0].features[1])


def test_a_second_training_makes_no_feature_again(ingested, frozen, tmp_path):
    """An encoder that fails has nothing to do; another encoder, size or precision would."""
    cfg = FeatureConfig(cache=tmp_path, max_gib=1)
    images = ShardImages(ingested / "shards")
    first = FeatureCache(images, images.shards, frozen, cfg)
    files = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert set(files) == {p.name for p in first.paths.values()} and len(files) == len(images.shards)
    again = FeatureCache(images, images.shards, frozen, cfg)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files and again.paths == first.paths
    other = FeatureCache(images, images.shards[:1], Frozen(frozen.encoder, "bf16"), cfg)
    key = next(iter(other._keys[images.shards[0]]))
    assert other.paths[images.shards[0]] != first.paths[images.shards[0]] and other.read(images.shards[:1], [key]).dtype == torch.bfloat16
    pixels = load_pixels([read_picture(images, images.shards[0], key)], 16)
    torch.testing.assert_close(first.read(images.shards[:1], [key]), frozen(pixels), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused_and_what_nobody_asks_for_makes_room(ingested, frozen, tmp_path, caplog):
    images = ShardImages(ingested / "shards")
    with pytest.raises(ValueError, match=r"pictures, 0.00061 MiB each, .* but features.max_gib is 1e-06: raise it"):
        FeatureCache(images, images.shards, frozen, FeatureConfig(cache=tmp_path, max_gib=1e-6))
    FeatureCache(images, images.shards[:1], frozen, FeatureConfig(cache=tmp_path, max_gib=1))
    (old,) = tmp_path.iterdir()
    caplog.set_level(logging.INFO)
    FeatureCache(images, images.shards[1:2], frozen, FeatureConfig(cache=tmp_path, max_gib=1.2 * old.stat().st_size / 2**30))
    assert not old.exists() and len(list(tmp_path.iterdir())) == 1 and "dropped, to keep the features within" in caplog.text


def test_a_cache_holds_one_view_of_a_picture(ingested, frozen, tmp_path):
    with pytest.raises(ValueError, match=r"one view of a picture, but optim.augment asks for others .* or features.cache null"):
        batches(ingested, frozen, FeatureConfig(cache=tmp_path, max_gib=1), augment=PLAIN.model_copy(update={"flip": True}))
