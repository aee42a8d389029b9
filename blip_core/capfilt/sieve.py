"""SIEVE's way to judge (Mahmoud et al. 2024): a text fits a picture when it says what one of some captions of the picture says.

A captioner writes the captions, a sentence encoder compares. `itc` is the largest cosine. Words such as "a photo of" say nothing of what is
seen, and are left out on both sides.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.capfilt.med import Captioner
from blip_core.capfilt.pair_scores import PairScores
from blip_core.compute.distributed import device
from blip_core.compute.padding import pad
from blip_core.config.capfilt import SamplerConfig
from blip_core.weights.folders import FAULTS, read_model, read_tokenizer

CAPTIONS = 8
SAMPLER = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.0, beams=1, min_tokens=5, max_tokens=20, repetition_penalty=1.0)
_MEDIUM = re.compile(
    r"\b(?:an?|the|this)?\s*\b(?:image|picture|photo|photograph|painting|drawing|illustration|screenshot|view) (?:of|shows)\b", re.I
)


@dataclass(frozen=True)
class Encoder:
    """Sentences to unit vectors."""

    model: Any
    tokenizer: Any
    pooling: str  # mean or cls, as sentence-transformers has them

    def encode(self, texts: list[str]) -> list[list[int]]:
        plain = [_MEDIUM.sub("", text).strip() or text for text in texts]
        return self.tokenizer(plain, truncation=True, max_length=min(256, self.model.config.max_position_embeddings))["input_ids"]

    def features(self, texts: list[list[int]]) -> Tensor:
        ids, mask = (t.to(device()) for t in pad(texts, self.tokenizer.pad_token_id or 0))
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = hidden[:, 0] if self.pooling == "cls" else (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=-1)


@dataclass(frozen=True)
class SieveFilter:
    captioner: Captioner
    encoder: Encoder
    identity: str

    def prepare(self, picture: np.ndarray) -> tuple[str, Any]:
        """With a key by its pixels: what is written of a picture must not depend on where it stands."""
        return hashlib.sha256(picture.tobytes()).hexdigest(), self.captioner.prepare(picture)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.encoder.encode(texts)

    @torch.inference_mode()
    def score(self, pictures: list[tuple[str, Any]], texts: list[list[list[int]]]) -> PairScores:
        keys, prepared = [key for key, _ in pictures], [picture for _, picture in pictures]
        written = self.captioner.captions(prepared, keys, SAMPLER, seed=0, num_candidates=CAPTIONS, first=0)
        captions = self.encoder.features(self.encoder.encode([caption.text for own in written for caption in own]))
        found = self.encoder.features([text for row in texts for text in row])
        owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(row) for row in texts])).to(device())
        itc = torch.einsum("td,tcd->tc", found, captions.unflatten(0, (len(pictures), CAPTIONS))[owner]).amax(-1).double().cpu().numpy()
        return PairScores(np.full(len(itc), np.nan), itc)


def load_encoder(folder: Path, *, precision: str) -> Encoder:
    """ValueError when transformers can't read the folder, or it pools in another way."""
    from transformers import AutoModel

    try:
        model, tokenizer = read_model(AutoModel, folder, precision=precision), read_tokenizer(folder)
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as a sentence encoder with its tokenizer ({e})") from None
    path = folder / "1_Pooling" / "config.json"
    modes = json.loads(path.read_text()) if path.exists() else {"pooling_mode_mean_tokens": True}
    if modes.get("pooling_mode_cls_token"):
        return Encoder(model, tokenizer, "cls")
    if not modes.get("pooling_mode_mean_tokens"):
        raise ValueError(f"{path}: expected pooling_mode_mean_tokens or pooling_mode_cls_token, got {modes}")
    return Encoder(model, tokenizer, "mean")
