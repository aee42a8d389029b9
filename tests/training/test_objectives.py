"""ITC, ITM and LM against slow references written from the papers' equations (BLIP section 3.2, ALBEF sections 3.2 and 3.3)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from blip_core.compute.padding import tokenize
from blip_core.config.contrast import ContrastConfig
from blip_core.config.training import LanguageConfig
from blip_core.files.content import hash64
from blip_core.training.contrast import Contrast, momentum_twin
from blip_core.training.loop import _Step, backward
from blip_core.training.objectives import (
    PretrainObjective,
    draw_negatives,
    hard_pairs,
    language_loss,
    matching_loss,
    pair_logits,
)
from blip_core.training.step import Batch

TEXTS = ["a red ball", "a blue star on grass", "there is a green box", "a photo of a red star", "a box and a ball", "a green ball"]


def contrast_cfg(**changes) -> ContrastConfig:
    values = dict(queue_size=8, momentum=0.9, alpha=0.4, alpha_ramp=0.0, hardness_ramp=0.0, temperature=0.1, temperature_range=(0.01, 0.5))
    return ContrastConfig(**{**values, **changes})


def batch_of(tokenizer, *, texts=None, images=None, step=0, progress=0.5, prompt_tokens=0) -> Batch:
    texts = texts or TEXTS
    ids, mask = tokenize(tokenizer, texts, max_tokens=20)
    images = images or list(range(len(texts)))
    pixels = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(100 + i)) for i in images])
    text_ids = torch.tensor([hash64(t) for t in texts])
    return Batch(
        pixels=pixels,
        ids=ids,
        mask=mask,
        prompt_tokens=prompt_tokens,
        image_ids=torch.tensor(images),
        text_ids=text_ids,
        step=step,
        progress=progress,
        seed=0,
    )


def run_contrast(contrast, model, batch):
    return contrast(model, batch, model.image_tokens(batch.pixels))


def test_itc_without_soft_targets_is_infonce_over_batch_and_queue(model, tokenizer):
    """Three batches through the queue; the last loss is cross-entropy over momentum features of batch and queue."""
    contrast = Contrast(model, contrast_cfg(alpha=0.0, queue_size=100))
    past_images, past_texts = [], []
    for step in range(3):
        images = list(range(6 * step, 6 * step + 6))
        batch = batch_of(
            tokenizer, texts=[f"{t} {'and grass' if step else ''} {'next to a star' if step == 2 else ''}" for t in TEXTS], images=images
        )
        loss, _ = run_contrast(contrast, model, batch)
        image, text = model.image_features(model.image_tokens(batch.pixels)), model.text_features(batch.ids, batch.mask)
        # the twin equals the model here: it was never updated
        candidates_text, candidates_image = torch.cat([text, *past_texts[::1]]), torch.cat([image, *past_images])
        expected = (
            F.cross_entropy(image @ candidates_text.T / 0.1, torch.arange(6))
            + F.cross_entropy(text @ candidates_image.T / 0.1, torch.arange(6))
        ) / 2
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        past_images.append(image.detach())
        past_texts.append(text.detach())


def test_itc_soft_targets_follow_albef(model, tokenizer):
    """Equation 6 of ALBEF, in loops: (1 - alpha) one-hot + alpha softmax of the twin's similarities."""
    contrast = Contrast(model, contrast_cfg(queue_size=0))
    with torch.no_grad():
        for parameter in contrast.twin.parameters():
            parameter.mul_(1.05)
    batch = batch_of(tokenizer)
    loss, _ = run_contrast(contrast, model, batch)
    twin = contrast.twin
    image, text = model.image_features(model.image_tokens(batch.pixels)), model.text_features(batch.ids, batch.mask)
    twin_image, twin_text = twin.image_features(twin.image_tokens(batch.pixels)), twin.text_features(batch.ids, batch.mask)
    total = 0.0
    for online, momentum, candidates in ((image, twin_image, twin_text), (text, twin_text, twin_image)):
        for i in range(6):
            logits = [float(online[i] @ c) / 0.1 for c in candidates]
            soft = torch.tensor([float(momentum[i] @ c) / 0.1 for c in candidates]).softmax(0)
            log_sum = math.log(sum(math.exp(v) for v in logits))
            total -= sum((0.4 * float(soft[j]) + 0.6 * (i == j)) * (logits[j] - log_sum) for j in range(6)) / 12
    assert float(loss) == pytest.approx(total, abs=1e-5)


