"""Fused texts: one of a web text and a synthetic caption of the same picture, as in CapsFusion (Yu et al. 2024), LaCLIP (Fan et al. 2023)
and VeCLIP (Lai et al. 2024).

A web text has names and numbers that no captioner sees; a caption has the sight. `Fuser` is what fuses them: any folder that transformers
lists for text generation, here, or a model that a server has (endpoint.py). A fused text is a function of seed, key and number alone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from blip_core.capfilt.med import Captioner
from blip_core.capfilt.vlm import Vlm, VlmCaptioner
from blip_core.texts.screens import screened
from blip_core.weights.folders import FAULTS, read_model, read_tokenizer
from blip_core.weights.load import read_config

FUSE = (
    "Two texts go with one picture. The first is from the web and may name people, places and numbers; the second says what is seen. Write "
    "one sentence that keeps the names and numbers of the first and the sight of the second, adds nothing, and says nothing twice. Answer "
    "with the sentence alone.\nFirst: {web}\nSecond: {caption}\nSentence:"
)


class Pair(NamedTuple):
    """The parents of a fused text, with their candidate numbers."""

    key: str
    image_id: str
    fused_web: int
    web: str
    fused_synthetic: int
    caption: str


class Fuser(Captioner, Protocol):
    """A captioner whose `captions` take pairs of texts in place of pictures."""

    def prepare_pair(self, web: str, caption: str) -> Any:
        """As `captions` takes it."""


def pairs(base: pa.Table, captions: Iterable[dict[str, Any]]) -> list[Pair]:
    """Each picture's first web text in a table of the base with each of its captions, but for empty texts and what a screen dropped.

    In the order of their length, so that prompts of one length, which go together, meet in a batch.
    """
    table = base.filter(pc.and_not(pc.equal(base["source"], "web"), screened(base)))
    web: dict[str, dict[str, Any]] = {}
    for row in table.select(["key", "candidate", "text"]).sort_by("candidate").to_pylist():
        if row["text"].strip():
            web.setdefault(row["key"], row)
    found = (
        Pair(c["key"], c["image_id"], web[c["key"]]["candidate"], web[c["key"]]["text"], c["candidate"], c["text"])
        for c in captions
        if c["key"] in web and c["text"].strip()
    )
    return sorted(found, key=lambda pair: (len(pair.web) + len(pair.caption), pair.key, pair.fused_synthetic))


def filled(prompt: str, web: str, caption: str) -> str:
    """The prompt with both texts in their places."""
    return re.sub(r"\{(web|caption)\}", lambda place: web if place[1] == "web" else caption, prompt)


@dataclass(frozen=True)
class TextModel(Vlm):
    """A model of words alone; its processor is a tokenizer."""

    def content(self, prompt: str) -> str:
        return prompt

    def words(self, prompt: str) -> dict[str, Tensor]:
        """As `generate` takes them. ValueError when they are more than the model has places for."""
        text, bos = self.prompt_text(prompt) if self.chats else prompt, self.tokenizer.bos_token
        found = self.tokenizer(text, add_special_tokens=not (self.chats and bos and text.startswith(bos)), return_tensors="pt")
        places, num = getattr(self.model.config, "max_position_embeddings", None), found["input_ids"].shape[1]
        if places and num >= places:
            raise ValueError(
                f"a prompt has {num} tokens, and the {self.kind} has {places} places: {text[:200]!r}; set ingest.texts.max_chars"
            )
        return {name: found[name] for name in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class FolderFuser(VlmCaptioner):
    """Of a folder; `vlm` is a TextModel."""

    vlm: TextModel

    def prepare_pair(self, web: str, caption: str) -> dict[str, Tensor]:
        return self.vlm.words(filled(self.prompt, self.vlm.plain(web), self.vlm.plain(caption)))


def load_fuser(folder: Path, identity: str, *, prompt: str | None, precision: str) -> FolderFuser:
    """No code in the folder is run. ValueError when transformers can't read it."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = read_config(folder)
    try:
        kind = AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM
        model = TextModel(read_model(kind, folder, precision=precision), read_tokenizer(folder))
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as a {config['model_type']} with its tokenizer ({e})") from None
    return FolderFuser(model, identity, FUSE if prompt is None else prompt)
