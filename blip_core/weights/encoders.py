"""Frozen image encoders for a Q-Former: the ViT of a BLIP, or of a folder of transformers: BLIP-2's (EVA-CLIP), CLIP, SigLIP.

All give their states before their last norm. As in the paper (section 3.3) the last layer of CLIP and SigLIP is left out; BLIP-2's ViT
lacks it already, and a BLIP's whole ViT was trained for what follows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_core.compute.distributed import device
from blip_core.config.model import MEAN, STD, VisionConfig
from blip_core.files.content import read_json
from blip_core.model.vit import Vit
from blip_core.weights.checkpoint import load_model, model_hash
from blip_core.weights.folders import FAULTS, read_model
from blip_core.weights.hashes import folder_hash
from blip_core.weights.load import load_pretrained, read_config, read_tensors

_LAYER = -2  # of CLIP and SigLIP: the states behind the last layer but one


@dataclass(frozen=True)
class Encoder:
    """Normalised pixels (as BLIP normalises), `image_size` a side, to I x N x `width`. `norm`: the last norm that the encoder was trained
    with, to begin the Q-Former's own with. `identity`: a content hash."""

    module: nn.Module
    width: int
    image_size: int
    identity: str
    norm: nn.LayerNorm | None = None

    @torch.no_grad()
    def __call__(self, pixels_I3HW: Tensor) -> Tensor:
        return self.module(pixels_I3HW)


class OthersEncoder(nn.Module):
    """A vision model of transformers that was trained on pixels of another mean and standard deviation, maybe."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, *, mean: list[float], std: list[float]):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std
        for name, values in (
            ("scale", [ours / own for ours, own in zip(STD, std, strict=True)]),
            ("shift", [(ours - own) / by for ours, own, by in zip(MEAN, mean, std, strict=True)]),
        ):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pixels_I3HW: Tensor) -> Tensor:
        pixels = pixels_I3HW * self.scale + self.shift
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[_LAYER]


def about_encoder(module: nn.Module) -> dict[str, Any]:
    """What `bare_encoder` makes such a network of, without weights, as JSON has it."""
    if isinstance(module, Vit):
        return {"vit": module.cfg.model_dump()}
    assert isinstance(module, OthersEncoder)
    return {"transformers": module.model.config.to_diff_dict(), "mean": module.mean, "std": module.std}  # type: ignore[union-attr, operator]


def bare_encoder(about: dict[str, Any]) -> nn.Module:
    """An encoder whose weights are to be filled in, without its last norm."""
    if "vit" in about:
        vit = Vit(VisionConfig(**about["vit"]))
        vit.norm = nn.Identity()  # type: ignore[assignment]
        return vit
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_config(AutoConfig.for_model(**about["transformers"]))
    return OthersEncoder(getattr(model, "vision_model", model), mean=about["mean"], std=about["std"])


def load_encoder(folder: Path) -> Encoder:
    """In eval mode on this process's device, fp32, without gradient. ValueError says what the folder lacks."""
    config = read_config(folder)
    if "model" in config or config.get("model_type") == "blip":
        if config.get("model", {}).get("kind") == "blip2":
            raise ValueError(f"{folder}: a BLIP-2 of ours, whose encoder is another's; name the folder that it was made upon")
        model = (load_model if "model" in config else load_pretrained)(folder)[0]
        found = of_vit(model.vit, model_hash(folder) if "model" in config else folder_hash(folder))
    elif config.get("model_type") in ("blip-2", "blip_2_vision_model"):
        found = of_vit(_blip2_vit(config, folder), folder_hash(folder))
    else:
        found = _of_others(folder)
    found.module.to(device()).eval().requires_grad_(False)
    return found


def of_vit(vit: Vit, identity: str) -> Encoder:
    """Our ViT, its last norm taken off."""
    norm, vit.norm = vit.norm, nn.Identity()  # type: ignore[assignment]
    return Encoder(vit, vit.cfg.width, vit.cfg.image_size, identity, norm)


def blip2_vision(config: dict[str, Any]) -> VisionConfig:
    """Our sizes of transformers' Blip2VisionConfig; what config.json leaves out has the default of that class."""
    from transformers import Blip2VisionConfig

    full = Blip2VisionConfig(**config)
    if full.qkv_bias is False:
        raise ValueError("vision_config.qkv_bias is false; the ViT here has biases, as those of BLIP-2's checkpoints do")
    return VisionConfig(
        image_size=full.image_size,
        patch_size=full.patch_size,
        width=full.hidden_size,
        depth=full.num_hidden_layers,
        heads=full.num_attention_heads,
        mlp_ratio=full.intermediate_size / full.hidden_size,
        activation=full.hidden_act,
        norm_eps=full.layer_norm_eps,
        drop_path=0.0,
    )


def _blip2_vit(config: dict[str, Any], folder: Path) -> Vit:
    """Of a whole BLIP-2, or of its vision model alone."""
    from blip_core.weights.names import Layout, huggingface_vision
    from blip_core.weights.pretrained import copy_in

    alone = config["model_type"] == "blip_2_vision_model"
    vit = Vit(blip2_vision(config if alone else config.get("vision_config") or {}))
    start = "" if alone else "vision_model."
    tensors = {f"vision_model.{key.removeprefix(start)}": value for key, value in read_tensors(folder).items() if key.startswith(start)}
    pairs = [(ours.removeprefix("vit."), theirs) for ours, theirs in huggingface_vision(vit.cfg.depth)]
    copy_in(vit, tensors, Layout(pairs, [], ()), source=str(folder))
    return vit


def _of_others(folder: Path) -> Encoder:
    from transformers import AutoModel

    try:
        model = read_model(AutoModel, folder, precision="fp32")
        model = getattr(model, "vision_model", model)
        config = model.config
        if not hasattr(config, "patch_size"):
            raise ValueError(f"a {type(model).__name__} has no patches; expected a vision transformer, as CLIP's or SigLIP's")
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as an image encoder ({e})") from None
    about = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").exists() else {}
    pixels = {"mean": about.get("image_mean", list(MEAN)), "std": about.get("image_std", list(STD))}
    return Encoder(OthersEncoder(model, **pixels), config.hidden_size, config.image_size, folder_hash(folder))
