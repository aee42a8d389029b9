"""Models for a notebook: where they come from, and what they are there. caption and score are in capfilt.py."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from blip_core.api.pictures import Picture, read_pictures
from blip_core.capfilt.clip import is_clip, load_clip
from blip_core.capfilt.med import FeatureFilter, MedCaptioner
from blip_core.capfilt.plugins import identify, open_blip
from blip_core.tables.stopped import require_made
from blip_core.tracking.registry import fetch_model


@dataclass(frozen=True)
class Model:
    """A model that `load_model` made ready: in eval mode, on the GPU of this process or else the CPU.

    Attributes:
        model: The network: our `Blip`, or a CLIP or SigLIP of transformers.
        tokenizer: What makes its token ids.
        image_size: Side of the squares that the network sees, in pixels; None for CLIP and SigLIP, whose processor decides.
        filter: What `score` asks.
        captioner: What `caption` asks; None for CLIP and SigLIP, which write nothing.
    """

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    image_size: int | None
    filter: FeatureFilter = field(repr=False)
    captioner: MedCaptioner | None = field(repr=False)

    @property
    def identity(self) -> str:
        """The content hash that texts and scores of a chain carry in the columns `model` and `filter`."""
        return self.filter.identity

    def image_features(self, images: Sequence[Picture], *, batch_size: int = 32) -> np.ndarray:
        """ITC features of pictures: float32 [images, width of the ITC space], each row of unit length. Pictures as in `caption`."""
        batches = read_pictures(images, self.filter.prepare, batch_size=batch_size)
        return np.concatenate([self.filter.image_features(pictures).cpu().numpy() for pictures in batches])

    def text_features(self, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """ITC features of texts: float32 [texts, width of the ITC space], each row of unit length; their products with those of pictures
        are ITC's cosines."""
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts: expected a list of one or more strings, got {texts!r:.80}")
        batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return np.concatenate([self.filter.text_features(self.filter.encode(batch)).cpu().numpy() for batch in batches])


def load_model(
    source: str | Path,
    *,
    vocab: str | Path | None = None,
    image_size: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    project: str | Path = ".",
) -> Model:
    """A model of ours or of others, ready to caption and score. Nothing is downloaded but from your own registry.

    It goes to the GPU of this process where there is one; `CUDA_VISIBLE_DEVICES` says which, and "" says the CPU.

    Args:
        source: A model folder of a chain, as `artifacts/models/g1`; a BLIP, CLIP or SigLIP folder as transformers' `save_pretrained`
            writes it; a `.pth` file of BLIP's authors; or `models:/NAME/VERSION` or `models:/NAME@ALIAS` in MLflow's registry.
        vocab: The vocab.txt of a public BLIP, where it is not beside the weights.
        image_size: Of a public BLIP: another side of the pictures, in pixels; its position embeddings are resized.
        precision: What it computes in. auto is bf16 where the device has instructions for it, else fp32.
        project: The folder whose `mlflow.db` is the registry, unless MLFLOW_TRACKING_URI names one. A version is copied into its
            `.work/models` once.

    Raises:
        ValueError: There is no such model, or its files do not fit. The message says what was found and what was expected.
    """
    path = _find(str(source), Path(project))
    if is_clip(path):
        if vocab or image_size:
            raise ValueError(f"{path}: a CLIP or SigLIP folder loads as it is; vocab and image_size are for public BLIPs")
        clip = load_clip(path, identify(path), precision=precision)
        return Model(clip.model, clip.tokenizer, None, clip, None)
    captioner, med = open_blip(path, precision=precision, vocab=Path(vocab) if vocab else None, image_size=image_size)
    return Model(med.model, med.tokenizer, med.model.cfg.vision.image_size, med, captioner)


def _find(source: str, project: Path) -> Path:
    if source.startswith("models:/"):
        if not os.environ.get("MLFLOW_TRACKING_URI") and not (project / "mlflow.db").exists():
            raise ValueError(f"{source}: no registry in {project.resolve()}: name the project's folder, or set MLFLOW_TRACKING_URI")
        return fetch_model(source, project, project / ".work/models")
    if not Path(source).exists():
        raise ValueError(f"{source}: no such folder or file; expected a model folder, a .pth file, or models:/NAME/VERSION")
    require_made(Path(source))
    return Path(source)