def test_same_picture_is_a_positive_and_same_text_is_nothing(model, tokenizer):
    """Rows 0 and 1 show one picture; rows 2 and 3 have one text on two pictures."""
    contrast = Contrast(model, contrast_cfg(alpha=0.0, queue_size=0))
    texts = [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[2], TEXTS[4], TEXTS[5]]
    batch = batch_of(tokenizer, texts=texts, images=[0, 0, 2, 3, 4, 5])
    loss, similarities = run_contrast(contrast, model, batch)
    image, text = model.image_features(model.image_tokens(batch.pixels)), model.text_features(batch.ids, batch.mask)
    target = torch.eye(6)
    target[:2, :2] = 0.5
    hidden = torch.zeros(6, 6, dtype=torch.bool)
    hidden[2, 3] = hidden[3, 2] = True
    expected = 0
    for logits in (image @ text.T / 0.1, text @ image.T / 0.1):
        log_probability = logits.masked_fill(hidden, -math.inf).log_softmax(-1).masked_fill(hidden, 0)
        expected = expected - (target * log_probability).sum() / 12
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert similarities.related_BG[0, 1] and similarities.related_BG[2, 3] and not similarities.related_BG[0, 2]


@pytest.mark.parametrize("queue_size,batch_sizes", [(8, [3, 3, 3, 3]), (5, [2, 4, 1]), (4, [6, 5]), (1, [2, 3])])
def test_queue_holds_the_newest_features_for_any_sizes(model, queue_size, batch_sizes):
    """A ring buffer: after any batches it holds exactly the last queue_size entries."""
    contrast = Contrast(model, contrast_cfg(queue_size=queue_size))
    number, pushed = 0, []
    for size in batch_sizes:
        ids = torch.arange(number, number + size)
        features = ids[:, None].float().expand(-1, model.cfg.embed_dim)
        contrast._enqueue(image=features, text=features, image_id=ids, text_id=ids)
        number += size
        pushed += ids.tolist()[-queue_size:]
    assert sorted(contrast._filled("image_id").tolist()) == sorted(pushed[-queue_size:])
    assert torch.equal(contrast._filled("image")[:, 0].long(), contrast._filled("text_id"))


def test_momentum_update_is_an_average_and_leaves_the_model(model):
    contrast = Contrast(model, contrast_cfg(momentum=0.9))
    before = {n: p.clone() for n, p in contrast.twin.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    contrast.update_twin(model)
    for name, parameter in contrast.twin.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in contrast.twin.parameters())


def test_the_twin_has_the_towers_features(model, tokenizer):
    ids, mask = tokenize(tokenizer, TEXTS, max_tokens=20)
    torch.testing.assert_close(momentum_twin(model).text_features(ids, mask), model.text_features(ids, mask))


def test_negatives_are_drawn_in_proportion_to_similarity_and_never_related():
    similarity = torch.tensor([[5.0, 1.0, 0.0, 2.0]]).expand(40_000, -1)
    related = torch.tensor([[True, False, False, False]]).expand(40_000, -1)
    index, exists = draw_negatives(similarity, related, torch.rand(40_000, generator=torch.Generator().manual_seed(0)), hardness=1.0)
    share = torch.bincount(index, minlength=4) / 40_000
    torch.testing.assert_close(share, torch.tensor([-math.inf, 1.0, 0.0, 2.0]).softmax(0), atol=0.01, rtol=0)
    assert exists.all()
    uniform, _ = draw_negatives(similarity, related, torch.rand(40_000, generator=torch.Generator().manual_seed(1)), hardness=0.0)
    torch.testing.assert_close(torch.bincount(uniform, minlength=4) / 40_000, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.01, rtol=0)


def test_micro_batches_draw_what_the_whole_batch_would(tokenizer):
    """No two of them share their numbers, so one in three parts and one whole draw alike."""
    whole = batch_of(tokenizer, texts=TEXTS * 3, step=4)
    parts = [replace(batch_of(tokenizer, step=4), part=i, parts=3) for i in range(3)]
    assert torch.equal(torch.cat([p.draws for p in parts], dim=1), whole.draws)


