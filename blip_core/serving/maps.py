"""Where the model looked, as an answer holds it: numbers for a program, and a picture for a person."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from blip_core.gradcam.picture import overlay
from blip_core.gradcam.words import Look


def as_answer(look: Look, picture: np.ndarray) -> dict[str, Any]:
    """`layer`: counted from 1. `whole`, and `map` of each word: rows of patches. `overlay`: `whole` over the uint8 H x W x 3 picture, a
    PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(overlay(picture, look.whole)).save(buffer, "PNG")
    words = [{"word": word, "map": _numbers(weights)} for word, weights in zip(look.words, look.weights, strict=True)]
    drawn = base64.b64encode(buffer.getvalue()).decode()
    return {"layer": look.layer + 1, "whole": _numbers(look.whole), "words": words, "overlay": drawn}


def _numbers(weights_SS: np.ndarray) -> list[list[float]]:
    """With four digits: a map is no more exact."""
    return [[float(f"{value:.4g}") for value in row] for row in weights_SS.tolist()]
