"""BLIP-2 in and out: transformers' three classes and LAVIS' files, with equal outputs; the traps of either."""

from pathlib import Path

import pytest
import torch
import transformers

from blip_core.capfilt.plugins import open_filter
from blip_core.compute.padding import tokenize
from blip_core.model.qformer import best_query
from blip_core.tokenizer.wordpiece import save_vocab
from blip_core.weights.blip2 import OpenedBlip2, load_blip2, save_lavis
from blip_core.weights.blip2_export import export_generation, export_retrieval
from blip_core.weights.encoders import of_vit
from blip_core.weights.language import load_language
from tests.support.blip2s import SIZES, blip2_config, language, language_folder, lavis_names, retrieval_folder
from tests.support.peers import random_pixels, randomize

TEXTS = ["a red ball", "a photo of a star next to a green box", "grass"]
CLOSE = dict(atol=1e-5, rtol=1e-5)


def itm_itc(model, pixels, ids, mask):
    """Of ours: the logits of each pair, and the similarity of each picture to each text."""
    images = model.keys_values(model.image_tokens(pixels))
    queries = model.qformer.image_features(model.qformer.look(images)[0])
    return model.qformer.match_logits(ids, mask, images), best_query(queries, model.qformer.text_features(ids, mask))


def itm_itc_of_theirs(model, pixels, ids, mask):
    """transformers wants the places of the queries before the ids where its config has an image_token_index."""
    if model.config.image_token_index is not None:
        places = torch.full((len(ids), model.config.num_query_tokens), model.config.image_token_index)
        ids, mask = torch.cat([places, ids], 1), torch.cat([torch.ones_like(places), mask], 1)
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask.long()}
    return [model(**inputs, use_image_text_matching_head=head).logits_per_image for head in (True, False)]


def says_the_same_in_and_out(theirs, found, out, *, max_tokens):
    """`found` as `theirs`, and what transformers opens of its export in `out` too."""
    pixels, (ids, mask) = random_pixels(theirs, 3), tokenize(found.tokenizer, TEXTS, max_tokens=max_tokens)
    expected = itm_itc_of_theirs(theirs, pixels, ids, mask)
    for ours, other in zip(itm_itc(found.model, pixels, ids, mask), expected, strict=True):
        torch.testing.assert_close(ours, other, **CLOSE)
    export_retrieval(found.model, found.tokenizer, out)
    again = transformers.Blip2ForImageTextRetrieval.from_pretrained(out)
    for other, before in zip(itm_itc_of_theirs(again, pixels, ids, mask), expected, strict=True):
        torch.testing.assert_close(other, before, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("index", [None, 5])
@pytest.mark.parametrize("size", SIZES)
def test_stage_1_of_transformers_in_and_out(size, index, tokenizer, tmp_path):
    """Ours takes bare texts, whether theirs wants placeholders or not; similarities have no temperature, for theirs has none."""
    theirs = retrieval_folder(size, tokenizer, tmp_path / "in", image_token_index=index)
    found = load_blip2(tmp_path / "in")
    assert found.model.qformer.missing == {"language"} and found.language is None
    says_the_same_in_and_out(theirs, found, tmp_path / "out", max_tokens=20)


@torch.no_grad()
def test_an_exported_folder_loses_no_token_of_a_text_and_its_itm_is_no_softmax_of_a_softmax(tokenizer, tmp_path):
    """With an image_token_index transformers cuts the first tokens off a text that comes without a picture; a softmax of a softmax never
    says more than 0.731."""
    retrieval_folder("even", tokenizer, tmp_path / "in", image_token_index=5)
    found = load_blip2(tmp_path / "in")
    export_retrieval(found.model, found.tokenizer, tmp_path / "out")
    processor = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [processor(text)["input_ids"] for text in TEXTS] == [found.tokenizer.encode(text, max_tokens=20) for text in TEXTS]
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out")
    assert theirs.config.image_token_index is None
    judge = open_filter(str(tmp_path / "out"), tmp_path, question="{text}", precision="fp32", fetch=None)
    pictures = [torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)).numpy() for i in range(9)]
    prepared = [judge.prepare(p) for p in pictures]
    scores = judge.score(prepared, [[judge.encode([TEXTS[1]])[0]] for _ in pictures])
    ids, mask = tokenize(found.tokenizer, [TEXTS[1]] * 9, max_tokens=20)
    logits, itc = itm_itc(found.model, torch.stack(prepared), ids, mask)
    torch.testing.assert_close(torch.sigmoid(torch.tensor(scores.itm_logit)).float(), logits.softmax(-1)[:, 1], **CLOSE)
    torch.testing.assert_close(torch.tensor(scores.itc).float(), itc.diagonal(), **CLOSE)
    assert logits.softmax(-1).max() > 0.9 and itc.abs().max() <= 1


