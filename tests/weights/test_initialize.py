"""A beginning as in the paper: BERT and ImageNet's ViT in our model, and refusals where they do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip_core.compute.padding import tokenize
from blip_core.tokenizer.wordpiece import bert_tokenizer, save_vocab
from blip_core.weights.checkpoint import new_model
from blip_core.weights.load import initialize, initialize_qformer
from blip_core.weights.sizes import huggingface_config
from tests.support.peers import authors_names, peer, random_pixels, randomize, save
from tests.support.plain_qformer import run as read_alone
from tests.support.plain_qformer import tiny_qformer

TEXTS = ["a red ball", "there is a blue star on grass and a box"]
CLOSE = dict(atol=1e-5, rtol=0)
TEXT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
VISION = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, patch_size=8)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def bert_folder(name: str, tokenizer, folder: Path, **changes) -> tuple:
    import transformers

    config = transformers.BertConfig(vocab_size=len(tokenizer.vocab), **{**TEXT, "max_position_embeddings": 64, **changes})
    bert = randomize(getattr(transformers, name)(config), seed=3)
    return bert, save(bert, tokenizer, folder)


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_both_self_attentions_begin_as_berts(name, model, tokenizer, tmp_path):
    """Without the second segment, which BLIP drops, the encoder is BERT; the decoder is BERT under a causal mask."""
    bert, folder = bert_folder(name, tokenizer, tmp_path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loaded = initialize(model, bert=folder)
    core = getattr(bert, "bert", bert)
    core.embeddings.token_type_embeddings.weight.zero_()
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    expected = core(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(model.med.encode(ids, mask)[mask], expected[mask], **CLOSE)
    after = model.state_dict()
    for key in after:
        if ".decoder_attention." in key:
            assert torch.equal(after[key], after[key.replace("decoder", "encoder")])
        if key.startswith(("vit.", "image_projection", "text_projection", "match_head")) or ".cross_attention." in key:
            assert torch.equal(after[key], before[key]), "only BERT was asked for"
    assert torch.equal(after["med.tokens.weight"][-2:], before["med.tokens.weight"][-2:]), "[DEC] and [ENC] are new"
    head = {"language"} if name != "BertModel" else set()
    assert loaded.parts == {"text", "encoder", "decoder"} | head
    assert not model.missing, "a model that is about to be trained may do everything"
    if head:
        scores = bert(ids, attention_mask=mask.long())
        expected = scores.logits if name == "BertForMaskedLM" else scores.prediction_logits
        torch.testing.assert_close(model.med.vocabulary_logits(model.med.encode(ids, mask))[..., :-2][mask], expected[mask], **CLOSE)


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_a_qformer_begins_as_bert(name, tokenizer, tmp_path):
    """Its text, read alone, is BERT's; the feed-forward of queries begins as that of texts; all else is as it was."""
    bert, folder = bert_folder(name, tokenizer, tmp_path)
    qformer = tiny_qformer(tokenizer, depth=2, mlp_width=48)
    before = {k: v.clone() for k, v in qformer.state_dict().items()}
    initialize_qformer(qformer, folder)
    core = getattr(bert, "bert", bert)
    core.embeddings.token_type_embeddings.weight.zero_()
    ids, mask = tokenize(tokenizer, TEXTS[:1], max_tokens=20)
    expected = core(ids, attention_mask=mask.long()).last_hidden_state[0]
    torch.testing.assert_close(read_alone(qformer, "read", ids=ids[0])[1], expected, **CLOSE)
    after = qformer.state_dict()
    new = ("queries", "image_", "text_projection", "match_head") + (("head",) if name == "BertModel" else ())
    for key, value in after.items():
        if ".query_ffn." in key:
            assert torch.equal(value, after[key.replace("query_ffn", "text_ffn")])
        assert torch.equal(value, before[key]) == (key.startswith(new) or ".cross_attention." in key), key


