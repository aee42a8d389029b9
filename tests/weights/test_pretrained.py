"""Public BLIP weights in: every key accounted for, clear errors, no code of a checkpoint run."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip_core.compute.padding import tokenize
from blip_core.model.blip import PARTS
from blip_core.model.generate import Limits, greedy, nucleus
from blip_core.tokenizer.wordpiece import save_vocab
from blip_core.weights.checkpoint import new_model, save_model
from blip_core.weights.load import load_pretrained, resize_images
from blip_core.weights.pretrained import load_blip
from blip_core.weights.sizes import huggingface_config
from tests.support.peers import SIZES, authors_names, blip_config, peer, random_pixels, save

TEXTS = ["a red ball", "there is a blue star on grass and a box"]
CLOSE = dict(atol=1e-5, rtol=0)
CLASSES = {
    "BlipForConditionalGeneration": {"encoder", "contrast", "match"},
    "BlipForImageTextRetrieval": {"decoder", "language"},
    "BlipForQuestionAnswering": {"decoder", "language", "contrast", "match"},
    "BlipModel": {"decoder", "language", "contrast", "match"},
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# --- folders of transformers


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_class_lacks_is_said_and_refused(name, tokenizer, tmp_path, caplog):
    """Each published class holds some roles only. The model names the parts it lacks, and what needs one does not run."""
    with caplog.at_level(logging.INFO, logger="blip_core"):
        model, loaded_tokenizer = load_pretrained(save(peer(name, "wide_text", tokenizer), tokenizer, tmp_path))
    assert model.missing == CLASSES[name]
    assert all(PARTS[part] in caplog.text for part in model.missing)
    assert loaded_tokenizer.vocab == tokenizer.vocab
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    keys_values = model.keys_values(model.image_tokens(torch.zeros(2, 3, 24, 24)))
    calls = {
        "language": [lambda: model.caption_hidden(ids, keys_values), lambda: greedy(model, keys_values, [tokenizer.dec], Limits(0, 3))],
        "contrast": [lambda: model.text_features(ids, mask), lambda: model.image_features(keys_values)],
        "match": [lambda: model.match_logits(ids, mask, keys_values)],
    }
    calls["language"].append(lambda: nucleus(model, keys_values, [tokenizer.dec], Limits(0, 3), p=0.9, draws_IKL=torch.zeros(2, 1, 3)))
    for part in model.missing & calls.keys():
        for call in calls[part]:
            with pytest.raises(ValueError, match=f"{part} \\(.*still random"):
                call()


def test_question_answering_leaves_its_answer_decoder_out(tokenizer, tmp_path):
    """Its decoder is no copy of the encoder: taking it would silently mix two models."""
    theirs = peer("BlipForQuestionAnswering", "wide_text", tokenizer)
    model = new_model(huggingface_config(theirs.config.to_dict(), tmp_path), tokenizer, seed=0)
    loaded = load_blip(model, theirs.state_dict(), source="vqa")
    assert {key for key in theirs.state_dict() if key.startswith("text_decoder.")} == loaded.left_out.keys()
    assert all("question states" in reason for reason in loaded.left_out.values())


def test_shards_and_old_files_give_the_same_model(tokenizer, tmp_path):
    theirs = peer("BlipForConditionalGeneration", "wide_text", tokenizer)
    whole = load_pretrained(save(theirs, tokenizer, tmp_path / "whole"))[0].state_dict()
    sharded = save(theirs, tokenizer, tmp_path / "shards", max_shard_size="50KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    old = save(theirs, tokenizer, tmp_path / "old")
    (old / "model.safetensors").unlink()
    # versions before 5 saved constants and tied copies too
    positions = {"text_decoder.bert.embeddings.position_ids": torch.arange(32)[None]}
    torch.save({**theirs.state_dict(), **positions}, old / "pytorch_model.bin")
    for folder in (sharded, old):
        state = load_pretrained(folder)[0].state_dict()
        assert all(torch.equal(state[key], whole[key]) for key in whole)
    next(sharded.glob("model-*.safetensors")).unlink()
    with pytest.raises(ValueError, match="model-0000.-of.*does not load"):
        load_pretrained(sharded)


def test_vocabulary_may_come_in_tokenizer_json(tokenizer, tmp_path):
    """transformers 5 saves no vocab.txt."""
    from transformers import BertTokenizer

    save(peer("BlipForConditionalGeneration", "wide_text", tokenizer), tokenizer, tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="neither tokenizer.json nor vocab.txt"):
        load_pretrained(tmp_path)
    BertTokenizer(vocab={t: i for i, t in enumerate(tokenizer.vocab)}).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    assert load_pretrained(tmp_path)[1].vocab == tokenizer.vocab


def change_config(folder: Path, section: str, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "section,values,message",
    [
        ("text_config", {"bos_token_id": 30522}, "bos_token_id is 30522, but by its vocabulary of 54 entries.* it is 54"),
        ("text_config", {"sep_token_id": 102}, "sep_token_id is 102"),
        ("text_config", {"vocab_size": 30524}, "vocab_size is 30524"),
        ("text_config", {"max_position_embeddings": 30}, r"position_embeddings.weight: shape \(32, 48\), .*med.positions.weight is \(30, "),
        ("text_config", {"num_hidden_layers": 1}, r"unexpected text_decoder.bert.encoder.layer.1\..* and \d+ more"),
        ("vision_config", {"num_hidden_layers": 4}, r"missing vision_model.encoder.layers.3\..* and \d+ more"),
        ("vision_config", {"image_size": 32}, "position_embedding: shape"),
        ("vision_config", {"hidden_act": "quick_gelu"}, "vision.activation: .*quick_gelu"),
        ("vision_config", {"image_size": [24, 24]}, "vision.image_size"),
        ("", {"model_type": "blip-2"}, "model_type is 'blip-2'; expected 'blip'"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(section, values, message, tokenizer, tmp_path):
    save(peer("BlipForConditionalGeneration", "wide_text", tokenizer), tokenizer, tmp_path)
    change_config(tmp_path, section, **values)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_another_vocabulary_is_refused(tokenizer, tmp_path):
    folder = save(peer("BlipForConditionalGeneration", "wide_text", tokenizer), tokenizer, tmp_path)
    save_vocab([*tokenizer.vocab, "more"], folder / "vocab.txt")
    with pytest.raises(ValueError, match="vocab_size is 56, but by its vocabulary of 55 entries.* it is 57"):
        load_pretrained(folder)
    change_config(folder, "text_config", vocab_size=57, bos_token_id=55)
    with pytest.raises(ValueError, match=r"has 56 rows, but the vocabulary has 55 entries \+ \[DEC\] and \[ENC\] = 57"):
        load_pretrained(folder)


def test_missing_and_unexpected_weights_are_named(tokenizer, tmp_path):
    folder = save(peer("BlipForImageTextRetrieval", "wide_text", tokenizer), tokenizer, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["itm_head_of_mine.weight"] = tensors.pop("itm_head.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="missing itm_head.weight; unexpected itm_head_of_mine.weight"):
        load_pretrained(folder)


def test_a_head_that_is_not_tied_is_refused(tokenizer, tmp_path):
    """We have one tensor for token embedding and output; a checkpoint in which they differ is another model."""
    theirs = peer("BlipForConditionalGeneration", "wide_text", tokenizer)
    tensors = {k: v.clone() for k, v in theirs.state_dict().items()}
    tensors["text_decoder.cls.predictions.decoder.weight"] += 1
    model = new_model(huggingface_config(theirs.config.to_dict(), tmp_path), tokenizer, seed=0)
    with pytest.raises(ValueError, match="word_embeddings.weight and text_decoder.cls.predictions.decoder.weight differ"):
        load_blip(model, tensors, source="untied")


def test_an_early_conversion_with_too_few_heads_is_noticed(tokenizer, tmp_path, caplog):
    config = blip_config("wide_text", tokenizer).to_dict()
    config["text_config"] |= {"hidden_size": 768, "num_attention_heads": 8}
    huggingface_config(config, tmp_path)
    assert "8 attention heads" in caplog.text


def test_image_size_resizes_the_positions(tokenizer, tmp_path):
    """As transformers' interpolate_pos_encoding, which repeats the authors' bicubic rule."""
    theirs = peer("BlipForConditionalGeneration", "wide_text", tokenizer)
    ours = load_pretrained(save(theirs, tokenizer, tmp_path), image_size=40)[0]
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    expected = theirs.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(ours.image_tokens(pixels), expected, **CLOSE)
    model = load_pretrained(tmp_path)[0]
    resize_images(model, 40, source="it")
    torch.testing.assert_close(model.image_tokens(pixels), expected, **CLOSE)
    with pytest.raises(ValueError, match="image_size 41: .*no multiple of patch_size 8"):
        load_pretrained(tmp_path, image_size=41)


def test_a_model_folder_of_ours_loads_too(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "own")
    again = load_pretrained(tmp_path / "own")[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="loads as it is"):
        load_pretrained(tmp_path / "own", image_size=32)


@pytest.mark.parametrize(
    "config,message", [(None, "no config.json"), ("{", "not valid JSON"), ('{"model_type": "blip"}', "no key 'vision_config'")]
)
def test_a_folder_of_something_else_is_refused(config, message, tmp_path):
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


# --- files of the authors


@pytest.fixture
def pretraining(tokenizer):
    """The two roles of one BLIP as transformers' classes, and the authors' pre-training checkpoint of the same weights."""
    text = dict(width=128, depth=2, heads=2, mlp=96)
    SIZES["authors"] = dict(text=text, vision=dict(width=64, depth=2, heads=1, mlp=128, image=24, patch=8))
    captioning = peer("BlipForConditionalGeneration", "authors", tokenizer, seed=1, layer_norm_eps=1e-6)
    retrieval = peer("BlipForImageTextRetrieval", "authors", tokenizer, seed=2, layer_norm_eps=1e-6)
    shared = {k: v for k, v in captioning.state_dict().items() if k.startswith("vision_model.")}
    for key, value in captioning.state_dict().items():
        if key.startswith("text_decoder.bert.") and ".attention." not in key:
            shared[key.replace("text_decoder.bert.", "text_encoder.")] = value
    retrieval.load_state_dict({**retrieval.state_dict(), **shared})
    tensors = authors_names({**captioning.state_dict(), **retrieval.state_dict()})
    del SIZES["authors"]
    twins = re.compile(r"^(visual_encoder|text_encoder|vision_proj|text_proj)\.")
    momentum = {twins.sub(r"\1_m.", k): v + 1 for k, v in tensors.items() if twins.match(k)}
    queues = {"image_queue": torch.zeros(16, 8), "text_queue": torch.zeros(16, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    constants = {f"{stack}.embeddings.position_ids": torch.arange(32)[None] for stack in ("text_encoder", "text_decoder.bert")}
    everything = {**tensors, **momentum, **queues, **constants, "temp": torch.tensor(0.07)}
    return captioning, retrieval, {k: v.clone() for k, v in everything.items()}


def write_pth(tensors: dict, tokenizer, folder: Path) -> Path:
    torch.save({"model": tensors, "optimizer": {"state": {}}, "config": {"vit": "base"}, "epoch": 19}, folder / "blip.pth")
    save_vocab(tokenizer.vocab, folder / "vocab.txt")
    return folder / "blip.pth"


def test_the_authors_pretraining_checkpoint_fills_every_role(pretraining, tokenizer, tmp_path):
    captioning, retrieval, tensors = pretraining
    ours, _ = load_pretrained(write_pth(tensors, tokenizer, tmp_path))
    assert not ours.missing
    pixels = random_pixels(captioning, 2)
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    keys_values = ours.keys_values(tokens := ours.image_tokens(pixels))
    begun = [torch.cat([torch.full((2, 1), first), ids[:, 1:]], dim=1) for first in (tokenizer.dec, tokenizer.enc)]
    expected = captioning(pixels, begun[0], attention_mask=mask.long()).logits
    torch.testing.assert_close(ours.med.vocabulary_logits(ours.caption_hidden(ids, keys_values))[mask], expected[mask], **CLOSE)
    expected = retrieval(begun[1], pixels, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(ours.match_logits(ids, mask, keys_values), expected, **CLOSE)
    expected = retrieval(ids, pixels, attention_mask=mask.long(), use_itm_head=False).itm_score
    torch.testing.assert_close(ours.image_features(tokens) @ ours.text_features(ids, mask).T, expected, **CLOSE)


def test_the_authors_other_checkpoints(pretraining, tokenizer, tmp_path):
    """A captioner has no encoder, a retrieval model no decoder; and both carry what training alone needs."""
    _, _, tensors = pretraining
    without = {"encoder": ("text_encoder", "itm_head", "vision_proj", "text_proj"), "decoder": ("text_decoder",)}
    for lacking, prefixes in without.items():
        kept = {k: v for k, v in tensors.items() if not k.startswith(prefixes)}
        model, _ = load_pretrained(write_pth(kept, tokenizer, tmp_path))
        assert lacking in model.missing and len(model.missing) == {"encoder": 3, "decoder": 2}[lacking]


def test_an_encoder_and_decoder_that_differ_are_refused(pretraining, tokenizer, tmp_path):
    """The paper's encoder and decoder share all but self-attention; weights that do not are another model."""
    tensors = pretraining[2]
    tensors["text_decoder.bert.encoder.layer.1.crossattention.output.LayerNorm.bias"][3] += 1e-3
    with pytest.raises(ValueError, match="layer.1.crossattention.output.LayerNorm.bias .*differ"):
        load_pretrained(write_pth(tensors, tokenizer, tmp_path))


