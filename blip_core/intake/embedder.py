"""Any image encoder of transformers: of each picture one vector, as CLIP, SigLIP, DINOv2 or a BLIP has learnt it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.compute.precision import autocast, resolved
from blip_core.config.intake import MeaningConfig
from blip_core.weights.folders import FAULTS, LOCAL, read_model
from blip_core.weights.hashes import folder_hash

Prepared = dict[str, Tensor]

_WITHOUT_POOLER = ("vit", "deit")  # their folders often lack that layer of BERT's; the class token is what they have learnt


@dataclass(frozen=True)
class Embedder:
    """`identity`: hash of the folder's content and of the precision."""

    model: Any
    images: Any  # the image processor
    precision: str
    batch_size: int
    identity: str

    def prepared(self, picture_HW3: np.ndarray) -> Prepared:
        """What the model sees of a picture, uint8."""
        return dict(self.images(images=[picture_HW3], input_data_format="channels_last", return_tensors="pt"))

    @torch.inference_mode()
    def vectors(self, prepared: list[Prepared]) -> np.ndarray:
        """float32 [pictures, D]. Short batches are filled up: the shape of a product may decide how its sums are rounded."""
        full = prepared + prepared[:1] * (self.batch_size - len(prepared))
        inputs = {name: torch.cat([own[name] for own in full]).to(device()) for name in full[0]}
        with autocast(self.precision):
            found = _embedded(self.model, inputs)
        return found[: len(prepared)].float().cpu().numpy()


def load_embedder(cfg: MeaningConfig) -> Embedder:
    """On this process's device. ValueError when the folder is no image encoder, or gives the same pictures other vectors each time."""
    from transformers import AutoImageProcessor

    try:
        model = _read(cfg.model)
        images = AutoImageProcessor.from_pretrained(cfg.model, **LOCAL)
        embedder = Embedder(model, images, cfg.precision, cfg.batch_size, f"{folder_hash(cfg.model)} {resolved(cfg.precision)}")
        once, again = (embedder.vectors(_samples(embedder)) for _ in range(2))
    except (*FAULTS, AttributeError) as e:  # of a model that takes no pictures
        raise ValueError(
            f"{cfg.model}: transformers can't read this as an image encoder with its image processor, as CLIP's, SigLIP's or DINOv2's "
            f"({str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__})"
        ) from None
    if not np.allclose(once, again, rtol=1e-3, equal_nan=True):
        raise ValueError(f"{cfg.model}: gives one picture two embeddings, as a model that hides patches by chance; name another encoder")
    return embedder


def _samples(embedder: Embedder) -> list[Prepared]:
    """A wide picture and a high one of noise, as many as fit into a batch."""
    draw = np.random.default_rng(0)
    sizes = [(48, 64), (64, 48)][: embedder.batch_size]
    return [embedder.prepared(draw.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def _read(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel, BlipForImageTextRetrieval

    kind = AutoConfig.from_pretrained(folder, **LOCAL).model_type
    if kind == "blip":  # AutoModel's class has other projections than those that BLIP is trained with
        return read_model(BlipForImageTextRetrieval, folder, precision="fp32")
    return read_model(AutoModel, folder, precision="fp32", **({"add_pooling_layer": False} if kind in _WITHOUT_POOLER else {}))


def _embedded(model: Any, inputs: Prepared) -> Tensor:
    """What is compared with texts, where the model learnt that; else its pooled state, else its class token."""
    if hasattr(model, "vision_proj"):  # BLIP's ITC
        return model.vision_proj(model.vision_model(**inputs).last_hidden_state[:, 0])
    found = model.get_image_features(**inputs) if hasattr(model, "get_image_features") else model(**inputs)
    pooled = getattr(found, "pooler_output", None)
    return (found.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)
