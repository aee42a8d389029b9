"""Texts of a generative model of transformers that follow from (seed, key, number of the candidate) alone, not from the batch.

`generate` of transformers draws by the global generator, so a text would depend on its neighbours. Here the choice of a token is greedy
behind noise: the largest of logits plus Gumbel noise is an exact sample of their softmax, and the noise of a token is a function of seed,
key, number, step and token. The candidates of a picture share the pass over its prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from blip_core.capfilt.vlm import repeat_cache
from blip_core.config.capfilt import SamplerConfig
from blip_core.files.content import hash64
from blip_core.model.generate import Limits, most_probable, restrict, shape_logits


def write(
    model: Any, inputs: Mapping[str, Any], keys: list[str], sampler: SamplerConfig, *, seed: int, num_candidates: int, first: int
) -> Tensor:
    """Ids of new tokens, I x num_candidates x L, of prompts of one length; `inputs` are those of `model.generate`."""
    limits = {"max_new_tokens": sampler.max_tokens, "min_new_tokens": sampler.min_tokens}
    # what a folder's generation_config.json says of sampling is overruled: the sampler is what the candidates carry
    ours = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": None}
    penalty = Penalty(sampler.repetition_penalty)
    if sampler.name == "beam":
        search = {"num_beams": sampler.beams, "num_return_sequences": num_candidates}
        ids = model.generate(**inputs, **limits, **ours, **search, logits_processor=LogitsProcessorList([penalty]))
        ids = ids[:, penalty.prompt :]
    else:
        processors = LogitsProcessorList([penalty, Draw(sampler, draw_keys(keys, num_candidates, seed, first=first).to(model.device))])
        decode = _sharing_prompts(num_candidates)
        ids = model.generate(**inputs, **limits, **ours, num_beams=1, logits_processor=processors, custom_generate=decode)
    return ids.unflatten(0, (len(keys), num_candidates))


def draw_keys(keys: list[str], num_candidates: int, seed: int, *, first: int = 0) -> Tensor:
    """What the noise of each candidate follows from: int64, one for each of images x candidates."""
    numbers = range(first, first + num_candidates)
    rngs = (np.random.default_rng([seed, hash64(key) & 0xFFFFFFFFFFFF, n]) for key in keys for n in numbers)
    return torch.tensor([int(rng.integers(2**63)) for rng in rngs])


def gumbel(keys_R: Tensor, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, R x V, by SplitMix64 (Steele et al. 2014) of key, step and token: the same on every device."""
    x = keys_R[:, None] + ((step << 32) + torch.arange(vocabulary, device=keys_R.device)) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    uniform = ((x >> 40 & 0x7FFFFF) + 0.5) / 2**23  # 23 bits: the middle of the last step is still below 1 in fp32
    return -torch.log(-torch.log1p(-uniform))


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


class Penalty(LogitsProcessor):
    """The repetition penalty on what is written alone: transformers' own counts the prompt, and its tokens of the picture."""

    def __init__(self, penalty: float):
        self.limits, self.prompt = Limits(0, 0, penalty), -1

    def __call__(self, ids_RL: Tensor, scores_RV: Tensor) -> Tensor:
        if self.prompt < 0:
            self.prompt = ids_RL.shape[1]
        return restrict(scores_RV, ids_RL[:, self.prompt :], self.limits, num_new=0, sep=0)


class Draw(LogitsProcessor):
    """Noise upon the logits by temperature, top-k and top-p, so that the largest is the token drawn."""

    def __init__(self, sampler: SamplerConfig, keys_R: Tensor):
        self.sampler, self.keys, self.step = sampler, keys_R, 0

    def __call__(self, ids_RL: Tensor, scores_RV: Tensor) -> Tensor:
        logits = shape_logits(scores_RV, top_k=self.sampler.top_k, temperature=self.sampler.temperature)
        probability = logits.softmax(-1)
        top, _ = most_probable(probability, self.sampler.p)
        inside = top.cumsum(-1) - top < self.sampler.p  # the token that crosses p still belongs
        least = top.masked_fill(~inside, 1.0).min(-1, keepdim=True).values
        noise = gumbel(self.keys, self.step, logits.shape[-1])
        self.step += 1
        return logits.masked_fill(probability < least, -torch.inf) + noise


def _sharing_prompts(copies: int) -> Callable[..., Tensor]:
    """A decoding method for `generate`: one pass over each prompt, then `copies` texts of it, greedy behind the processors."""

    def decode(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **model_kwargs: Any
    ) -> Tensor:
        kind = {"is_encoder_decoder": model.config.is_encoder_decoder}
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, **kind)
        repeat_cache(kwargs["past_key_values"], len(outputs.logits), copies)
        ids, kwargs = model._expand_inputs_for_generation(expand_size=copies, input_ids=input_ids, **kind, **kwargs)
        logits, alive, pad = outputs.logits[:, -1].repeat_interleave(copies, 0), ids.new_ones(len(ids)), generation_config._pad_token_tensor
        while True:
            token = logits_processor(ids, logits.float()).argmax(-1)
            ids = torch.cat([ids, torch.where(alive.bool(), token, pad)[:, None]], dim=1)
            alive = alive & ~stopping_criteria(ids, None)
            if not alive.any():
                return ids[:, input_ids.shape[1] :]
            outputs = model(**model.prepare_inputs_for_generation(ids, next_sequence_length=1, **kwargs), return_dict=True)
            kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, **kind)
            logits = outputs.logits[:, -1]

    return decode
