"""CLIP and SigLIP folders of transformers as filters: their cosine is the score that BLIP-2 ranked captions by (section 4.1 there).

They have no ITM head, so `itm` stays empty. transformers reads the weights, the tokenizer and how a picture is to be prepared.
"""

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
from blip_core.weights.load import read_config

TYPES = ("clip", "siglip", "siglip2")


def is_clip(path: Path) -> bool:
    """Whether a folder says that it holds one. ValueError when its config.json can't be read."""
    return path.is_dir() and read_config(path).get("model_type") in TYPES


@dataclass(frozen=True)
class ClipFilter:
    """Scores texts by the cosine of the two towers."""

    model: Any  # CLIPModel, SiglipModel or Siglip2Model
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

    local = {"local_files_only": True}
    try:
        model = AutoModel.from_pretrained(folder, **local).eval().to(device())
        tokenizer, images = _tokenizer(folder), AutoImageProcessor.from_pretrained(folder, **local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
        raise ValueError(f"{folder}: transformers can't read this as a CLIP or SigLIP folder with its processor ({e})") from None
    text = model.config.text_config
    fixed = model.config.model_type != "clip"
    return ClipFilter(model, tokenizer, images, identity, text.max_position_embeddings, fixed, precision)


def _tokenizer(folder: Path) -> Any:
    """SigLIP's own class wants the package sentencepiece; where that is missing, tokenizer.json says the same."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError:
        if not (folder / "tokenizer.json").exists():
            raise ValueError("its tokenizer needs the package sentencepiece, or a tokenizer.json in the folder") from None
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _unit(features: Any) -> Tensor:
    features = features if isinstance(features, Tensor) else features.pooler_output  # transformers 5 wraps them
    return torch.nn.functional.normalize(features.float(), dim=-1)
