"""Folders that transformers loads offline, with equal outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.config.model import STD
from blip_core.model.blip import Blip
from blip_core.model.generate import Limits, greedy
from blip_core.tokenizer.build import build_tokenizer
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.weights.checkpoint import load_model, new_model, save_model
from blip_core.weights.export import export_huggingface
from blip_core.weights.load import load_pretrained
from blip_core.weights.pretrained import captioning_weights, retrieval_weights
from blip_core.weights.sizes import INIT, huggingface_config
from tests.support.peers import blip_config, peer, random_pixels, randomize, save

TEXTS = ["a red ball", "there is a blue star on grass and a box"]
CLOSE = dict(atol=1e-5, rtol=0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def exported(model, tokenizer, folder: Path, kind: str):
    import transformers

    name = {"captioning": "BlipForConditionalGeneration", "retrieval": "BlipForImageTextRetrieval"}[kind]
    export_huggingface(model, tokenizer, folder, kind=kind)
    theirs, account = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(account.values()), account
    return theirs.eval()


@pytest.fixture
def scattered(model):
    """Every tensor random, zero biases and unit norms too."""
    return randomize(model, seed=5)


def test_an_exported_captioner_gives_equal_outputs(scattered, tokenizer, tmp_path):
    theirs = exported(scattered, tokenizer, tmp_path / "out", "captioning")
    pixels, (ids, mask) = random_pixels(theirs, 2), tokenize(tokenizer, TEXTS, max_tokens=20)
    ids[:, 0] = tokenizer.dec
    keys_values = scattered.keys_values(scattered.image_tokens(pixels))
    got = scattered.med.vocabulary_logits(scattered.caption_hidden(ids, keys_values))
    torch.testing.assert_close(theirs(pixels, ids, attention_mask=mask.long()).logits[mask], got[mask], **CLOSE)
    written = theirs.generate(pixels, max_length=9)[:, 1:]
    limits = Limits(min_tokens=0, max_tokens=8)
    assert written.tolist() == greedy(scattered, keys_values, [tokenizer.dec], limits).tolist()


def test_an_exported_filter_gives_equal_outputs(scattered, tokenizer, tmp_path):
    theirs = exported(scattered, tokenizer, tmp_path / "out", "retrieval")
    pixels, (ids, mask) = random_pixels(theirs, 2), tokenize(tokenizer, TEXTS, max_tokens=20)
    tokens = scattered.image_tokens(pixels)
    similarity = theirs(ids, pixels, attention_mask=mask.long(), use_itm_head=False).itm_score
    torch.testing.assert_close(similarity, scattered.image_features(tokens) @ scattered.text_features(ids, mask).T, **CLOSE)
    ids[:, 0] = tokenizer.enc
    matching = theirs(ids, pixels, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(matching, scattered.match_logits(ids, mask, scattered.keys_values(tokens)), **CLOSE)
    assert f"id {tokenizer.enc}" in (tmp_path / "out/README.md").read_text(), "transformers leaves [CLS]: whoever uses the folder must know"


def test_the_two_exports_together_are_the_whole_model(scattered, tokenizer, tmp_path):
    states = []
    for kind in ("captioning", "retrieval"):
        export_huggingface(scattered, tokenizer, tmp_path / kind, kind=kind)
        model, loaded_tokenizer = load_pretrained(tmp_path / kind)
        assert loaded_tokenizer.vocab == tokenizer.vocab
        assert model.cfg == scattered.cfg.model_copy(update={"init": INIT})
        states.append(model.state_dict())
    for key, value in scattered.state_dict().items():
        assert any(torch.equal(value, state[key]) for state in states), key


@pytest.mark.parametrize("processor_class", ["BlipProcessor", "AutoProcessor"])
def test_the_exported_processor_is_ours(processor_class, model_cfg, shared, tmp_path):
    """Ids on BERT's own vocabulary, special tokens, and pixels, all loaded without a network."""
    import transformers

    tokenizer = load_tokenizer(shared / "oracles/bert_vocab/vocab.txt")
    export_huggingface(new_model(model_cfg, tokenizer, seed=0), tokenizer, tmp_path / "out", kind="captioning")
    processor = getattr(transformers, processor_class).from_pretrained(tmp_path / "out")
    assert len(processor.tokenizer) == tokenizer.size == 30524
    assert processor.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [tokenizer.dec, tokenizer.enc] == [30522, 30523]
    texts = [
        "A photo of naïve café-goers, isn't it?",
        "漢字 and emoji \U0001f600 ñandú",
        "antidisestablishmentarianism  3.14",
        "",
        "x" * 99,
    ]
    for text in texts:
        inputs = processor(text=text)
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert inputs["input_ids"] == tokenizer.encode(text, max_tokens=99)
    caption = [tokenizer.dec, *tokenizer.encode("a red ball, on grass", max_tokens=20)[1:], tokenizer.pad]
    assert processor.decode(caption, skip_special_tokens=True) == tokenizer.decode(caption)
    image = Image.fromarray(torch.randint(0, 256, (37, 53, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy())
    theirs = torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"])
    levels = (theirs - load_pixels([np.array(image)], 16)).abs() * torch.tensor(STD)[:, None, None] * 255
    assert levels.max() < 1.001, "resizing by another library may round to the next of 255 levels, no more"


@pytest.mark.parametrize("kind", ["accents", "cased", "bytes"])
def test_a_vocabulary_goes_out_and_comes_back_as_it_is(kind, model_cfg, tmp_path):
    import transformers

    tokenizer = build_tokenizer(["El niño de España", "una montaña", "一只猫坐在草地上"] * 2, kind, 300)
    model = new_model(model_cfg, tokenizer, seed=0)
    export_huggingface(model, tokenizer, tmp_path / "out", kind="captioning")
    processor, (again, loaded) = transformers.BlipProcessor.from_pretrained(tmp_path / "out"), load_pretrained(tmp_path / "out")
    assert (tmp_path / "out/vocab.txt").exists() == (kind != "bytes")
    assert len(processor.tokenizer) == tokenizer.size == loaded.size and loaded.vocab == tokenizer.vocab
    assert processor.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [tokenizer.dec, tokenizer.enc]
    for text in ("El niño, ¡qué!", "一只猫", "montaña 🦄"):
        ids = tokenizer.encode(text, max_tokens=99)
        assert processor(text=text)["input_ids"] == ids == loaded.encode(text, max_tokens=99)
        assert processor.decode(ids, skip_special_tokens=True).replace(" ", "") == tokenizer.decode(ids).replace(" ", "")
    save_model(again, loaded, tmp_path / "own")
    ids = tokenizer.encode("El niño de España", max_tokens=99)
    assert load_model(tmp_path / "own")[1].decode(ids) == tokenizer.decode(ids)


def test_a_model_without_the_part_is_not_exported(tokenizer, tmp_path):
    captioner = load_pretrained(save(peer("BlipForConditionalGeneration", "wide_text", tokenizer), tokenizer, tmp_path / "in"))[0]
    with pytest.raises(ValueError, match="encoder .*match .*not in the loaded checkpoint"):
        export_huggingface(captioner, tokenizer, tmp_path / "out", kind="retrieval")
    assert not (tmp_path / "out").exists()
    export_huggingface(captioner, tokenizer, tmp_path / "out", kind="captioning")
    with pytest.raises(ValueError, match="exists; name another folder"):
        export_huggingface(captioner, tokenizer, tmp_path / "out", kind="captioning")


@pytest.mark.parametrize("depth", [24, 1])
def test_vit_large_sizes(depth, tokenizer, tmp_path):
    """ViT-L/16 beside BERT-base: 1024 and 768 wide. All of it by shape, one block of each by value."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

    ids = dict(vocab_size=tokenizer.size, bos_token_id=tokenizer.dec, sep_token_id=tokenizer.sep, pad_token_id=tokenizer.pad)
    text = dict(num_hidden_layers=12 if depth == 24 else 1, num_attention_heads=12, **ids)
    image_size = 384 if depth == 24 else 32
    vision = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=depth, image_size=image_size)
    config = BlipConfig(text_config=text, vision_config=vision)
    cfg = huggingface_config(config.to_dict(), tmp_path)
    if depth == 24:
        with torch.device("meta"):
            theirs = [BlipForConditionalGeneration(config).state_dict(), BlipForImageTextRetrieval(config).state_dict()]
            model = Blip(cfg, new_model(huggingface_config(blip_config("equal", tokenizer).to_dict(), tmp_path), tokenizer, seed=0).special)
        for weights, expected in zip((captioning_weights(model), retrieval_weights(model)), theirs, strict=True):
            tied = {k for k in expected if ".predictions.decoder." in k}
            assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in expected.items() if k not in tied}
        return
    model = new_model(cfg, tokenizer, seed=0).eval()
    theirs = exported(model, tokenizer, tmp_path / "out", "captioning")
    pixels, (tokens, mask) = random_pixels(theirs, 1), tokenize(tokenizer, TEXTS[:1], max_tokens=20)
    tokens[:, 0] = tokenizer.dec
    got = model.med.vocabulary_logits(model.caption_hidden(tokens, model.keys_values(model.image_tokens(pixels))))
    torch.testing.assert_close(theirs(pixels, tokens, attention_mask=mask.long()).logits, got, **CLOSE)
