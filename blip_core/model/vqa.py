"""BLIP for questions (paper section 5.4, Figure 5a): a question encoder that sees the picture, and a decoder that answers from what
the encoder made of it and never sees the picture itself.

Both begin as copies of a pretrained MED and share nothing afterwards. The decoder is called `med`, as generate.py calls one that writes.

Two traps of the public code are dealt with here. [ENC] stands first in a question, as in training (transformers leaves [CLS]; `first`
chooses). The padding of a question is hidden from the decoder (the authors and transformers show it when they generate, so that there
an answer depends on the longest question of its batch).

I pictures, N image tokens, Q questions (a multiple of I), A answers, T tokens, D width, V vocabulary.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_core.config.model import ModelConfig
from blip_core.model.blip import Blip, SpecialTokens, init_linear, init_med, init_vit
from blip_core.model.med import OWN, KeysValues, Med
from blip_core.model.network import Network
from blip_core.model.vit import Vit

RANKING_SMOOTHING = 0.1  # the authors rank by their training loss, smoothing and all


class Vqa(Network):
    """Random weights; `vqa_of` begins with those of a pretrained model."""

    first: Literal["enc", "cls"] = "enc"

    def __init__(self, cfg: ModelConfig, special: SpecialTokens):
        super().__init__()
        self.cfg, self.special = cfg, special
        self.vit = Vit(cfg.vision)
        self.question = encoder_of(Med(cfg.text, vocab_size=special.vocab_size, image_width=cfg.vision.width))
        self.med = decoder_of(Med(cfg.text, vocab_size=special.vocab_size, image_width=cfg.text.width))
        init_linear(self, cfg.init)
        init_vit(self.vit, cfg.init)
        for med in (self.question, self.med):
            init_med(med, cfg.init)

    def require(self, *parts: str) -> None:
        """A Vqa has all that it needs."""

    def memory(self, pixels_I3HW: Tensor, ids_QT: Tensor, mask_QT: Tensor) -> list[KeysValues]:
        """What the decoder reads of each question, per layer. Picture i has the questions i*Q/I ..."""
        return self.memory_of(self.image_tokens(pixels_I3HW), ids_QT, mask_QT)

    def memory_of(self, image_IND: Tensor, ids_QT: Tensor, mask_QT: Tensor) -> list[KeysValues]:
        """The same from image tokens; those of a video's frames stand one behind the other."""
        states_QTD = self.question.ground(self.question_ids(ids_QT), mask_QT, self.question.keys_values(image_IND))
        return self.med.keys_values(states_QTD, mask_QT)

    def question_ids(self, ids_QT: Tensor) -> Tensor:
        """The questions as their encoder takes them: with the first token of a question."""
        ids_QT = ids_QT.clone()
        ids_QT[:, 0] = self.special.enc if self.first == "enc" else self.special.cls
        return ids_QT

    def answer_loss(self, memory: list[KeysValues], ids_AT: Tensor, mask_AT: Tensor, *, label_smoothing: float) -> Tensor:
        """Smoothed cross-entropy of each answer, summed over its tokens, in fp32: A. Question q has the answers q*A/Q ...

        The sum, not the mean, as the authors have it in training and in ranking: a long answer weighs more, and pays for its length.
        """
        ids_AT = ids_AT.clone()
        ids_AT[:, 0] = self.special.dec
        hidden_ATD, counted = self.med.decode(ids_AT, memory, mask_AT)[:, :-1], mask_AT[:, 1:]
        logits = self.med.vocabulary_logits(hidden_ATD[counted]).float()
        losses = F.cross_entropy(logits, ids_AT[:, 1:][counted], label_smoothing=label_smoothing, reduction="none")
        return losses.new_zeros(counted.shape).masked_scatter(counted, losses).sum(1)


def vqa_of(model: Blip) -> Vqa:
    """One whose parts begin as those of a pretrained model. Where the widths of picture and text differ, the decoder's keys and values
    stay random, for the pretrained ones read image tokens."""
    model.require("image", "text", "encoder", "decoder", "cross", "language")
    new = Vqa(model.cfg, model.special)
    new.vit.load_state_dict(model.vit.state_dict())
    new.question.load_state_dict(encoder_of(copy.deepcopy(model.med)).state_dict())
    state = decoder_of(copy.deepcopy(model.med)).state_dict()
    if model.cfg.vision.width != model.cfg.text.width:
        state = {k: v for k, v in state.items() if ".cross_attention.kv." not in k}
    new.med.load_state_dict(state, strict=len(state) == len(new.med.state_dict()))
    return new


@torch.inference_mode()
def rank_answers(model: Vqa, memory: list[KeysValues], ids_AT: Tensor, mask_AT: Tensor, *, best: int) -> Tensor:
    """The place in the list of the answer that the decoder finds most probable, for each of Q questions: Q.

    As the authors: the first token of each answer chooses `best` of the list (at most all of it), the earlier one where they tie; those
    are scored whole.
    """
    questions, best = len(memory[0][0]), min(best, len(ids_AT))
    start = torch.full((questions, 1), model.special.dec, device=ids_AT.device)
    first_QV = model.med.vocabulary_logits(model.med.decode(start, memory)[:, 0]).float()
    order = first_QV[:, ids_AT[:, 1]].argsort(dim=1, descending=True, stable=True)
    chosen_QK = order[:, :best]
    ids, mask = ids_AT[chosen_QK].flatten(0, 1), mask_AT[chosen_QK].flatten(0, 1)
    length = int(mask.sum(1).max())
    losses = model.answer_loss(memory, ids[:, :length], mask[:, :length], label_smoothing=RANKING_SMOOTHING)
    return chosen_QK.gather(1, losses.unflatten(0, (questions, best)).argmin(1, keepdim=True)).squeeze(1)


def encoder_of(med: Med) -> Med:
    """The same Med without what only decoding uses."""
    for part in (med, *med.blocks):
        for name in _own(part):
            setattr(part, name, None)
    del med.head, med.head_bias
    return med


def decoder_of(med: Med) -> Med:
    """The same Med without what only encoding uses; what is its own has the names of what is shared, self-attention excepted."""
    for block in med.blocks:
        block.decoder_attention = block.attention(decoding=True)
        del block.encoder_attention
    for part in (med, *med.blocks):
        for name in _own(part) - {"decoder_attention"}:
            setattr(part, name.removeprefix(OWN), getattr(part, name))
            setattr(part, name, None)
    return med


def _own(part: nn.Module) -> set[str]:
    """The names of what decoding has of its own."""
    return {name for name, _ in part.named_children() if name.startswith(OWN)}
