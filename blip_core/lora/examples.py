"""What an adapter learns from, as tensors: prompts, and the tokens that follow on them."""

from typing import Any

import torch
from torch import Tensor

from blip_core.capfilt.vlm import Vlm, alike
from blip_core.compute.padding import pad

Inputs = dict[str, Tensor]
IGNORED = -100  # a target that no loss counts


def answer_ids(vlm: Vlm, text: str, *, max_tokens: int) -> list[int]:
    """An answer with the token that ends it, cut to so many."""
    alone = not vlm.model.config.is_encoder_decoder  # a decoder with an encoder begins its texts as its tokenizer does
    ids = vlm.tokenizer(vlm.plain(text), add_special_tokens=not alone)["input_ids"]
    return [*ids, *([] if ids[-1:] == vlm.ends[:1] else vlm.ends[:1])][:max_tokens]


def answers(vlm: Vlm, prompts: list[Inputs], ids: list[list[int]]) -> list[dict[str, Any]]:
    """Batches of prompts of one shape: the inputs, and the targets of the last tokens, R x A."""
    found = []
    for group in alike(prompts):
        targets, mask = pad([ids[i] for i in group], 0)
        before = [_begun(vlm, prompts[i]) for i in group]
        if vlm.model.config.is_encoder_decoder:
            start = torch.full((len(group), 1), _decoder_start(vlm))
            inputs = _stacked(before) | {"decoder_input_ids": torch.cat([start, targets[:, :-1]], dim=1)}
        else:
            inputs = continued(vlm, before, targets[:, :-1])
        found.append({"inputs": inputs, "targets": targets.masked_fill(~mask, IGNORED)})
    return found


def continued(vlm: Vlm, prompts: list[Inputs], ids_RA: Tensor) -> Inputs:
    """Prompts of one shape with tokens behind them. What fills up the end of `ids_RA` is seen by no token before it."""
    inputs = _stacked(prompts)
    shape = inputs["input_ids"].shape
    # PaliGemma sees both ways where a type is 0, as in its prompt; of the others 0 is a token of text
    ones = {"attention_mask", *(["token_type_ids"] if vlm.kind == "paligemma" else [])}
    for name, value in inputs.items():
        if value.shape == shape:
            behind = ids_RA if name == "input_ids" else torch.full_like(ids_RA, int(name in ones))
            inputs[name] = torch.cat([value, behind.to(value.dtype)], dim=1)
    return inputs


def _stacked(prompts: list[Inputs]) -> Inputs:
    return {name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0]}


def _begun(vlm: Vlm, prompt: Inputs) -> Inputs:
    """With the tokens that `generate` begins with where there is no word to begin with: as of BLIP-2 and GIT."""
    if "input_ids" in prompt:
        return prompt
    config = vlm.model.config
    queries = [config.image_token_index] * config.num_query_tokens if vlm.kind == "blip-2" else []
    ids = torch.tensor([[*queries, config.get_text_config(decoder=True).bos_token_id]])
    return prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _decoder_start(vlm: Vlm) -> int:
    configs = (vlm.model.generation_config, vlm.model.config.get_text_config(decoder=True))
    return next(c.decoder_start_token_id for c in configs if c.decoder_start_token_id is not None)
