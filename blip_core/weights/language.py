"""A frozen language model of transformers that reads a picture as a soft prompt (Li et al. 2023, section 3.2): any decoder, as OPT, Llama
or Qwen, or an encoder with a decoder, as FlanT5. Its tokenizer is its own.

B texts, T tokens, Q queries of the soft prompt, L width, V vocabulary.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.padding import pad
from blip_core.weights.folders import FAULTS, read_model, read_tokenizer
from blip_core.weights.hashes import folder_hash
from blip_core.weights.load import read_config

IGNORED = -100


@dataclass(frozen=True)
class Words:
    """Texts for a language model. `ids`: what stands behind the soft prompt; `targets`: what is learned, IGNORED elsewhere. A decoder has
    them side by side; an encoder reads `ids`, and its decoder writes `targets`."""

    ids: Tensor  # B x T
    mask: Tensor  # B x T, True where a token stands
    targets: Tensor  # B x T, or B x T' of an encoder with a decoder


@dataclass(frozen=True)
class Language:
    """Ready for use on this process's device, without gradient of its own. No nn.Module, so that no training saves or moves it. `end`: the
    token that ends a text. `folder`: where it was read, if it is whole there."""

    model: Any
    tokenizer: Any
    identity: str
    end: int
    folder: Path | None = None

    @property
    def width(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def reads(self) -> bool:
        """Whether it has an encoder that reads the prompt."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def padding(self) -> int:
        """Any token will do: it is masked, and never learned."""
        return self.end if self.tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)

    def prompt(self, text: str) -> list[int]:
        """Ids of what is given, with what the tokenizer puts before a text, and where it is read, behind it. A blank at the end is left
        out: it belongs to the word that follows."""
        return list(self.tokenizer(text.rstrip())["input_ids"]) if self.reads else [*self._start, *self._bare(text.rstrip())]

    @property
    def _start(self) -> list[int]:
        """What a decoder's tokenizer puts before a text."""
        ids = self.tokenizer("a")["input_ids"]
        return [ids[0]] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def check_length(self, queries: int, prompt: str, max_tokens: int) -> None:
        """ValueError unless so many queries, the prompt and all that follows have a position each."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if self.reads or positions is None:
            return
        most = positions - queries - len(self.prompt(prompt))
        if max_tokens > most:
            raise ValueError(f"max_tokens: {max_tokens}, the language model writes {most} at most behind {queries} queries and the prompt")

    def words(self, prompts: list[str], texts: list[str], *, max_tokens: int) -> Words:
        """Of texts that follow these prompts, cut to max_tokens, prompt and end included; what is read and what is written each."""
        if self.reads:
            read = [self.prompt(p)[:max_tokens] for p in prompts]
            written = [[*self._bare(text)[: max_tokens - 1], self.end] for text in texts]
            ids, mask = (t[:-1] for t in pad([*read, [self.padding]], self.padding))  # one place at least, if all of it is padding
            return Words(ids, mask, pad(written, IGNORED)[0])
        rows, given = [], []
        for start, text in zip(prompts, texts, strict=True):
            whole, own = self._joined(start, text), self.prompt(start)
            given.append(next((i for i, (a, b) in enumerate(zip(own, whole, strict=False)) if a != b), min(len(own), len(whole))))
            rows.append([*whole[: max_tokens - 1], self.end])
        ids, mask = pad(rows, self.padding)
        learned = mask & (torch.arange(ids.shape[1]) >= torch.tensor(given)[:, None])
        return Words(ids, mask, ids.masked_fill(~learned, IGNORED))

    def _joined(self, start: str, text: str) -> list[int]:
        """Of a prompt and a text in one piece, for a tokenizer cuts words otherwise at the beginning of a text."""
        return [*self._start, *self._bare(f"{start.rstrip()} {text}" if start.rstrip() else text)]

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """The text of new tokens, in one line, up to what ends it."""
        own = ids[: ids.index(self.end)] if self.end in ids else ids
        return " ".join(self.tokenizer.decode(own, skip_special_tokens=True).split())

    def logits(self, soft_BQL: Tensor, words: Words) -> Tensor:
        """Of each place of `words.targets`: B x T x V. The gradient reaches the soft prompt."""
        inputs = self.inputs(soft_BQL, words.ids, words.mask)
        if self.reads:
            return self.model(**inputs, labels=words.targets).logits
        return self.model(**inputs, use_cache=False).logits[:, soft_BQL.shape[1] - 1 : -1]

    def inputs(self, soft_BQL: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
        """The soft prompt and the embedded ids behind it, as models of transformers take them."""
        embedded = self.model.get_input_embeddings()(ids_BT)
        mask = F.pad(mask_BT, (soft_BQL.shape[1], 0), value=True)
        return {"inputs_embeds": torch.cat([soft_BQL.to(embedded.dtype), embedded], dim=1), "attention_mask": mask.long()}


def load_language(folder: Path, *, precision: str, end: str | int | None = None) -> Language:
    """`end`: what ends a text where it is not the tokenizer's own end, as a line break for OPT in the authors' code; or its id. ValueError
    when transformers can't read the folder, or `end` is not one token."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    reads = read_config(folder).get("is_encoder_decoder", False)
    try:
        model = read_model(AutoModelForSeq2SeqLM if reads else AutoModelForCausalLM, folder, precision=precision)
        tokenizer = read_tokenizer(folder)
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as a language model with its tokenizer ({e})") from None
    return replace(language_of(model, tokenizer, folder_hash(folder), end=end), folder=folder)


def language_of(model: Any, tokenizer: Any, identity: str, *, end: str | int | None = None) -> Language:
    ends = (
        tokenizer(end, add_special_tokens=False)["input_ids"] if isinstance(end, str) else [tokenizer.eos_token_id if end is None else end]
    )
    if len(ends) != 1 or ends[0] is None:
        raise ValueError(f"end {end!r} is {ends} by the language model's tokenizer; expected one token: name another, as '\\n'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loading processes are forks
    return Language(model.eval().requires_grad_(False), tokenizer, identity, int(ends[0]))
