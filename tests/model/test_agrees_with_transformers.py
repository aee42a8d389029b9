"""The same weights give the same numbers as transformers' BLIP: logits, losses, features, scores and captions."""

import pytest
import torch

from blip_core.compute.padding import tokenize
from blip_core.config.training import LanguageConfig
from blip_core.model.generate import Limits, beam_search, draw_nucleus
from blip_core.training.objectives import language_loss
from blip_core.training.step import Batch
from blip_core.weights.load import load_pretrained
from blip_core.weights.pretrained import load_blip
from tests.support.peers import SIZES, peer, random_pixels, save

TEXTS = ["a photo of a red ball", "a photo of a blue star on grass", "a photo of grass", "a photo of a green box next to a red star"]
PROMPT = "a photo of "
CLOSE = dict(atol=1e-5, rtol=0)
everywhere = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pair(name, size, tokenizer, folder, **options):
    """A model of transformers and ours, filled from the folder that it saved."""
    theirs = peer(name, size, tokenizer, **options)
    return theirs, load_pretrained(save(theirs, tokenizer, folder))[0]


def first(ids: torch.Tensor, token: int) -> torch.Tensor:
    ids = ids.clone()
    ids[:, 0] = token
    return ids


@everywhere
@pytest.mark.parametrize("seed", [0, 1])
def test_captioning_logits(size, seed, tokenizer, tmp_path):
    theirs, ours = pair("BlipForConditionalGeneration", size, tokenizer, tmp_path, seed=seed)
    pixels = random_pixels(theirs, 4, seed)
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    expected = theirs(pixels, first(ids, tokenizer.dec), attention_mask=mask.long()).logits
    got = ours.med.vocabulary_logits(ours.caption_hidden(ids, ours.keys_values(ours.image_tokens(pixels))))
    torch.testing.assert_close(got[mask], expected[mask], **CLOSE)


@everywhere
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_captioning_loss_with_the_prompt_masked(size, smoothing, tokenizer, tmp_path):
    theirs, ours = pair("BlipForConditionalGeneration", size, tokenizer, tmp_path, label_smoothing=smoothing)
    pixels = random_pixels(theirs, 4)
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    prompt_tokens = len(tokenizer.encode_prompt(PROMPT)) - 1
    labels = first(ids, tokenizer.dec).masked_fill(~mask, -100)
    labels[:, : prompt_tokens + 1] = -100
    expected = theirs(pixels, first(ids, tokenizer.dec), attention_mask=mask.long(), labels=labels).loss
    same = torch.arange(4)
    batch = Batch(
        pixels=pixels, ids=ids, mask=mask, prompt_tokens=prompt_tokens, image_ids=same, text_ids=same, step=0, progress=0.0, seed=0
    )
    cfg = LanguageConfig(label_smoothing=smoothing, prompt=PROMPT)
    got = language_loss(ours, batch, ours.keys_values(ours.image_tokens(pixels)), cfg.label_smoothing)
    torch.testing.assert_close(got, expected, **CLOSE)


@everywhere
@pytest.mark.parametrize("seed", [0, 1])
def test_retrieval_scores(size, seed, tokenizer, tmp_path):
    """ITM with [ENC] given to theirs by hand, and with [CLS] asked of ours; ITC as all cosines."""
    theirs, ours = pair("BlipForImageTextRetrieval", size, tokenizer, tmp_path, seed=seed)
    pixels = random_pixels(theirs, 4, seed)
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    tokens = ours.image_tokens(pixels)
    for match_token, token in (("enc", tokenizer.enc), ("cls", tokenizer.cls)):
        expected = theirs(first(ids, token), pixels, attention_mask=mask.long()).itm_score
        ours.match_token = match_token
        torch.testing.assert_close(ours.match_logits(ids, mask, ours.keys_values(tokens)), expected, **CLOSE)
    expected = theirs(ids, pixels, attention_mask=mask.long(), use_itm_head=False).itm_score
    torch.testing.assert_close(ours.image_features(tokens) @ ours.text_features(ids, mask).T, expected, **CLOSE)


@everywhere
def test_states_of_blip_model(size, tokenizer, tmp_path):
    """BlipModel has heads of its own that no BLIP was trained with; under them its towers are ours."""
    theirs, ours = pair("BlipModel", size, tokenizer, tmp_path)
    pixels = random_pixels(theirs, 4)
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    tokens, hidden = ours.image_tokens(pixels), ours.med.encode(ids, mask)
    image = theirs.visual_projection(theirs.vision_model.post_layernorm(tokens[:, 0]))
    text = theirs.text_projection(theirs.text_model.pooler(hidden))
    torch.testing.assert_close(image, theirs.get_image_features(pixels).pooler_output, **CLOSE)
    torch.testing.assert_close(text, theirs.get_text_features(ids, attention_mask=mask.long()).pooler_output, **CLOSE)
    torch.testing.assert_close(hidden[mask], theirs.text_model(ids, attention_mask=mask.long()).last_hidden_state[mask], **CLOSE)


@everywhere
def test_question_states(size, tokenizer, tmp_path):
    """The question encoder of BlipForQuestionAnswering is our image-grounded encoder. Its decoder has no place here."""
    theirs, ours = pair("BlipForQuestionAnswering", size, tokenizer, tmp_path)
    pixels = random_pixels(theirs, 4)
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    tokens = theirs.vision_model(pixels).last_hidden_state
    expected = theirs.text_encoder(ids, attention_mask=mask.long(), encoder_hidden_states=tokens).last_hidden_state
    got = ours.med.ground(ids, mask, ours.keys_values(ours.image_tokens(pixels)))
    torch.testing.assert_close(got[mask], expected[mask], **CLOSE)