@pytest.mark.slow  # 188 million weights, written and read twice
@torch.no_grad()
def test_a_q_former_of_the_paper_s_size(tokenizer, tmp_path):
    """BERT-base with 32 queries of 768 upon 1408 wide image tokens."""
    config = transformers.Blip2Config(
        qformer_config={"use_qformer_text_input": True, "vocab_size": 30523}, vision_config={"num_hidden_layers": 1, "image_size": 56}
    )
    torch.manual_seed(0)
    theirs = transformers.Blip2ForImageTextRetrieval(config).eval()
    theirs.query_tokens.normal_(std=0.02)
    theirs.save_pretrained(tmp_path / "in")
    words = [*tokenizer.vocab, *(f"w{i}" for i in range(30522 - len(tokenizer.vocab)))]
    (tmp_path / "in/vocab.txt").write_text("\n".join(words))
    found = load_blip2(tmp_path / "in")
    trained = sum(p.numel() for n, p in found.model.qformer.named_parameters() if not n.startswith(("head", "tokens", "positions")))
    assert 160e6 < trained < 170e6  # 188 million with the embeddings
    says_the_same_in_and_out(theirs, found, tmp_path / "out", max_tokens=32)


def soft_prompted(found, pixels, starts, texts):
    """Logits of ours over the text's places, and the ids and mask that stand there."""
    words = found.language.words(starts, texts, max_tokens=16)
    return found.language.logits(found.model.trained(found.model.features(pixels)), words), words


def generation_model(kind: str, **changes):
    """Of transformers, upon a language model whose vocabulary has one token more, the place of a picture."""
    own, tokenizer = language(kind)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    own.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = blip2_config("even", text_config=own.config.to_dict(), image_token_index=len(tokenizer) - 1, **changes)
    return randomize(transformers.Blip2ForConditionalGeneration(config), 3, std=0.2), tokenizer


def logits_of_theirs(theirs, pixels, words, kind: str):
    places = torch.full((len(pixels), theirs.config.num_query_tokens), theirs.config.image_token_index)
    ids, mask = torch.cat([places, words.ids], 1), torch.cat([torch.ones_like(places), words.mask.long()], 1)
    more = {"labels": words.targets} if kind == "t5" else {}
    logits = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask, **more).logits
    return logits if kind == "t5" else logits[:, places.shape[1] - 1 : -1]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_stage_2_of_transformers_in_and_out(kind, tmp_path):
    """Of both of its classes, texts of unequal lengths; what is exported writes the same tokens as before."""
    theirs, tokenizer = generation_model(kind)
    theirs.save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    found, pixels = load_blip2(tmp_path / "in"), random_pixels(theirs, 3)
    assert found.tokenizer is None and found.language.reads == (kind == "t5")
    ours, words = soft_prompted(found, pixels, ["a photo of", "", "a"], TEXTS)
    learned = words.targets != -100
    torch.testing.assert_close(ours[learned], logits_of_theirs(theirs, pixels, words, kind)[learned], **CLOSE)
    export_generation(found.model, found.language, tmp_path / "out")
    for name in ("Blip2ForConditionalGeneration", "Blip2Model"):
        again = getattr(transformers, name).from_pretrained(tmp_path / "out")
        torch.testing.assert_close(logits_of_theirs(again, pixels, words, kind)[learned], ours[learned], **CLOSE)
    again = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out")
    start = {"pixel_values": pixels, "max_new_tokens": 5}
    assert torch.equal(again.generate(**start), theirs.generate(**start))


