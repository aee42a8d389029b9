"""Params of a chain with BLIP-2: a tiny Q-Former upon the image encoder of a folder."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TINY: dict[str, Any] = dict(width=24, depth=2, heads=3, mlp_width=40, max_positions=40, activation="gelu", norm_eps=1e-12, dropout=0.0)


def blip2_values(values: dict, encoder: Path | str) -> dict:
    """The values of a parameter file with `model.kind: blip2`."""
    qformer = {**TINY, "num_queries": 3, "cross_every": 2, "embed_dim": 16}
    sizes = {"encoder": str(encoder), "features": {"cache": None, "max_gib": 1.0}, "qformer": qformer, "label_smoothing": 0.1}
    return values | {"model": {"kind": "blip2", **sizes, "init": values["model"]["init"]}}


def clip_folder(folder: Path, **vision: int) -> Path:
    """A CLIP of transformers with random weights."""
    from transformers import CLIPConfig, CLIPModel

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8) | vision
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPModel(CLIPConfig(vision_config=sizes, text_config=text)).save_pretrained(folder)
    return folder


def pictures(n: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


def picture_files(folder: Path) -> list[str]:
    for i, pixels in enumerate(pictures()):
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(2)]
