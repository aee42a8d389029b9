"""Masked tokens, NCD and distillation against slow references written from their formulas, one text and one token at a time."""

import math
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers.models import WordLevel

from blip_core.config.training import ContrastiveDecodingConfig, LanguageConfig, OptionalConfig
from blip_core.model import vocabulary
from blip_core.tokenizer.tokenizer import Special, Tokenizer
from blip_core.tokenizer.wordpiece import bert_tokenizer
from blip_core.training.distil import Teacher
from blip_core.training.optional import OptionalObjective, masked_texts, noisy_copies, uniform, words
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.trainings import Training
from tests.training.test_objectives import TEXTS, batch_of, contrast_cfg

NCD = ContrastiveDecodingConfig(weight=0.5, copies=2, replaced=0.4)


def pretrain_cfg(params, **optional):
    """The settings of a pre-training with some of the optional objectives."""
    language = LanguageConfig(label_smoothing=0.1, prompt="")
    return params.pretrain.model_copy(update={"contrast": contrast_cfg(), "language": language, "optional": OptionalConfig(**optional)})


@pytest.fixture(scope="module")
def teacher(model_cfg, tokenizer, tmp_path_factory):
    """A model of other sizes than the student's, and its folder."""
    text = model_cfg.text.model_copy(update={"width": 30, "max_positions": 40})
    model = new_model(model_cfg.model_copy(update={"text": text, "embed_dim": 8}), tokenizer, seed=5).eval()
    folder = tmp_path_factory.mktemp("teacher") / "large"
    save_model(model, tokenizer, folder)
    return model, folder


def distillation(folder, **weights) -> dict:
    return {"distillation": {"teacher": folder, **{"itc": 0.0, "itm": 0.0, "lm": 0.0, **weights}}}


def test_draws_follow_from_seed_step_picture_and_text_alone(tokenizer):
    """Whatever else is in the batch, and however it is padded; each of the four changes them; and they are uniform."""
    whole = batch_of(tokenizer, texts=TEXTS * 50, images=list(range(300)), step=3)
    part = batch_of(tokenizer, texts=TEXTS[:2], images=[6, 7], step=3)
    drawn = uniform(whole, stream=2, num=20)
    assert torch.equal(uniform(part, stream=2, num=5), drawn[6:8, :5])
    for other in (
        replace(part, step=4),
        replace(part, seed=1),
        replace(part, text_ids=part.text_ids + 1),
        replace(part, image_ids=part.image_ids + 9),
    ):
        assert not (uniform(other, stream=2, num=5) == drawn[6:8, :5]).any()
    assert not (uniform(whole, stream=3, num=20) == drawn).any()
    assert drawn.min() >= 0 and drawn.max() < 1 and drawn.unique().numel() > 5_990
    assert torch.histc(drawn, 10, 0, 1) == pytest.approx([600] * 10, abs=90) and abs(float(drawn[:, 0] @ drawn[:, 1]) / 300 - 0.25) < 0.05


def test_masks_are_a_share_of_the_words_and_nothing_else(tokenizer):
    batch = batch_of(tokenizer, texts=TEXTS * 50, images=list(range(300)), prompt_tokens=1)
    masked = masked_texts(batch, 0.15, tokenizer.mask)
    changed = masked != batch.ids
    assert (masked[changed] == tokenizer.mask).all()
    for row, text in zip(changed, TEXTS * 50, strict=True):
        last = len(tokenizer.encode(text, max_tokens=20)) - 1
        assert not row[:2].any() and not row[last:].any()  # [CLS] and the prompt; [SEP] and padding
    assert float(changed.sum() / words(batch).sum()) == pytest.approx(0.15, abs=0.03)


