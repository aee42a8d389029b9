"""CLIP and its family as filters, SigLIP, ALIGN, MetaCLIP 2, Chinese-CLIP and what else has two towers in transformers: their cosine is the
score that BLIP-2 ranked captions by (section 4.1 there).

They have no ITM head, so `itm` stays empty. transformers reads the weights, the tokenizer and how a picture is to be prepared.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_core.capfilt.pair_scores import PairScores
from blip_core.compute.distributed import device
from blip_core.compute.padding import pad
from blip_core.compute.precision import autocast
from blip_core.weights.folders import FAULTS, LOCAL, read_model, read_tokenizer
from blip_core.weights.load import read_config

_BERT, _SHORT = 512, 64  # a tower that was a BERT has so many positions, and has learnt of pictures by the first alone
_OTHERS = ("blip", "blip-2", "videoprism")  # BLIPs have files of their own; VideoPrism takes no picture


@functools.cache
def contrastive_types() -> tuple[str, ...]:
    """Each model_type that transformers lists for zero-shot image classification, but for those that are other models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as LISTED

    return tuple(kind for kind in LISTED if kind not in _OTHERS)


def is_clip(path: Path) -> bool:
    """Whether a folder says that it holds one. ValueError when its config.json can't be read."""
    kind = read_config(path).get("model_type") if path.is_dir() else None
    return kind not in (None, *_OTHERS) and kind in contrastive_types()


@dataclass(frozen=True)
class ClipFilter:
    """Scores texts by the cosine of the two towers."""

    model: Any  # CLIPModel or one of its family
    tokenizer: Any
    images: Any  # the image processor
    identity: str
    max_tokens: int
    fixed_length: bool  # SigLIP learnt on texts padded to one length, and reads the last token
    precision: str

    def prepare(self, picture: np.ndarray) -> dict[str, Tensor]:
        """pixel_values; of a SigLIP 2 that takes any aspect also which patches are real, and their grid."""
        prepared = self.images(images=picture, input_data_format="channels_last", return_tensors="pt")
        return {name: torch.as_tensor(values)[0] for name, values in prepared.items()}

    def encode(self, texts: list[str]) -> list[list[int]]:
        padding = {"padding": "max_length"} if self.fixed_length else {}
        return self.tokenizer(texts, truncation=True, max_length=self.max_tokens, **padding)["input_ids"]

    @torch.inference_mode()
    def score(self, pictures: list[dict[str, Tensor]], texts: list[list[list[int]]]) -> PairScores:
        image, text = self.image_features(pictures), self.text_features([ids for row in texts for ids in row])
        owner = torch.repeat_interleave(
            torch.arange(len(texts), device=device()), torch.tensor([len(row) for row in texts], device=device())
        )
        cosine = (image[owner] * text).sum(-1).double().cpu().numpy()
        return PairScores(np.full(len(cosine), np.nan), cosine)

    @torch.inference_mode()
    def image_features(self, pictures: list[dict[str, Tensor]]) -> Tensor:
        together = {name: torch.stack([p[name] for p in pictures]).to(device()) for name in pictures[0]}
        with autocast(self.precision):
            return _unit(self.model.get_image_features(**together))

    @torch.inference_mode()
    def text_features(self, texts: list[list[int]]) -> Tensor:
        ids, mask = (t.to(device()) for t in pad(texts, self.tokenizer.pad_token_id or 0))
        inputs = {"input_ids": ids} if self.fixed_length else {"input_ids": ids, "attention_mask": mask}
        with autocast(self.precision):
            return _unit(self.model.get_text_features(**inputs))


def load_clip(folder: Path, identity: str, *, precision: str) -> ClipFilter:
    """ValueError when transformers can't read the folder."""
    from transformers import AutoImageProcessor, AutoModel

    kind = read_config(folder)["model_type"]
    try:
        model = read_model(AutoModel, folder, precision="fp32")
        tokenizer, images = read_tokenizer(folder), AutoImageProcessor.from_pretrained(folder, **LOCAL)
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as a {kind} with its processor ({e})") from None
    positions = model.config.text_config.max_position_embeddings
    most = positions if positions < _BERT else _SHORT
    return ClipFilter(model, tokenizer, images, identity, most, kind in ("siglip", "siglip2"), precision)


def _unit(features: Any) -> Tensor:
    features = features if isinstance(features, Tensor) else features.pooler_output  # transformers 5 wraps them
    return torch.nn.functional.normalize(features.float(), dim=-1)
