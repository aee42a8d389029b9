"""The section `model`: sizes of the network and of its random beginning."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from blip_core.config.base import Config, Positive, Share

# of pixels in [0, 1], by which they are normalised: those of CLIP, as the public BLIP uses
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


Sharing = Literal["all", "all_but_cross", "all_but_self", "none"]


class VisionConfig(Config):
    """ViT (Dosovitskiy et al. 2021), pre-norm."""

    image_size: Positive
    patch_size: Positive
    stem: Literal["patch", "conv", "cells"] = Field(
        "patch",
        description="what makes tokens of pixels. patch: one convolution per patch, as the paper; conv: 3 x 3 convolutions that halve the "
        "picture until a token is one of patch_size, a power of 2; cells: fixed colours and gradients of a patch, then one linear layer. "
        "conv needs fewer pictures, cells fewer still; transformers has no model with either to export to",
    )
    width: Positive
    depth: Positive
    heads: Positive
    mlp_ratio: float = Field(gt=0)
    activation: Literal["gelu", "relu"]
    norm_eps: float = Field(gt=0)
    drop_path: Share = Field(description="stochastic depth rate of the last block, linear from 0")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"patch_size is {self.patch_size}; the stem conv halves the picture, so it must be a power of 2, as 8 or 16")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class TextConfig(Config):
    """The BERT-shaped text transformer of MED, post-norm."""

    width: Positive
    depth: Positive
    heads: Positive
    mlp_width: Positive
    max_positions: Positive
    activation: Literal["gelu", "relu"]
    norm_eps: float = Field(gt=0)
    dropout: Share

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class QFormerConfig(TextConfig):
    """Q-Former (Li et al. 2023, arXiv 2301.12597, section 3.1): BERT's sizes, and learned queries beside the text."""

    num_queries: Positive = Field(description="32 in the paper")
    cross_every: Positive = Field(description="one of so many blocks attends to the image, the first of them; 2 in the paper")
    embed_dim: Positive = Field(description="of the ITC space (256 in the paper)")


class InitConfig(Config):
    """Standard deviations of the random initialisation (BERT and ViT use 0.02 throughout)."""

    weight: float = Field(gt=0)
    patch: float = Field(gt=0, description="patch embedding")
    image_position: float = Field(gt=0)
    token: float = Field(gt=0)
    text_position: float = Field(gt=0)


class FeatureConfig(Config):
    """What a frozen image encoder makes of the pictures (blip_core/training/features.py)."""

    cache: Path | None = Field(description="folder to keep the features in, so that an epoch costs no image pass; null: none is kept")
    max_gib: float = Field(gt=0, description="of the cache: features of other encoders and shards are dropped for it, the oldest first")


class FrozenLanguageConfig(Config):
    """The language model of stage 2, which is never trained."""

    folder: Path = Field(description="of transformers: any AutoModelForCausalLM or AutoModelForSeq2SeqLM, with its own tokenizer")
    end: str | None = Field(description="the token that ends a caption; null: the tokenizer's own. The authors end OPT's by a line break")


class Blip2Config(Config):
    """With `kind: blip2`: a Q-Former upon a frozen image encoder in place of BLIP (docs/blip2.md)."""

    kind: Literal["blip2"]
    encoder: Path = Field(description="folder of the image encoder: a BLIP, ours or of transformers, a BLIP-2, CLIP or SigLIP")
    features: FeatureConfig = Field(description="of pretrain; the tunings compute them with each batch")
    qformer: QFormerConfig
    language: FrozenLanguageConfig | None = Field(None, description="what writes behind stage 2; null: stage 1 alone, whose ITG writes")
    label_smoothing: Share = Field(description="of ITC's targets, in place of the momentum encoder's; the authors' code has 0.1")
    init: InitConfig


class ModelConfig(Config):
    """Sizes of BLIP. The vocabulary's size is not here: it comes with the tokenizer."""

    vision: VisionConfig
    text: TextConfig
    embed_dim: Positive = Field(description="of the ITC space (256 in the paper)")
    pooling: Literal["first", "mean"] = Field(
        "first",
        exclude_if=lambda pooling: pooling == "first",  # so that what is written of models is as it was before there was another
        description="what ITC compares of a text: its first token, as the paper; or the mean of its tokens, which learns from fewer texts",
    )
    share: Sharing = Field(
        "all_but_self",
        exclude_if=lambda share: share == "all_but_self",  # likewise
        description="what encoder and decoder of the text share (paper, Table 3): all; all_but_cross; all_but_self, as the paper; or none, "
        "where the decoder has embeddings of its own too",
    )
    init: InitConfig


def _by_kind(values: object) -> object:
    """No kind is a BLIP, so that its settings are what they were before there was another."""
    if not isinstance(values, dict):
        return values
    kind = values.get("kind", "med")
    if kind not in ("med", "blip2"):
        raise ValueError(f"kind is {kind!r}; expected med or blip2")
    return Blip2Config(**values) if kind == "blip2" else ModelConfig(**{k: v for k, v in values.items() if k != "kind"})


AnyModelConfig = Annotated[ModelConfig | Blip2Config, BeforeValidator(_by_kind)]
