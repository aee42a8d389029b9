"""Objectives beside ITC, ITM and LM, for those who name them in `pretrain.optional`. The paper of BLIP has none of them.

masked tokens  an augmentation of the texts that ITC and ITM read: a share of their words is [MASK] (`masked_texts`)
NCD            noise-contrastive decoding (`contrastive_decoding`)
distillation   a frozen, larger MED teaches this one (distil.py)

Whatever is drawn is drawn by `uniform`, of seed, step, picture and text. B pairs of this process, G over all processes, T tokens,
K noisy copies of a caption.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blip_core.compute.distributed import global_mean
from blip_core.config.training import ContrastiveDecodingConfig, PretrainConfig
from blip_core.model.blip import Blip
from blip_core.model.med import KeysValues
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.distil import Teacher
from blip_core.training.objectives import PretrainObjective, counted_hidden, gather_texts, learned_ids
from blip_core.training.step import Batch, Losses, TextBatch


def pretrain_objective(model: Blip, tokenizer: Tokenizer, cfg: PretrainConfig) -> PretrainObjective:
    """What `pretrain` trains with. ValueError when a teacher does not fit."""
    return PretrainObjective(model, cfg.contrast, cfg.language) if cfg.optional is None else OptionalObjective(model, tokenizer, cfg)


class OptionalObjective(PretrainObjective):
    """ITC + ITM + LM, and what `cfg.optional` names. Losses come with their weights in them."""

    def __init__(self, model: Blip, tokenizer: Tokenizer, cfg: PretrainConfig):
        assert cfg.optional is not None
        super().__init__(model, cfg.contrast, cfg.language)
        self.pad, self.masked = tokenizer.pad, cfg.optional.masked_tokens
        if self.masked and tokenizer.mask is None:
            raise ValueError(
                "pretrain.optional.masked_tokens: the vocabulary has neither [MASK] nor <mask>; set it to 0, or take another one"
            )
        self.mask_token = tokenizer.mask or 0
        self.decoding = cfg.optional.contrastive_decoding
        distillation = cfg.optional.distillation
        self.teacher = None if distillation is None else Teacher(distillation, model, tokenizer, max_tokens=cfg.optim.max_tokens)

    def forward(self, model: Blip, batch: Batch) -> Losses:
        read = batch
        if self.masked:
            read = batch.with_texts(masked_texts(batch, self.masked, self.mask_token), batch.mask, batch.learned)
        losses, made = self.passes(model, batch, read)
        assert made.hidden is not None
        if self.decoding is not None:
            own = log_likelihood(model, batch, made.hidden)
            losses["ncd"] = self.decoding.weight * contrastive_decoding(model, batch, made.keys_values, own, self.decoding)
        if self.teacher is not None:
            losses |= self.teacher.losses(model, batch, read, made, self.contrast.temperature.detach())
        return losses

    def shares(self, batches: Sequence[TextBatch]) -> dict[str, Tensor]:
        shares = super().shares(batches)
        return shares | {"distil_lm": shares["lm"]}

    def vitals(self, batch: TextBatch) -> dict[str, float]:
        """NCD's chance: all copies are as probable as the caption."""
        vitals = super().vitals(batch)
        if self.decoding is not None:
            _, differs_BK = noisy_copies(batch, self.decoding, pad=self.pad)
            counts = differs_BK.sum(1)[differs_BK.any(1)]
            vitals["ncd_chance"] = self.decoding.weight * (float((1 + counts).log().mean()) if len(counts) else math.log(2))
        return vitals


def masked_texts(batch: Batch, share: float, mask_token: int) -> Tensor:
    """The texts with each word's token turned to [MASK] with probability `share`; [CLS], [SEP] and the prompt stay: B x T."""
    drawn = uniform(batch, stream=0, num=batch.ids.shape[1])
    return batch.ids.masked_fill(words(batch) & (drawn < share), mask_token)