def test_masked_texts_are_read_by_itc_and_itm_and_never_by_lm(model, tokenizer, params):
    """All words masked: captions that differ in words alone look alike to the encoder, and LM is what it was."""
    batch = batch_of(tokenizer, texts=["a red ball", "a blue star"] * 3)
    plain = OptionalObjective(model, tokenizer, pretrain_cfg(params))(model, batch)
    objective = OptionalObjective(model, tokenizer, pretrain_cfg(params, masked_tokens=1.0))
    masked = objective(model, batch)
    assert masked["lm"] == plain["lm"] and masked["itc"] != plain["itc"] and masked["itm"] != plain["itm"]
    assert objective.contrast.vitals()["text_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_a_vocabulary_without_a_token_that_hides_is_refused(model, params):
    pieces = tokenizers.Tokenizer(WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}, unk_token="[UNK]"))
    bare = Tokenizer(pieces, Special("[PAD]", "[CLS]", "[SEP]", "[UNK]"))
    with pytest.raises(ValueError, match="masked_tokens: the vocabulary has neither"):
        OptionalObjective(model, bare, pretrain_cfg(params, masked_tokens=0.15))


def test_copies_replace_words_by_words_of_the_batch(tokenizer):
    batch = batch_of(tokenizer, texts=TEXTS * 40, images=list(range(240)), prompt_tokens=1)
    ids, differs = noisy_copies(batch, NCD, pad=tokenizer.pad)
    spoken = set(batch.ids[words(batch)].tolist())
    changed = ids != batch.ids[:, None]
    assert not (changed & ~words(batch)[:, None]).any() and set(ids[changed].tolist()) <= spoken
    assert torch.equal(differs, changed.any(2)) and not torch.equal(ids[:, 0], ids[:, 1])
    # 0.4 of the words or one at least; some draw the word that stood there
    assert 0.25 < float(changed.sum() / 2 / words(batch).sum()) < 0.45 and 0.8 < float(differs.float().mean()) < 1


def test_a_text_without_words_is_no_noise_and_gives_none(tokenizer, model, params):
    batch = batch_of(tokenizer, texts=["", "a red ball", "", "a blue star", "", ""])
    ids, differs = noisy_copies(batch, NCD, pad=tokenizer.pad)
    assert not differs[[0, 2, 4, 5]].any() and not (ids[[1, 3]] == tokenizer.sep)[:, :, 1:4].any()
    only_empty = batch_of(tokenizer, texts=["", "", ""])
    objective = OptionalObjective(model, tokenizer, pretrain_cfg(params, contrastive_decoding=NCD))
    assert objective(model, only_empty)["ncd"] == 0
    assert objective.vitals(only_empty)["ncd_chance"] == pytest.approx(0.5 * math.log(2))


def mean_log_likelihood(model, batch, row: int, ids) -> float:
    """f(x, y): one text alone, token by token, its prompt of one token not counted."""
    one = model.keys_values(model.image_tokens(batch.pixels[row : row + 1]))
    length = int(batch.mask[row].sum())
    log_probability = model.med.vocabulary_logits(model.caption_hidden(ids[None, :length], one))[0].log_softmax(-1)
    places = range(1 + batch.prompt_tokens, length)
    return sum(float(log_probability[t - 1, ids[t]]) for t in places) / len(places)


def test_ncd_is_its_formula(model, tokenizer, params):
    """-log exp f(x, y) / sum exp f(x, y'), y' the caption and those of its copies that differ, by one pass for each."""
    batch = batch_of(tokenizer, step=2, prompt_tokens=1)
    objective = OptionalObjective(model, tokenizer, pretrain_cfg(params, contrastive_decoding=NCD))
    got = objective(model, batch)
    ids, differs = noisy_copies(batch, NCD, pad=tokenizer.pad)
    losses, chances = [], []
    with torch.no_grad():
        for row in range(6):
            own = mean_log_likelihood(model, batch, row, batch.ids[row])
            noise = [mean_log_likelihood(model, batch, row, ids[row, k]) for k in range(2) if differs[row, k]]
            if noise:
                losses.append(-math.log(math.exp(own) / sum(math.exp(f) for f in [own, *noise])))
                chances.append(math.log(1 + len(noise)))
    assert float(got["ncd"].detach()) == pytest.approx(0.5 * sum(losses) / len(losses), abs=1e-5)
    assert objective.vitals(batch)["ncd_chance"] == pytest.approx(0.5 * sum(chances) / len(chances), abs=1e-6)
    assert {"itc", "itm", "lm", "ncd"} == got.keys()