def test_an_nlvr_checkpoint_is_refused_by_name(pretraining, tokenizer, tmp_path):
    """It has two cross-attentions per block."""
    tensors = {k: v for k, v in pretraining[2].items() if not k.startswith("text_decoder")}
    tensors = {k.replace("crossattention.self.", "crossattention.self0."): v for k, v in tensors.items()}
    with pytest.raises(ValueError, match=r"missing text_encoder.*crossattention.self.key.*unexpected text_encoder.*crossattention.self0"):
        load_pretrained(write_pth(tensors, tokenizer, tmp_path))


def test_the_authors_positions_are_resized(pretraining, tokenizer, tmp_path):
    captioning, _, tensors = pretraining
    ours, _ = load_pretrained(write_pth(tensors, tokenizer, tmp_path), image_size=32)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = captioning.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(ours.image_tokens(pixels), expected, **CLOSE)


class Payload:
    """Pickles to a call: what a hostile checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tokenizer, tmp_path):
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="does not load as tensors alone"):
        load_pretrained(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights at 'model'; got .'state_dict'."):
        load_pretrained(tmp_path / "other.pth")
    for junk in (b"hello", b"x", b"", b"\x80\x04."):  # bytes at which the reader fails in other ways
        (tmp_path / "junk.pth").write_bytes(junk)
        with pytest.raises(ValueError, match="junk.pth: does not load as tensors alone .*expected weights written by torch.save"):
            load_pretrained(tmp_path / "junk.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:100])
    with pytest.raises(ValueError, match="cut.pth: does not load"):
        load_pretrained(tmp_path / "cut.pth")