def captions(theirs, ours, tokenizer, prompt: str, limits: Limits, *, beams: int, length_penalty: float, seed: int):
    """Ids of new tokens up to [SEP] by both, of every finished beam of three images: a list of lists each."""
    pixels, start = random_pixels(theirs, 3, seed), tokenizer.encode_prompt(prompt)
    # generate takes [CLS] prompt [SEP], and its lengths count the prompt
    given = torch.tensor([[tokenizer.cls, *start[1:], tokenizer.sep]]).repeat(3, 1)
    expected = theirs.generate(
        pixels,
        input_ids=given,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        min_length=len(start) + limits.min_tokens,
        max_length=len(start) + limits.max_tokens,
        repetition_penalty=limits.repetition_penalty,
        length_penalty=length_penalty,
    )[:, len(start) :]
    found = ours.keys_values(ours.image_tokens(pixels))
    got = beam_search(ours, found, start, limits, beams=beams, num_return=beams, length_penalty=length_penalty).flatten(0, 1)
    return ended(expected, tokenizer), ended(got, tokenizer)


def ended(ids: torch.Tensor, tokenizer) -> list[list[int]]:
    """Without what stands behind the first [SEP]: padding, but more of [SEP] by beam search of transformers, where [PAD] is 0."""
    return [row[: row.index(tokenizer.sep) + 1] if tokenizer.sep in row else row for row in ids.tolist()]


def talkative(size: str, tokenizer, seed: int):
    """A captioning model that ends its captions sooner or later, by the seed."""
    theirs = peer("BlipForConditionalGeneration", size, tokenizer, seed=seed)
    theirs.text_decoder.cls.predictions.bias[tokenizer.sep] += 0.5 * (seed % 5)
    theirs.text_decoder.cls.predictions.bias[tokenizer.pad] -= 9.0  # a random model would write [PAD], which no trained one does
    return theirs


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_captions_are_token_for_token_those_of_generate(beams, prompt, tokenizer, tmp_path):
    lengths = set()
    for seed in range(6):
        size = list(SIZES)[seed % len(SIZES)]
        theirs = talkative(size, tokenizer, seed)
        ours = load_pretrained(save(theirs, tokenizer, tmp_path / str(seed)))[0]
        for penalty, length_penalty, min_tokens in ((1.0, 1.0, 0), (1.3, 1.0, 3), (1.0, -1.0, 2), (1.1, 2.0, 0)):
            limits = Limits(min_tokens=min_tokens, max_tokens=8, repetition_penalty=penalty)
            expected, got = captions(theirs, ours, tokenizer, prompt, limits, beams=beams, length_penalty=length_penalty, seed=seed)
            assert got == expected, (seed, limits, length_penalty)
            lengths |= {len(c) for c in got}
    assert len(lengths) > 3, "captions of few lengths prove little"


def test_nucleus_keeps_the_tokens_that_transformers_keeps():
    from transformers import TopPLogitsWarper

    logits = 3 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    draws = torch.linspace(0, 1 - 1e-6, 5000)
    for p in (0.5, 0.9, 0.95):
        kept = TopPLogitsWarper(p)(None, logits).isfinite()
        for row in range(len(logits)):
            drawn = draw_nucleus(logits[row].expand(len(draws), -1), p, draws).unique()
            likely = kept[row] & (logits[row].softmax(-1) > 1e-3)  # what is rarer may fall between two draws
            assert set(likely.nonzero().flatten().tolist()) <= set(drawn.tolist()) <= set(kept[row].nonzero().flatten().tolist())


@pytest.mark.slow
def test_vit_b16_agrees(tmp_path):
    """The sizes of the paper: ViT-B/16, BERT-base, 30524 tokens, 224 pixels."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer
    from blip_core.weights.checkpoint import new_model
    from blip_core.weights.sizes import huggingface_config

    tokenizer = bert_tokenizer([*BERT_TOKENS, *(f"w{i}" for i in range(30522 - len(BERT_TOKENS)))])
    ids_of = dict(bos_token_id=tokenizer.dec, sep_token_id=tokenizer.sep, pad_token_id=tokenizer.pad)
    config = BlipConfig(text_config=dict(num_attention_heads=12, **ids_of), vision_config=dict(image_size=224, initializer_range=0.02))
    torch.manual_seed(0)
    theirs = BlipForConditionalGeneration(config).eval()
    config = theirs.config.to_dict()
    ours = new_model(huggingface_config(config, tmp_path), tokenizer, seed=0).eval()
    load_blip(ours, theirs.state_dict(), source="ViT-B/16")
    assert sum(p.numel() for n, p in ours.named_parameters() if n.startswith("vit.")) == 85_798_656
    pixels = random_pixels(theirs, 2)
    ids = torch.randint(5, tokenizer.size - 2, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = theirs(pixels, first(ids, tokenizer.dec))
    tokens = ours.image_tokens(pixels)
    torch.testing.assert_close(tokens, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(ours.med.vocabulary_logits(ours.caption_hidden(ids, ours.keys_values(tokens))), expected.logits, **CLOSE)
