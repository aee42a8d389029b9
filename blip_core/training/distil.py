"""Distillation (Hinton, Vinyals and Dean 2015, here at temperature 1): a large MED, frozen, teaches a small one by its logits.

Each loss is the mean of KL(teacher || student), which is 0 where the student says what the teacher says:
distil_itc  over the pairs of the global batch, from image to text and from text to image, at the student's temperature
distil_itm  over pair and no pair, for the same 3B pairs as ITM
distil_lm   over the vocabulary, for each token that LM counts

B pairs of this process, G over all processes, M tokens that LM counts, m those of a chunk, V vocabulary.
"""

import logging
import math

import torch
from torch import Tensor

from blip_core.compute.distributed import device, gather, global_mean
from blip_core.config.training import DistillationConfig
from blip_core.model.blip import CAPTIONING, MATCHING, Blip
from blip_core.model.med import KeysValues
from blip_core.model.vocabulary import chunked_cross_entropy
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.objectives import Passes, counted_hidden, pair_logits
from blip_core.training.step import Batch, Losses
from blip_core.weights.load import load_pretrained, resize_images

log = logging.getLogger(__name__)
PLACE = "pretrain.optional.distillation.teacher"


class Teacher:
    """The model that teaches: frozen, in eval mode, no part of the student's checkpoints."""

    def __init__(self, cfg: DistillationConfig, student: Blip, tokenizer: Tokenizer, *, max_tokens: int):
        """ValueError when the teacher has another vocabulary, takes shorter texts, or lacks what it should teach."""
        self.cfg = cfg
        self.model, own = load_pretrained(cfg.teacher)
        _require_same_vocabulary(own, tokenizer, cfg)
        if (longest := self.model.cfg.text.max_positions) < max_tokens:
            raise ValueError(f"{PLACE}: {cfg.teacher} takes {longest} tokens at most; set optim.max_tokens, now {max_tokens}, no higher")
        taught = {"encoder": cfg.itc, "contrast": cfg.itc, **dict.fromkeys(MATCHING, cfg.itm), **dict.fromkeys(CAPTIONING, cfg.lm)}
        if lacking := self.model.lacking(*(part for part, weight in taught.items() if weight)):
            raise ValueError(f"{PLACE}: {cfg.teacher} lacks {', '.join(lacking)}; take another teacher, or set the weight of that to 0")
        size = student.cfg.vision.image_size
        if size != self.model.cfg.vision.image_size:
            log.info("%s sees pictures of %d pixels, as the student does; it is made for others", cfg.teacher, size)
            resize_images(self.model, size, source=str(cfg.teacher))
        self.model.to(device()).eval().requires_grad_(False)

    def losses(self, student: Blip, batch: Batch, read: Batch, made: Passes, temperature: Tensor) -> Losses:
        """The losses with a weight above 0, weighted. `read`: the texts as the student's encoder read them."""
        with torch.no_grad():
            tokens = self.model.image_tokens(batch.pixels)
            keys_values = self.model.keys_values(tokens)
        found: Losses = {}
        if self.cfg.itc:
            found["distil_itc"] = self.cfg.itc * self._contrast(read, tokens, made, temperature)
        if self.cfg.itm:
            with torch.no_grad():
                logits = pair_logits(self.model, made.pairs, tokens, keys_values)
            kept = divergence(logits, made.match_logits) * made.pairs.valid
            found["distil_itm"] = self.cfg.itm * global_mean(kept.sum(), made.pairs.valid.sum())
        if self.cfg.lm:
            found["distil_lm"] = self.cfg.lm * self._language(student, batch, keys_values, made)
        return found

    def _contrast(self, read: Batch, tokens: Tensor, made: Passes, temperature: Tensor) -> Tensor:
        with torch.no_grad():
            image_BE, text_BE = self.model.image_features(tokens), self.model.text_features(read.ids, read.mask)
            similarities = [image_BE @ gather(text_BE).T / temperature, text_BE @ gather(image_BE).T / temperature]
        students = (made.similarities.image_to_text_BG, made.similarities.text_to_image_BG)
        to_text, to_image = (divergence(t, s).mean() for t, s in zip(similarities, students, strict=True))
        return (to_text + to_image) / 2

    def _language(self, student: Blip, batch: Batch, keys_values: list[KeysValues], made: Passes) -> Tensor:
        assert made.hidden is not None
        with torch.no_grad():
            truth = _Said(self.model, counted_hidden(self.model, batch, keys_values))
        med = student.med
        losses_M = chunked_cross_entropy(med.head(made.hidden), med.written.weight, med.head_bias, truth)
        return global_mean((losses_M - torch.cat(truth.entropies)).sum(), batch.counted.sum())


class _Said:
    """What the teacher says of each next token, as targets of `chunked_cross_entropy`; made for a chunk of tokens at a time."""

    def __init__(self, teacher: Blip, hidden_MD: Tensor):
        self.teacher, self.hidden_MD = teacher, hidden_MD
        self.entropies: list[Tensor] = []  # of the chunks, as they were scored

    def score(self, logits_mV: Tensor, chunk: slice) -> Tensor:
        log_said = self._logits(chunk).log_softmax(1)
        said = log_said.exp()
        self.entropies.append(-(said * log_said).sum(1))
        return (said * logits_mV).sum(1)

    def subtract(self, from_mV: Tensor, chunk: slice) -> None:
        from_mV.sub_(self._logits(chunk).softmax(1))

    def _logits(self, chunk: slice) -> Tensor:
        return self.teacher.med.vocabulary_logits(self.hidden_MD[chunk]).float()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dimension; what the student has at -inf is left out of both."""
    hidden = student == -math.inf
    said, log_student = teacher.masked_fill(hidden, -math.inf).log_softmax(-1), student.log_softmax(-1)
    return (said.exp() * (said - log_student).masked_fill(hidden, 0)).sum(-1)


def _require_same_vocabulary(teacher: Tokenizer, student: Tokenizer, cfg: DistillationConfig) -> None:
    if teacher.vocab == student.vocab:
        return
    pairs = enumerate(zip(teacher.vocab, student.vocab, strict=False))
    at = next((f"entry {i} is {a!r} there and {b!r} here" for i, (a, b) in pairs if a != b), "the shorter is the beginning of the longer")
    raise ValueError(
        f"{PLACE}: {cfg.teacher} has a vocabulary of {len(teacher.vocab)} entries, this training one of {len(student.vocab)}: "
        f"{at}. A teacher's logits are over its own tokens: take a teacher of this vocabulary, or name its vocabulary in ingest.vocab"
    )