@torch.no_grad()
def test_a_language_model_without_a_token_for_pictures_gets_one_as_probable_as_what_begins_a_text(tmp_path):
    found = opened_stage2("llama", tmp_path)
    export_generation(found.model, found.language, tmp_path / "out")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    place = tokenizer.convert_tokens_to_ids("<image>")
    assert place == theirs.config.image_token_index == len(found.language.tokenizer)
    pixels = random_pixels(theirs, 2)
    ours, words = soft_prompted(found, pixels, ["a", "a"], TEXTS[:2])
    logits = logits_of_theirs(theirs, pixels, words, "llama")
    torch.testing.assert_close(logits[:, :, :place], ours, **CLOSE)
    torch.testing.assert_close(logits[:, :, place], ours[:, :, tokenizer.bos_token_id], **CLOSE)


def opened_stage2(kind: str, folder: Path) -> OpenedBlip2:
    """A BLIP-2 upon a language model as it was published."""
    theirs, tokenizer = generation_model(kind)
    theirs.save_pretrained(folder / "of_theirs")
    tokenizer.save_pretrained(folder / "of_theirs")
    model = load_blip2(folder / "of_theirs").model
    return OpenedBlip2(model, language=load_language(language_folder(kind, folder / "language"), precision="fp32"))


@torch.no_grad()
def test_lavis_files_in_and_out(tokenizer, tmp_path):
    """Its own names, with the image encoder and the head of ITG; then what was trained alone, as LAVIS saves it."""
    theirs = retrieval_folder("even", tokenizer, tmp_path / "in")
    wide, rows = theirs.config.qformer_config.hidden_size, tokenizer.dec + 1
    start, drawn = "Qformer.cls.predictions.", torch.Generator().manual_seed(5)
    shapes = {"bias": (rows,), "transform.dense.weight": (wide, wide), "transform.dense.bias": (wide,)}
    shapes |= {"transform.LayerNorm.weight": (wide,), "transform.LayerNorm.bias": (wide,)}
    state = theirs.state_dict()
    for key, value in state.items():
        if key.endswith("self_attn.qkv.bias"):
            value.view(3, -1)[1] = 0  # LAVIS has no bias of keys
    lavis = lavis_names(state) | {start + name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    lavis |= {"temp": torch.tensor(0.07), f"{start}decoder.weight": lavis["Qformer.bert.embeddings.word_embeddings.weight"]}
    lavis[f"{start}decoder.bias"] = lavis[f"{start}bias"]
    lavis["Qformer.bert.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save({"model": lavis}, tmp_path / "lavis.pth")
    save_vocab(tokenizer.vocab, tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match="name the one that the Q-Former was trained upon"):
        load_blip2(tmp_path / "lavis.pth")
    empty = randomize(load_blip2(tmp_path / "in").model.encoder, 9)
    found = load_blip2(tmp_path / "lavis.pth", encoder=of_vit(with_norm(empty), "x"))
    found.model.qformer.image_norm.eps = theirs.config.vision_config.layer_norm_eps  # LAVIS has 1e-5 there, the conversion 1e-6
    set_heads(found.model, theirs)
    pixels, (ids, mask) = random_pixels(theirs, 3), tokenize(tokenizer, TEXTS, max_tokens=20)
    for ours, other in zip(itm_itc(found.model, pixels, ids, mask), itm_itc_of_theirs(theirs, pixels, ids, mask), strict=True):
        torch.testing.assert_close(ours, other, **CLOSE)
    assert not found.model.qformer.missing
    save_lavis(found.model, tmp_path / "again.pth")
    trained = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    frozen = {key for key in lavis if key.startswith("visual_encoder.")}
    assert lavis.keys() - trained.keys() == frozen | {"temp", f"{start}decoder.weight", f"{start}decoder.bias", *position_ids(lavis)}
    assert all(torch.equal(value, lavis[key]) for key, value in trained.items())


def position_ids(state) -> set[str]:
    return {key for key in state if key.endswith("position_ids")}


def with_norm(vit):
    vit.norm = torch.nn.LayerNorm(vit.cfg.width)
    return vit


def set_heads(model, theirs) -> None:
    """No shape tells the number of heads; LAVIS has heads of 64, which a tiny model can't."""
    for block in model.qformer.blocks:
        for part in (block.attention, block.cross_attention):
            if part is not None:
                part.num_heads = theirs.config.qformer_config.num_attention_heads