def contrastive_decoding(model: Blip, batch: Batch, keys_values: list[KeysValues], own_B: Tensor, cfg: ContrastiveDecodingConfig) -> Tensor:
    """NCD: -log [exp f(x, y) / sum over y' of p(y') exp f(x, y')], as the tutorial literature on BLIP writes it. **The paper itself does
    not have it**: its decoder learns by LM alone (section 3.2).

    x is a picture, y its caption, f the mean log-likelihood of the tokens that LM counts (`log_likelihood`; `own_B` is that of y). The
    sum over all texts is estimated by y and K noisy copies of it, all equally probable. y is among them, else the loss had no lower
    bound. p is then one constant; it is left out, so that the loss is 0 at best, and log(K + 1) where a copy is as probable as y.
    A copy that came out equal is no noise and does not count, nor does a caption with no other copy.
    """
    ids_BKT, differs_BK = noisy_copies(batch, cfg, pad=model.special.pad)
    copies = _as_batch(batch, ids_BKT)
    noise_BK = log_likelihood(model, copies, counted_hidden(model, copies, keys_values)).unflatten(0, (-1, cfg.copies))
    scores = torch.cat([own_B[:, None], noise_BK.masked_fill(~differs_BK, -math.inf)], dim=1)
    valid = differs_BK.any(1)
    return global_mean((-scores.log_softmax(1)[:, 0] * valid).sum(), valid.sum())


def _as_batch(batch: Batch, ids_BKT: Tensor) -> Batch:
    """The copies of all texts, one behind the other. LM counts the same places in each."""
    num_copies, length = ids_BKT.shape[1:]
    text, place = batch.learned // length, batch.learned % length
    learned = (text[:, None] * num_copies + torch.arange(num_copies, device=text.device)) * length + place[:, None]
    mask_BKT = batch.mask[:, None].expand_as(ids_BKT)
    return batch.with_texts(ids_BKT.flatten(0, 1), mask_BKT.flatten(0, 1), learned.flatten())


def log_likelihood(model: Blip, batch: Batch, hidden_MD: Tensor) -> Tensor:
    """Mean log-likelihood in nats of the tokens of each text that LM counts: B. `hidden_MD`: of `counted_hidden`."""
    losses_M = model.med.token_losses(hidden_MD, learned_ids(batch))
    text_M = batch.learned // batch.ids.shape[1]
    zeros_B = losses_M.new_zeros(len(batch.ids))
    return -zeros_B.index_add(0, text_M, losses_M) / zeros_B.index_add(0, text_M, torch.ones_like(losses_M)).clamp(min=1)


def noisy_copies(batch: TextBatch, cfg: ContrastiveDecodingConfig, *, pad: int) -> tuple[Tensor, Tensor]:
    """K copies of each text in which words are replaced, each with probability `cfg.replaced` and one at least: B x K x T; and which of
    them differ from the text: B x K.

    A word's stand-in is any word of any text of the global batch: first the text is drawn, then the word.
    """
    all_ids, all_masks = gather_texts(batch.ids, batch.mask, pad=pad)
    before = 1 + batch.prompt_tokens
    num_words_G = all_masks.sum(1) - before - 1
    may_change, copies = words(batch), []
    for copy in range(cfg.copies):
        drawn, of_text, of_word = (uniform(batch, stream=3 * copy + 1 + i, num=batch.ids.shape[1]) for i in range(3))
        first = drawn.masked_fill(~may_change, math.inf).argmin(1, keepdim=True)
        changed = may_change & (drawn < cfg.replaced).scatter(1, first, True)
        text = (of_text * len(all_ids)).long()
        word = before + (of_word * num_words_G[text].clamp(min=0)).long()
        changed = changed & (num_words_G[text] > 0)
        copies.append(torch.where(changed, all_ids[text, word.clamp(max=all_ids.shape[1] - 1)], batch.ids))
    ids_BKT = torch.stack(copies, dim=1)
    return ids_BKT, (ids_BKT != batch.ids[:, None]).any(2)


def words(batch: TextBatch) -> Tensor:
    """True where a token of the text itself stands: not [CLS], not [SEP], not the prompt, not padding. B x T."""
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (place > batch.prompt_tokens) & (place < batch.mask.sum(1, keepdim=True) - 1)


def uniform(batch: TextBatch, *, stream: int, num: int) -> Tensor:
    """Numbers in [0, 1) for each pair: B x num. `stream` keeps one use from another.

    A function of seed, step, picture and text alone, on any device: the same for any number of processes and micro-batches, and in a
    resumed run. The numbers are a hash (splitmix64; Steele, Lea and Flood 2014), so no generator has a state.
    """
    row_B = _mixed(batch.image_ids + _mixed(batch.text_ids + 1_000_003 * batch.seed + batch.step) + stream)
    mixed = _mixed(row_B[:, None] + torch.arange(1, num + 1, device=row_B.device) * _GOLDEN)
    return _shifted(mixed, 40).float() / 2**24


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mixed(x: Tensor) -> Tensor:
    """Each of 64 bits hangs on each; products wrap around."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)