def test_itm_against_one_pass_per_pair(model, tokenizer):
    """Each pair alone through the network, with the negatives that the objective drew."""
    contrast = Contrast(model, contrast_cfg())
    batch = batch_of(tokenizer, step=3)
    image_tokens = model.image_tokens(batch.pixels)
    _, similarities = contrast(model, batch, image_tokens)
    pairs = hard_pairs(batch, similarities, 1.0, pad=tokenizer.pad)
    loss = matching_loss(pair_logits(model, pairs, image_tokens, model.keys_values(image_tokens)), pairs)
    draws = torch.rand(2, 6, generator=torch.Generator().manual_seed(batch.seed * 1_000_003 + batch.step))
    texts, _ = draw_negatives(similarities.image_to_text_BG, similarities.related_BG, draws[0], 1.0)
    images, _ = draw_negatives(similarities.text_to_image_BG, similarities.related_BG, draws[1], 1.0)
    total = 0.0
    for i in range(6):
        for image, text, label in ((i, i, 1), (i, int(texts[i]), 0), (int(images[i]), i, 0)):
            one = model.keys_values(model.image_tokens(batch.pixels[image : image + 1]))
            logits = model.match_logits(batch.ids[text : text + 1], batch.mask[text : text + 1], one)
            total += float(F.cross_entropy(logits, torch.tensor([label]))) / 18
    assert float(loss) == pytest.approx(total, abs=1e-5)


def test_a_batch_of_one_picture_has_no_negative_and_trains_all_the_same(model, tokenizer):
    objective = PretrainObjective(model, contrast_cfg(), None)
    losses = objective(model, batch_of(tokenizer, images=[7] * 6))
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()


def test_lm_masks_prompt_and_padding(model, tokenizer):
    """Label smoothing 0.1, mean over the tokens behind the prompt, [SEP] included: in loops."""
    batch = batch_of(tokenizer, prompt_tokens=2)
    loss = language_loss(model, batch, model.keys_values(model.image_tokens(batch.pixels)), 0.1)
    total, count = 0.0, 0
    for i in range(6):
        one = model.keys_values(model.image_tokens(batch.pixels[i : i + 1]))
        length = int(batch.mask[i].sum())
        log_probability = model.med.vocabulary_logits(model.caption_hidden(batch.ids[i : i + 1, :length], one)).log_softmax(-1)[0]
        for place in range(3, length):  # [CLS] and two tokens of prompt are given
            row = log_probability[place - 1]
            total -= 0.9 * float(row[batch.ids[i, place]]) + 0.1 * float(row.mean())
            count += 1
    assert float(loss) == pytest.approx(total / count, abs=1e-5)


def test_a_step_never_waits_for_the_device(model, tokenizer):
    """On torch's device without values, whatever asks for a value raises: counting places, drawing by a number, `.item()`. The forward and
    backward pass, the momentum update and the temperature's bound ask for none, with a prompt and with empty texts. What is left is one
    question for each step: are the losses finite (`_require_finite`)? Several processes ask besides for the longest text of all."""
    nowhere = torch.device("meta")
    with pytest.raises(Exception, match="meta"):
        torch.ones(3, device=nowhere).nonzero()
    objective = PretrainObjective(model, contrast_cfg(queue_size=4), LanguageConfig(label_smoothing=0.1, prompt="")).to(nowhere)
    model.to(nowhere).train()
    for step in range(2):
        batch = batch_of(tokenizer, texts=[*TEXTS[:5], ""], step=step, prompt_tokens=1).to(nowhere)
        objective.before_step(model, batch)
        sum(backward(_Step(model, objective), [batch], precision="fp32").values())
        objective.after_step()


@pytest.mark.slow  # tracing takes six CPU seconds
def test_the_losses_of_a_step_are_one_graph(model, tokenizer):
    """torch.compile finds nothing at which it has to break off: model, momentum twin, queue and draws."""
    nowhere = torch.device("meta")
    objective = PretrainObjective(model, contrast_cfg(queue_size=4), LanguageConfig(label_smoothing=0.1, prompt="")).to(nowhere)
    found = torch._dynamo.explain(_Step(model.to(nowhere).train(), objective))(batch_of(tokenizer).to(nowhere))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
