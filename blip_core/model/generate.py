"""Caption generation: greedy and beam search with the results of transformers' `generate`, and nucleus sampling seeded from outside.

All beams or samples of one image attend to one copy of its keys and values (model/med.py), and each step computes only the
newest token.

I images, K beams or samples per image, L tokens so far, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blip_core.config.model import TextConfig
from blip_core.model.blip import CAPTIONING, SpecialTokens
from blip_core.model.med import KeysValues

NEVER = -1.0e9


class Decoder(Protocol):
    """What writes one token after another: a Med, or a BLIP-2 (model/blip2.py)."""

    @property
    def cfg(self) -> TextConfig: ...

    def step(self, ids_BT: Tensor, images: list[KeysValues], past: list[KeysValues] | None) -> tuple[Tensor, list[KeysValues]]: ...

    def vocabulary_logits(self, x: Tensor) -> Tensor: ...


class Writer(Protocol):
    """What is asked to write: a Blip, or another network whose `med` decodes (model/vqa.py)."""

    @property
    def med(self) -> Decoder: ...

    @property
    def special(self) -> SpecialTokens: ...

    def require(self, *parts: str) -> None: ...


@dataclass(frozen=True)
class Limits:
    """New tokens, prompt not counted. [SEP] is one of `max_tokens`; `min_tokens` stand before it, as in transformers."""

    min_tokens: int
    max_tokens: int
    repetition_penalty: float = 1.0


def check_length(model: Writer, prompt: list[int], max_tokens: int) -> None:
    """ValueError unless the prompt and all that follows it have a position each."""
    most, words = model.med.cfg.max_positions - len(prompt), len(prompt) - 1
    if max_tokens > most:
        raise ValueError(
            f"max_tokens: {max_tokens}, this model writes {most} at most" + f" after the prompt's {words} tokens" * bool(words)
        )


@torch.inference_mode()
def nucleus(
    model: Writer,
    images: list[KeysValues],
    prompt: list[int],
    limits: Limits,
    *,
    p: float,
    top_k: int = 0,
    temperature: float = 1.0,
    draws_IKL: Tensor,
) -> Tensor:
    """Top-p sampling (Holtzman et al. 2020): ids of new tokens, I x K x L, [PAD] behind [SEP].

    The logits are divided by `temperature`, all but the `top_k` best tokens fall away (0: none does), then p counts, as in transformers.
    `draws_IKL` holds a uniform number in [0, 1) for each token to be drawn, so the caller decides what a sample depends on.
    """
    draws = draws_IKL.to(images[0][0].device)

    def choose(logits: Tensor, i: int) -> Tensor:
        return draw_nucleus(shape_logits(logits, top_k=top_k, temperature=temperature), p, draws[:, :, i].flatten())

    return _one_by_one(model, images, prompt, limits, draws.shape[1], choose)


def shape_logits(logits_BV: Tensor, *, top_k: int, temperature: float) -> Tensor:
    """Logits by temperature, and minus infinity for tokens below the k-th best; those equal to it stay."""
    if temperature != 1.0:
        logits_BV = logits_BV / temperature
    if 0 < top_k < logits_BV.shape[-1]:
        logits_BV = logits_BV.masked_fill(logits_BV < logits_BV.topk(top_k).values[:, -1:], -torch.inf)
    return logits_BV


@torch.inference_mode()
def greedy(model: Writer, images: list[KeysValues], prompt: list[int], limits: Limits) -> Tensor:
    """The most probable token at each step: ids of new tokens, I x L, [PAD] behind [SEP]."""
    return _one_by_one(model, images, prompt, limits, 1, lambda logits, i: logits.argmax(-1)).squeeze(1)


def _one_by_one(
    model: Writer, images: list[KeysValues], prompt: list[int], limits: Limits, num_samples: int, choose: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Grow each sample by what `choose` makes of the logits and the number of the token, until all ended: I x K x L."""
    model.require(*CAPTIONING)
    num_images, device = len(images[0][0]), images[0][0].device
    ids = torch.tensor(prompt, device=device).repeat(num_images * num_samples, 1)
    alive = torch.ones(len(ids), dtype=torch.bool, device=device)
    past, newest = None, ids
    for i in range(limits.max_tokens):
        hidden, past = model.med.step(newest, images, past)
        logits = restrict(model.med.vocabulary_logits(hidden[:, -1]).float(), ids, limits, num_new=i, sep=model.special.sep)
        newest = choose(logits, i).masked_fill(~alive, model.special.pad)[:, None]
        ids = torch.cat([ids, newest], dim=1)
        alive &= newest[:, 0] != model.special.sep
        if not alive.any():
            break
    return ids[:, len(prompt) :].unflatten(0, (num_images, num_samples))


def draw_nucleus(logits_BV: Tensor, p: float, draw_B: Tensor) -> Tensor:
    """One token per row from the smallest set of most probable tokens whose probability reaches p, by inverse distribution."""
    probability, token = most_probable(logits_BV.softmax(-1), p)
    cumulative = probability.cumsum(-1)
    inside = cumulative - probability < p  # the token that crosses p still belongs
    mass = (probability * inside).cumsum(-1)
    place = torch.searchsorted(mass, draw_B[:, None].to(mass) * mass[:, -1:], right=True)
    place = torch.minimum(place, inside.sum(-1, keepdim=True) - 1)  # a draw next to 1 may round past the last one
    return token.gather(1, place).squeeze(1)