def test_bert_with_names_of_tensorflow(model, model_cfg, tokenizer, tmp_path):
    """bert-base-uncased as published calls the tensors of LayerNorm gamma and beta."""
    _, folder = bert_folder("BertForPreTraining", tokenizer, tmp_path)
    initialize(model, bert=folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    other = new_model(model_cfg, tokenizer, seed=0)
    initialize(other, bert=folder)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassificationWithTeacher"])
@pytest.mark.parametrize("image_size", [16, 24])
def test_the_image_encoder_begins_as_imagenets(name, image_size, model, tmp_path):
    """Where the sizes of the images differ, the positions are resized, [CLS]'s is not; DeiT's second token goes."""
    import transformers

    config_class = transformers.DeiTConfig if name.startswith("DeiT") else transformers.ViTConfig
    vit = randomize(getattr(transformers, name)(config_class(image_size=image_size, layer_norm_eps=1e-6, **VISION)), seed=4)
    vit.save_pretrained(tmp_path)
    loaded = initialize(model, vit=tmp_path)
    assert loaded.parts == {"image"}
    tensors = load_file(tmp_path / "model.safetensors")
    positions = next(v for k, v in tensors.items() if k.endswith("embeddings.position_embeddings"))
    torch.testing.assert_close(model.vit.positions[:, 0], positions[:, 0])
    if image_size == 16:
        torch.testing.assert_close(model.vit.positions[:, 1:], positions[:, -4:])
    if name == "ViTModel":
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        expected = vit(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(model.image_tokens(pixels), expected, **CLOSE)


def test_deits_own_file(tokenizer, tmp_path):
    """The file that the authors begin with: timm's names, a classifier, no prefix."""
    captioning = peer("BlipForConditionalGeneration", "wide_text", tokenizer, layer_norm_eps=1e-6)
    tensors = authors_names(captioning.state_dict())
    vision = {k.removeprefix("visual_encoder."): v for k, v in tensors.items() if k.startswith("visual_encoder.")}
    torch.save({"model": {**vision, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}}, tmp_path / "deit.pth")
    cfg = huggingface_config(captioning.config.to_dict(), tmp_path)
    model = new_model(cfg, tokenizer, seed=0).eval()
    initialize(model, vit=tmp_path / "deit.pth")
    pixels = random_pixels(captioning, 2)
    torch.testing.assert_close(model.image_tokens(pixels), captioning.vision_model(pixels).last_hidden_state, **CLOSE)


def test_a_beginning_that_does_not_fit_is_refused(model, tokenizer, tmp_path):
    import transformers

    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, heads = bert_folder("BertModel", tokenizer, tmp_path / "heads", num_attention_heads=2)
    with pytest.raises(ValueError, match="num_attention_heads is 2, but the model was built with 3"):
        initialize(model, bert=heads)
    _, short = bert_folder("BertModel", tokenizer, tmp_path / "short", max_position_embeddings=8)
    with pytest.raises(ValueError, match=r"shape \(8, 24\), but the model's med.positions.weight is \(24, 24\)"):
        initialize(model, bert=short)
    _, other = bert_folder("BertModel", bert_tokenizer([*tokenizer.vocab, "more"]), tmp_path / "other")
    with pytest.raises(ValueError, match="build the model with the vocabulary of this BERT"):
        initialize(model, bert=other)
    save_vocab(tokenizer.vocab, other / "vocab.txt")
    with pytest.raises(ValueError, match="has 55 rows; the model's vocabulary has 56 entries"):
        initialize(model, bert=other)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "a refused checkpoint changes nothing"
    transformers.ViTModel(transformers.ViTConfig(image_size=16, **{**VISION, "patch_size": 4})).save_pretrained(tmp_path / "patch")
    with pytest.raises(ValueError, match=r"patch_embeddings.projection.weight: shape \(32, 3, 4, 4\)"):
        initialize(model, vit=tmp_path / "patch")
    with pytest.raises(ValueError, match="model_type is 'bert'; expected 'vit' or 'deit'"):
        initialize(model, vit=heads)
