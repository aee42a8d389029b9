"""Question answering against transformers' BlipForQuestionAnswering with random weights, its traps taken out."""

import pytest
import torch

from blip_core.compute.padding import tokenize
from blip_core.model.generate import Limits, beam_search
from blip_core.model.vqa import rank_answers
from blip_core.weights.vqa import load_vqa, vqa_weights
from tests.support.peers import authors_names, peer, random_pixels, save

QUESTIONS = ["what is red", "how many green balls are on the grass", "is there a star"]
ANSWERS = ["a red ball", "blue", "a green box", "a star on grass", "grass", "a photo"]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[0, 1])
def both(request, tokenizer, tmp_path):
    """A model of transformers, ours with its weights and its [CLS], and pixels for the questions."""
    theirs = peer("BlipForQuestionAnswering", "equal", tokenizer, seed=request.param)
    ours, _ = load_vqa(save(theirs, tokenizer, tmp_path), first="cls")
    return theirs, ours, random_pixels(theirs, len(QUESTIONS), request.param)


def test_the_loss_of_an_answer_is_that_of_transformers(both, tokenizer):
    """Ours of a padded batch, theirs of a question alone: theirs changes with the padding. Decoder ids are given, for by itself it begins
    answers with [CLS]."""
    theirs, ours, pixels = both
    ids, mask = tokenize(tokenizer, QUESTIONS, max_tokens=20)
    answer_ids, answer_mask = tokenize(tokenizer, ANSWERS[:3], max_tokens=10)
    got = ours.answer_loss(ours.memory(pixels, ids, mask), answer_ids, answer_mask, label_smoothing=0.0)
    answer_ids[:, 0] = tokenizer.dec
    for i, question in enumerate(QUESTIONS):
        one = slice(i, i + 1)
        alone, alone_mask = tokenize(tokenizer, [question], max_tokens=20)
        out = theirs(
            input_ids=alone,
            attention_mask=alone_mask.long(),
            pixel_values=pixels[one],
            decoder_input_ids=answer_ids[one],
            decoder_attention_mask=answer_mask[one].long(),
            labels=answer_ids[one].masked_fill(~answer_mask[one], -100),
        )
        assert float(out.loss) == pytest.approx(float(got[i]) / (int(answer_mask[i].sum()) - 1), abs=1e-5)


def test_a_question_does_not_feel_the_others_of_its_batch(both, tokenizer):
    """The public code shows the decoder the padding when it generates."""
    _, ours, pixels = both
    limits = Limits(min_tokens=1, max_tokens=6)
    ids, mask = tokenize(tokenizer, QUESTIONS, max_tokens=20)
    together = beam_search(ours, ours.memory(pixels, ids, mask), [tokenizer.dec], limits, beams=3)
    listed, list_mask = tokenize(tokenizer, ANSWERS, max_tokens=10)
    ranked = rank_answers(ours, ours.memory(pixels, ids, mask), listed, list_mask, best=4)
    for i, question in enumerate(QUESTIONS):
        alone, alone_mask = tokenize(tokenizer, [question], max_tokens=20)
        memory = ours.memory(pixels[i : i + 1], alone, alone_mask)
        written = beam_search(ours, memory, [tokenizer.dec], limits, beams=3)[0, 0]
        assert tokenizer.decode(written.tolist()) == tokenizer.decode(together[i, 0].tolist())
        assert rank_answers(ours, memory, listed, list_mask, best=4).item() == ranked[i]


def test_an_answer_is_written_as_transformers_writes_it(both, tokenizer):
    theirs, ours, pixels = both
    ids, mask = tokenize(tokenizer, QUESTIONS[:1], max_tokens=20)
    theirs.decoder_start_token_id = tokenizer.dec
    expected = theirs.generate(ids, pixels[:1], attention_mask=mask.long(), num_beams=3, max_length=7, do_sample=False)[0]
    got = beam_search(ours, ours.memory(pixels[:1], ids, mask), [tokenizer.dec], Limits(min_tokens=0, max_tokens=6), beams=3)
    assert tokenizer.decode(got[0, 0].tolist()) == tokenizer.decode(expected[1:].tolist())


def test_ranking_takes_the_least_loss_of_those_that_begin_best(both, tokenizer):
    """By a slow reference: one question, one answer at a time."""
    _, ours, pixels = both
    ids, mask = tokenize(tokenizer, QUESTIONS, max_tokens=20)
    listed, list_mask = tokenize(tokenizer, ANSWERS, max_tokens=10)
    memory = ours.memory(pixels, ids, mask)
    for best in (1, 2, 4, 99):
        got = rank_answers(ours, memory, listed, list_mask, best=best)
        for i in range(len(QUESTIONS)):
            own = [tuple(t[i : i + 1] for t in layer) for layer in memory]
            start = ours.med.vocabulary_logits(ours.med.decode(torch.tensor([[tokenizer.dec]]), own))[0, 0]
            order = sorted(range(len(ANSWERS)), key=lambda a: (-float(start[listed[a, 1]]), a))[:best]
            losses = [float(ours.answer_loss(own, listed[a : a + 1], list_mask[a : a + 1], label_smoothing=0.1)) for a in order]
            assert got[i] == order[losses.index(min(losses))]


def test_weights_go_out_and_come_back_and_those_of_the_authors_come_in(both, tokenizer, tmp_path):
    theirs, ours, _ = both
    state = theirs.state_dict()
    out = vqa_weights(ours)
    assert {k for k in state if not k.endswith(("position_ids", "decoder.weight", "decoder.bias"))} == set(out)
    assert all(torch.equal(out[k], state[k]) for k in out)
    path = tmp_path / "vqa.pth"
    torch.save({"model": authors_names(state)}, path)
    again, _ = load_vqa(path, vocab=tmp_path / "vocab.txt")
    assert again.first == "enc"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


def test_other_widths_can_not_go_out(tokenizer, tmp_path):
    from blip_core.model.vqa import vqa_of
    from blip_core.weights.load import load_pretrained

    captioner, _ = load_pretrained(save(peer("BlipForConditionalGeneration", "wide_text", tokenizer), tokenizer, tmp_path))
    captioner.missing = frozenset()
    with pytest.raises(ValueError, match="only equal widths fit"):
        vqa_weights(vqa_of(captioner))