def kl(teacher, student) -> float:
    """KL of two lists of logits, entry by entry."""
    t, s = torch.tensor(teacher).softmax(0).tolist(), torch.tensor(student).softmax(0).tolist()
    return sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))


def test_distilled_itc_is_kl_over_the_pairs(model, tokenizer, params, teacher):
    """At the student's temperature; a text that another picture has too is left out."""
    large, folder = teacher
    batch = batch_of(tokenizer, texts=[*TEXTS[:5], TEXTS[0]])
    got = OptionalObjective(model, tokenizer, pretrain_cfg(params, **distillation(folder, itc=2.0)))(model, batch)
    own, theirs = ([m.image_features(m.image_tokens(batch.pixels)), m.text_features(batch.ids, batch.mask)] for m in (model, large))
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(6):
            others = [j for j in range(6) if {i, j} != {0, 5}]  # rows 0 and 5 have one text
            rows = [[float(f[a][i].detach() @ f[b][j].detach()) / 0.1 for j in others] for f in (theirs, own)]
            total += 2.0 * kl(*rows) / 12
    assert float(got["distil_itc"].detach()) == pytest.approx(total, abs=1e-5) and "distil_itm" not in got


def test_distilled_itm_and_lm_are_kl_of_the_same_questions(monkeypatch, model, tokenizer, params, teacher):
    """The pairs that ITM drew, and each counted token over the vocabulary, each alone; the vocabulary's loss in chunks of two tokens."""
    monkeypatch.setattr(vocabulary, "CHUNK", 2 * tokenizer.size)
    large, folder = teacher
    batch = batch_of(tokenizer, step=1, prompt_tokens=1)
    objective = OptionalObjective(model, tokenizer, pretrain_cfg(params, **distillation(folder, itm=1.0, lm=0.5)))
    got, made = objective(model, batch), objective.passes(model, batch, batch)[1]  # the queue grows, and the pairs are the same
    itm, lm, count = 0.0, 0.0, 0
    with torch.no_grad():
        for i, image in enumerate([*range(6), *range(6), *made.pairs.images.tolist()]):
            text = made.pairs.ids[i : i + 1], made.pairs.mask[i : i + 1]
            logits = [m.match_logits(*text, m.keys_values(m.image_tokens(batch.pixels[image : image + 1])))[0] for m in (large, model)]
            itm += kl(*(v.tolist() for v in logits)) / 18
        for i in range(6):
            length, both = int(batch.mask[i].sum()), []
            for m in (large, model):
                one = m.keys_values(m.image_tokens(batch.pixels[i : i + 1]))
                both.append(m.med.vocabulary_logits(m.caption_hidden(batch.ids[i : i + 1, :length], one))[0])
            for t in range(1, length - 1):
                lm, count = lm + kl(both[0][t].tolist(), both[1][t].tolist()), count + 1
    assert float(got["distil_itm"].detach()) == pytest.approx(itm, abs=1e-5)
    assert float(got["distil_lm"].detach()) == pytest.approx(0.5 * lm / count, abs=1e-5)


