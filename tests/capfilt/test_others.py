"""Filters of other families: CLIP's wider one, BLIP-2 and SIEVE's way, with the numbers that transformers gives for the folders."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blip_core.capfilt.clip import contrastive_types
from blip_core.capfilt.plugins import identify, kinds, open_captioner, open_filter
from blip_core.capfilt.sieve import CAPTIONS, SAMPLER
from blip_core.tokenizer.wordpiece import save_vocab
from tests.support.peers import peer, randomize, save
from tests.support.vlms import make_folder

TEXTS = [["a red ball", "a blue star on grass"], ["a photo of a green box"]]
SMALL = dict(intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
SQUARE = {"height": 32, "width": 32}
opened = partial(open_filter, question="{text}?", precision="fp32", fetch=None)


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(30, 0).repeat(30, 1) for _ in range(2)]


def save_parts(folder, model, tokenizer, images):
    model.save_pretrained(folder)
    images(size=SQUARE, do_center_crop=False).save_pretrained(folder)
    save_vocab(tokenizer.vocab, folder / "vocab.txt")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def towers(kind: str, tokenizer) -> tuple[dict, dict]:
    """Settings of the text and of the picture."""
    words = {"vocab_size": tokenizer.size, "pad_token_id": 0, "bos_token_id": tokenizer.cls, "eos_token_id": tokenizer.sep}
    long = {"max_position_embeddings": 514} if kind in ("Align", "AltCLIP", "ChineseCLIP") else {"max_position_embeddings": 20}
    picture = {"hidden_size": 32, **SMALL, "image_size": 32, "patch_size": 8}
    if kind == "Align":
        picture = {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 24}  # rounded to 32
    return {"hidden_size": 24, **SMALL, **words, **long} | ({"project_dim": 24} if kind == "AltCLIP" else {}), picture


@pytest.mark.parametrize("kind", ["Align", "AltCLIP", "ChineseCLIP", "MetaClip2", "CLIPSeg"])
def test_a_model_with_two_towers_gives_its_cosines(kind, tokenizer, tmp_path):
    text, vision = towers(kind, tokenizer)
    width = {"projection_dim": 32 if kind == "Align" else 16}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **width)
    model = randomize(getattr(transformers, f"{kind}Model")(config), 0)
    folder = save_parts(tmp_path / kind, model, tokenizer, transformers.CLIPImageProcessorPil)
    assert config.model_type in contrastive_types()
    judge = opened(str(folder), folder)
    found = judge.score([judge.prepare(p) for p in pictures()], [judge.encode(row) for row in TEXTS])
    assert np.isnan(found.itm_logit).all() and np.std(found.itc) > 1e-3

    words, images = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoImageProcessor.from_pretrained(folder)
    for (picture, said), cosine in zip([(p, t) for p, row in zip(pictures(), TEXTS, strict=True) for t in row], found.itc, strict=True):
        inputs = words([said], return_tensors="pt") | {"pixel_values": torch.as_tensor(np.stack(images(images=picture)["pixel_values"]))}
        with torch.no_grad():
            out = model(**inputs)
        image, text = (torch.nn.functional.normalize(e, dim=-1) for e in (out.image_embeds, out.text_embeds))
        assert cosine == pytest.approx(float((image * text).sum()), abs=1e-5)


def test_what_transformers_lists_is_open():
    """A new family needs no code here. BLIP and BLIP-2 have loaders of their own."""
    assert {"clip", "siglip", "siglip2", "metaclip_2", "align", "altclip", "chinese_clip", "tipsv2"} <= set(contrastive_types())
    assert not {"blip", "blip-2"} & set(contrastive_types())
    for kind in ("qwen3_vl", "internvl", "gemma3", "llava_next", "mllama"):
        assert kinds()[kind].captioner and kinds()[kind].filter


@pytest.fixture
def blip2(tokenizer, tmp_path):
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    qformer = {"hidden_size": 24, **small, "vocab_size": tokenizer.size, "encoder_hidden_size": 32, "use_qformer_text_input": True}
    vision = {"hidden_size": 32, **small, "image_size": 32, "patch_size": 8}
    sizes = {"num_query_tokens": 3, "image_text_hidden_size": 16}
    model = randomize(
        transformers.Blip2ForImageTextRetrieval(transformers.Blip2Config(qformer_config=qformer, vision_config=vision, **sizes)), 0
    )
    return model, save_parts(tmp_path / "blip2", model, tokenizer, transformers.BlipImageProcessorPil)


def test_blip2_gives_logits_of_its_itm_head_and_the_best_query_s_cosine(blip2):
    model, folder = blip2
    judge = opened(str(folder), folder)
    found = judge.score([judge.prepare(p) for p in pictures()], [judge.encode(row) for row in TEXTS])
    rows = [(p, t) for p, row in zip(pictures(), TEXTS, strict=True) for t in row]
    for (picture, said), itm, itc in zip(rows, found.itm_logit, found.itc, strict=True):
        ids = torch.tensor(judge.encode([said]))
        inputs = {"pixel_values": judge.prepare(picture)[None], "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            logits, cosine = (model(**inputs, use_image_text_matching_head=head).logits_per_image for head in (True, False))
        assert itm == pytest.approx(float(logits[0, 1] - logits[0, 0]), abs=1e-4) and itc == pytest.approx(float(cosine.max()), abs=1e-5)
    assert np.std(found.itm_logit) > 1e-3 and np.std(found.itc) > 1e-3


def test_weights_that_a_folder_lacks_are_not_made_up(blip2, tmp_path):
    """transformers would draw them at random, with a warning."""
    _, folder = blip2
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if not name.startswith("itm_head")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack 2 tensors of a Blip2ForImageTextRetrieval, as itm_head.bias"):
        opened(str(folder), folder)
    vlm = make_folder("llava", tmp_path / "llava")
    tensors = {name: value for name, value in load_file(vlm / "model.safetensors").items() if "projector" not in name}
    save_file(tensors, vlm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack 4 tensors of a LlavaForConditionalGeneration"):
        open_captioner(str(vlm), vlm, prompt=None, precision="fp32", fetch=None)


@pytest.fixture
def sieve(tokenizer, tmp_path):
    writes = save(peer("BlipForConditionalGeneration", "equal", tokenizer), tokenizer, tmp_path / "writes")
    config = transformers.BertConfig(vocab_size=tokenizer.size, hidden_size=24, max_position_embeddings=64, **SMALL)
    randomize(transformers.BertModel(config), 1).save_pretrained(tmp_path / "encoder")
    save_vocab(tokenizer.vocab, tmp_path / "encoder" / "vocab.txt")
    transformers.BertTokenizer(str(tmp_path / "encoder" / "vocab.txt")).save_pretrained(tmp_path / "encoder")
    return writes, tmp_path / "encoder"


def test_sieve_compares_a_text_with_captions_of_the_picture(sieve, tmp_path):
    writes, encoder = sieve
    name = f"sieve:{writes}#{encoder}"
    judge = opened(name, tmp_path)
    assert judge.identity == identify(name) not in (identify(writes), identify(encoder))
    prepared, encoded = [judge.prepare(p) for p in pictures()], [judge.encode(row) for row in TEXTS]
    found = judge.score(prepared, encoded).itc
    assert judge.score(prepared[1:], encoded[1:]).itc == pytest.approx(found[2:], abs=1e-5), "alone as beside others"
    assert judge.encode(["a photo of a green box"]) == judge.encode(["a green box"])

    key, picture = prepared[0]
    own = judge.captioner.captions([picture], [key], SAMPLER, seed=0, num_candidates=CAPTIONS, first=0)[0]
    own_words = judge.score(prepared[:1], [judge.encode([own[3].text])]).itc
    assert own_words == pytest.approx([1.0], abs=1e-5) and found.max() < 1, "its own words fit best"


def test_sieve_pools_as_its_folder_says(sieve, tmp_path):
    writes, encoder = sieve
    name, pooling = f"sieve:{writes}#{encoder}", encoder / "1_Pooling" / "config.json"
    mean, before = opened(name, tmp_path), identify(name)
    pooling.parent.mkdir()
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    cls = opened(name, tmp_path)
    ids = cls.encode(["a red ball"])
    assert (mean.encoder.features(ids) - cls.encoder.features(ids)).abs().max() > 1e-3 and identify(name) != before
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="expected pooling_mode_mean_tokens or pooling_mode_cls_token"):
        opened(name, tmp_path)
    with pytest.raises(ValueError, match="expected sieve:CAPTIONER#ENCODER"):
        opened("sieve:weights/none", tmp_path)