def most_probable(probability_BV: Tensor, p: float, *, first: int = 1024) -> tuple[Tensor, Tensor]:
    """At least the tokens of each row that reach p together, most probable first, equal ones by their id: their probability and ids.

    A trained captioner mostly needs few tokens, and sorting the whole vocabulary at each step would cost as much as the decoder.
    """
    if first < probability_BV.shape[-1]:
        top, token = probability_BV.topk(first)
        # those equal to the last one may be outside as well, so only what is above it is sure to be all there
        if ((top * (top > top[:, -1:])).sum(-1) > p).all():
            token, place = token.sort()
            top, order = top.gather(1, place).sort(descending=True, stable=True)
            return top, token.gather(1, order)
    return probability_BV.sort(descending=True, stable=True)


def restrict(scores_BV: Tensor, ids_BL: Tensor, limits: Limits, *, num_new: int, sep: int) -> Tensor:
    """Apply repetition penalty (Keskar et al. 2019, as transformers: also to the prompt) and the minimum length."""
    if limits.repetition_penalty != 1.0:
        seen = scores_BV.gather(1, ids_BL)
        seen = torch.where(seen < 0, seen * limits.repetition_penalty, seen / limits.repetition_penalty)
        scores_BV = scores_BV.scatter(1, ids_BL, seen)
    if num_new < limits.min_tokens:
        scores_BV = scores_BV.index_fill(1, torch.tensor([sep], device=scores_BV.device), -torch.inf)
    return scores_BV


@torch.inference_mode()
def beam_search(
    model: Writer,
    images: list[KeysValues],
    prompt: list[int],
    limits: Limits,
    *,
    beams: int,
    num_return: int = 1,
    length_penalty: float = 1.0,
) -> Tensor:
    """The `num_return` best captions of each image: ids of new tokens, I x num_return x L, [PAD] behind [SEP].

    Follows transformers' `generate(num_beams=..., early_stopping=False)`: finished beams score log-probability divided by
    their length ** length_penalty, and an image is done when its best running beam can no longer enter the finished ones.
    One beam is the greedy search, as there.
    """
    if not 1 <= num_return <= beams:
        raise ValueError(f"{num_return} captions of a search with {beams} beams; expected 1 to {beams}")
    if beams == 1:
        return greedy(model, images, prompt, limits)[:, None]
    model.require(*CAPTIONING)
    num_images, device, pad = len(images[0][0]), images[0][0].device, model.special.pad
    length = len(prompt) + limits.max_tokens
    running = torch.full((num_images, beams, length), pad, device=device)
    running[:, :, : len(prompt)] = torch.tensor(prompt, device=device)
    running_scores = torch.full((num_images, beams), NEVER, device=device)
    running_scores[:, 0] = 0.0  # all beams are equal at first: let one speak
    finished, finished_scores = running.clone(), torch.full_like(running_scores, NEVER)
    is_finished = torch.zeros_like(running_scores, dtype=torch.bool)
    open_image = torch.ones(num_images, 1, dtype=torch.bool, device=device)
    past, newest = None, running[:, :, : len(prompt)].flatten(0, 1)
    for i in range(limits.max_tokens):
        end = len(prompt) + i
        hidden, past = model.med.step(newest, images, past)
        log_probs = model.med.vocabulary_logits(hidden[:, -1]).float().log_softmax(-1)
        log_probs = restrict(log_probs, running[:, :, :end].flatten(0, 1), limits, num_new=i, sep=model.special.sep)
        total = (log_probs.unflatten(0, (num_images, beams)) + running_scores[:, :, None]).flatten(1)
        # twice as many as beams: enough stay when every one of the best ends
        top_scores, top = total.topk(2 * beams)
        parent, token = top // log_probs.shape[-1], top % log_probs.shape[-1]
        candidates = _select(running, parent)
        candidates[:, :, end] = token
        ends = (token == model.special.sep) | (i == limits.max_tokens - 1)

        final_scores = top_scores / (i + 1) ** length_penalty
        may_finish = ends & open_image & (torch.arange(2 * beams, device=device) < beams)
        merged_scores = torch.cat([finished_scores, torch.where(may_finish, final_scores, final_scores + NEVER)], dim=1)
        finished_scores, best = merged_scores.topk(beams)
        finished = _select(torch.cat([finished, candidates], dim=1), best)
        is_finished = torch.cat([is_finished, may_finish], dim=1).gather(1, best)

        running_scores, chosen = torch.where(ends, top_scores + NEVER, top_scores).topk(beams)
        running, parent = _select(candidates, chosen), parent.gather(1, chosen)
        worst = torch.where(is_finished, finished_scores.min(dim=1, keepdim=True)[0], NEVER)
        open_image &= (running_scores[:, :1] / (i + 1) ** length_penalty > worst).any(dim=1, keepdim=True)
        if not open_image.any():
            break
        flat = (parent + torch.arange(num_images, device=device)[:, None] * beams).flatten()
        past = [(k[flat], v[flat]) for k, v in past]
        newest = running[:, :, end : end + 1].flatten(0, 1)
    best = torch.where(is_finished.any(dim=1)[:, None, None], finished[:, :num_return], running[:, :num_return])
    return best[:, :, len(prompt) :]


def _select(sequences_IKL: Tensor, index_IJ: Tensor) -> Tensor:
    """Rows of each image by index: I x J x L."""
    return sequences_IKL.gather(1, index_IJ[:, :, None].expand(-1, -1, sequences_IKL.shape[-1]))
