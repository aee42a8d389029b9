"""Each pass of the Q-Former against the slow reference, whose masks are whole matrices."""

import pytest
import torch

from blip_core.compute.padding import tokenize
from blip_core.model.generate import Limits, beam_search, greedy
from tests.support.plain_qformer import match, next_tokens, run, similarity, tiny_qformer

TEXTS = ["a red ball", "there is a green box next to a blue star", "a star", "a photo of grass"]
CLOSE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture(params=[{}, {"cross_every": 1, "num_queries": 1, "depth": 1}, {"cross_every": 3, "num_queries": 5}], ids=str)
def qformer(request, tokenizer):
    return tiny_qformer(tokenizer, **request.param)


@pytest.fixture
def pairs(tokenizer):
    """Two pictures and two texts of each, of unequal lengths: features, ids, mask, and the ids of each text alone."""
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    features = torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(1))
    return features, ids, mask, [row[own] for row, own in zip(ids, mask, strict=True)]


@torch.no_grad()
def test_itc_features_are_those_of_passes_that_do_not_see_each_other(qformer, pairs):
    features, ids, mask, alone = pairs
    queries, _ = qformer.look(qformer.keys_values(qformer.image_tokens(features)))
    torch.testing.assert_close(queries[1], run(qformer, "look", features[1])[0], **CLOSE)
    found = (qformer.image_features(queries) @ qformer.text_features(ids, mask).T).amax(1)
    for i, picture in enumerate(features):
        for j, text in enumerate(alone):
            torch.testing.assert_close(found[i, j], similarity(qformer, picture, text), **CLOSE)


@torch.no_grad()
def test_itm_logits_are_the_mean_over_queries_that_see_the_text(qformer, pairs):
    """One group of two texts a picture; then three groups in one pass."""
    features, ids, mask, alone = pairs
    images = qformer.keys_values(qformer.image_tokens(features))
    expected = torch.stack([match(qformer, features[i // 2], text) for i, text in enumerate(alone)])
    torch.testing.assert_close(qformer.match_logits(ids, mask, images), expected, **CLOSE)
    swapped = [(k.flip(0), v.flip(0)) for k, v in images]
    both = qformer.match_logits(ids, mask, images, swapped)
    turned = [match(qformer, features[i], alone[j]) for i, j in ((0, 0), (1, 1), (1, 2), (0, 3))]
    torch.testing.assert_close(both, torch.stack(turned), **CLOSE)


@torch.no_grad()
def test_itg_by_cached_queries_is_the_pass_of_both_by_the_causal_mask(qformer, pairs):
    features, ids, mask, alone = pairs
    _, seen = qformer.look(qformer.keys_values(qformer.image_tokens(features)))
    logits = qformer.vocabulary_logits(qformer.caption_hidden(ids, seen, mask))
    for i, text in enumerate(alone):
        torch.testing.assert_close(logits[i, : len(text)], next_tokens(qformer, features[i // 2], text), **CLOSE)


@torch.no_grad()
def test_captions_are_written_token_by_token_as_whole_texts_are_told(qformer, tokenizer, pairs):
    """The greedy caption is what the reference finds most probable at each place; a search of several beams is no less probable."""
    features, start = pairs[0], tokenizer.encode_prompt("a photo")
    _, seen = qformer.look(qformer.keys_values(qformer.image_tokens(features)))
    written = greedy(qformer, seen, start, Limits(min_tokens=0, max_tokens=5))
    for picture, new in zip(features, written.tolist(), strict=True):
        said = list(start)
        for token in new[: new.index(tokenizer.sep) + 1 if tokenizer.sep in new else None]:
            assert int(next_tokens(qformer, picture, torch.tensor(said))[-1].argmax()) == token
            said.append(token)
    assert beam_search(qformer, seen, start, Limits(0, 5), beams=3, num_return=2).shape[:2] == (2, 2)


def test_without_its_text_parts_it_looks_as_before_and_says_what_it_lacks(tokenizer, pairs):
    whole, features, ids, mask = tiny_qformer(tokenizer), *pairs[:3]
    before = whole.look(whole.keys_values(whole.image_tokens(features)))[0]
    half = whole.drop_text()
    assert not [name for name, _ in half.named_parameters() if name.startswith(("tokens", "head", "text")) or "text_ffn" in name]
    assert torch.equal(half.look(half.keys_values(half.image_tokens(features)))[0], before)
    with pytest.raises(ValueError, match=r"text \(embeddings and feed-forwards of texts\), contrast .*not in the loaded checkpoint"):
        half.text_features(ids, mask)
    with pytest.raises(ValueError, match="language"):
        greedy(half, [], [0], Limits(0, 3))