def test_a_student_that_is_its_teacher_loses_nothing_and_the_teacher_stays(tokenizer, params, teacher):
    """The gradient of each is 0 there. The teacher is in eval mode, learns nothing, and is in no checkpoint."""
    large, folder = teacher
    student = new_model(large.cfg, tokenizer, seed=1)
    student.load_state_dict(large.state_dict())
    objective = OptionalObjective(student, tokenizer, pretrain_cfg(params, **distillation(folder, itc=1.0, itm=1.0, lm=1.0)))
    # the student's ITC is against its momentum twin, which equals it here
    losses = objective.train()(student, batch_of(tokenizer))
    distilled = [losses[name] for name in ("distil_itc", "distil_itm", "distil_lm")]
    assert all(float(v.detach()) == pytest.approx(0, abs=1e-5) for v in distilled)
    sum(distilled).backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4
    assert not objective.teacher.model.training and not any(p.requires_grad for p in objective.teacher.model.parameters())
    plain = OptionalObjective(student, tokenizer, pretrain_cfg(params))
    assert objective.state_dict().keys() == plain.state_dict().keys() and len(list(objective.parameters())) == len(list(plain.parameters()))


def test_a_teacher_that_does_not_fit_is_refused(model, tokenizer, params, teacher, tmp_path):
    cfg = OptionalConfig(**distillation(teacher[1], lm=1.0)).distillation
    other = bert_tokenizer([*tokenizer.vocab[:-1], "otherwise"])
    with pytest.raises(ValueError, match=rf"entry {len(tokenizer.vocab) - 1} is '.+' there and 'otherwise' here.*ingest.vocab"):
        Teacher(cfg, model, other, max_tokens=20)
    with pytest.raises(ValueError, match="takes 40 tokens at most; set optim.max_tokens, now 41, no higher"):
        Teacher(cfg, model, tokenizer, max_tokens=41)
    blind = new_model(model.cfg, tokenizer, seed=0)
    blind.missing = frozenset({"contrast"})
    save_model(blind, tokenizer, tmp_path / "blind")
    Teacher(cfg.model_copy(update={"teacher": tmp_path / "blind"}), model, tokenizer, max_tokens=20)  # LM alone needs no ITC
    with pytest.raises(ValueError, match="lacks contrast .the projections of ITC.; take another teacher"):
        Teacher(cfg.model_copy(update={"teacher": tmp_path / "blind", "itc": 1.0}), model, tokenizer, max_tokens=20)
    with pytest.raises(ValueError, match="all 0, so the teacher teaches nothing"):
        OptionalConfig(**distillation(teacher[1]))


def test_a_teacher_for_other_pictures_sees_the_students(model, tokenizer, params, teacher, model_cfg, tmp_path):
    vision = model_cfg.vision.model_copy(update={"image_size": 32})
    save_model(new_model(model_cfg.model_copy(update={"vision": vision}), tokenizer, seed=2), tokenizer, tmp_path / "sharp")
    objective = OptionalObjective(model, tokenizer, pretrain_cfg(params, **distillation(tmp_path / "sharp", itm=1.0)))
    assert torch.isfinite(objective(model, batch_of(tokenizer))["distil_itm"])


def test_a_resumed_run_equals_an_unbroken_one(ingested, tmp_path):
    """With all of the optional objectives, stopped behind step 7 of 9, checkpoint at 5: bit for bit."""
    whole = Training(ingested, kind="optional").fit(tmp_path / "whole")
    Training(ingested, kind="optional").fit(tmp_path / "broken", stop_at=7)
    again = Training(ingested, kind="optional").fit(tmp_path / "broken")
    assert again["history"] == whole["history"]
    assert {"ncd", "ncd_chance", "distil_itc", "distil_itm", "distil_lm"} <= whole["history"][0].keys()
    assert all(torch.equal(v, whole["model"][k]) for k, v in again["model"].items())


def test_no_optional_objective_waits_for_the_device(model, tokenizer, params, teacher):
    """As `test_a_step_never_waits_for_the_device`."""
    nowhere = torch.device("meta")
    optional = {"masked_tokens": 0.2, "contrastive_decoding": NCD, **distillation(teacher[1], itc=1.0, itm=1.0, lm=1.0)}
    objective = OptionalObjective(model, tokenizer, pretrain_cfg(params, **optional)).to(nowhere)
    objective.teacher.model.to(nowhere)
    sum(objective(model.to(nowhere).train(), batch_of(tokenizer).to(nowhere)).values()).backward()
