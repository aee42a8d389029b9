"""The network: three roles that share all but self-attention, and shortcuts that change no number."""

import torch

from blip_core.data import tokenize

TEXTS = ["a red ball", "there is a blue star on grass", "a photo of a green box next to a red ball"]


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_roles_share_all_but_self_attention(model, tokenizer):
    """Table 3 of the paper, "all but SA": a gradient of encoding touches no decoder self-attention, and the reverse."""
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    keys_values = model.keys_values(model.image_tokens(pixels(3)))
    model.match_logits(ids, mask, keys_values).sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.med.vocabulary_logits(model.caption_hidden(ids, model.keys_values(model.image_tokens(pixels(3))))).sum().backward()
    decoded = {n for n, p in model.named_parameters() if p.grad is not None}
    only_one = {n for n in touched ^ decoded if n.startswith("med.blocks")}
    assert only_one and all("encoder_attention" in n or "decoder_attention" in n for n in only_one)
    assert any("cross_attention" in n for n in touched & decoded) and any(".mlp." in n for n in touched & decoded)


def test_texts_of_one_image_share_its_keys_and_values(model, tokenizer):
    """Folding an image's texts into one query gives what repeating the image per text gives."""
    tokens = model.image_tokens(pixels(2))
    ids, mask = tokenize(tokenizer, TEXTS + TEXTS[::-1], max_tokens=20)
    folded = model.match_logits(ids, mask, model.keys_values(tokens))
    repeated = model.match_logits(ids, mask, model.keys_values(tokens.repeat_interleave(3, dim=0)))
    torch.testing.assert_close(folded, repeated, atol=1e-6, rtol=1e-6)


def test_padding_changes_nothing(model, tokenizer):
    short, long = tokenize(tokenizer, TEXTS[:1], max_tokens=20), tokenize(tokenizer, TEXTS, max_tokens=20)
    tokens = model.image_tokens(pixels(1))
    torch.testing.assert_close(model.text_features(*short)[0], model.text_features(*long)[0])
    alone = model.match_logits(*short, model.keys_values(tokens))
    padded = model.match_logits(*long, model.keys_values(tokens))[:1]
    torch.testing.assert_close(alone, padded, atol=1e-6, rtol=1e-6)


def test_decoding_is_causal_and_steps_equal_the_whole(model, tokenizer):
    """Token by token with cached keys and values, the decoder gives what one pass over the whole text gives."""
    ids, _ = tokenize(tokenizer, TEXTS[1:2], max_tokens=20)
    keys_values = model.keys_values(model.image_tokens(pixels(1)))
    whole = model.caption_hidden(ids, keys_values)
    ids = ids.clone()
    ids[:, 0] = model.special.dec
    past, steps = None, []
    for i in range(ids.shape[1]):
        hidden, past = model.med.step(ids[:, i : i + 1], keys_values, past)
        steps.append(hidden)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_enc_stands_first_when_matching(model, tokenizer):
    """The trained ITM score has [ENC] at position 0, whatever token the caller left there."""
    keys_values = model.keys_values(model.image_tokens(pixels(3)))
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    other = ids.clone()
    other[:, 0] = model.special.enc
    assert torch.equal(model.match_logits(ids, mask, keys_values), model.match_logits(other, mask, keys_values))
    hidden_with_cls = model.med.ground(ids, mask, keys_values)
    assert not torch.allclose(model.match_head(hidden_with_cls[:, 0]), model.match_logits(ids, mask, keys_values), atol=1e-3)
