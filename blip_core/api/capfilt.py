"""The captioner and the filter of a loaded model, asked about pictures of one's own (paper section 3.3)."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypedDict, Unpack

import numpy as np

from blip_core.api.models import Model
from blip_core.api.pictures import Picture, read_pictures
from blip_core.capfilt.pair_scores import PairScores
from blip_core.config.capfilt import WriterConfig
from blip_core.config.reading import checked

# a beam search as BLIP's authors caption COCO (configs/caption_coco.yaml of their code), and p as in the paper's section 4.3
_USUAL = {"p": 0.9, "top_k": 0, "temperature": 1.0, "beams": 3, "min_tokens": 5, "max_tokens": 20, "repetition_penalty": 1.0}


class SamplerOptions(TypedDict, total=False):
    """How a caption is written, as `sampler` in params.yaml.

    Attributes:
        beams: Of a beam search; 3.
        p: Nucleus: a token is drawn from the smallest set with this much probability; 0.9.
        top_k: Nucleus: and only from so many of the most probable; 0 is any.
        temperature: Nucleus: below 1 is surer, above 1 more diverse; 1.0.
        min_tokens: New tokens at least; 5.
        max_tokens: New tokens at most, the end counted; 20.
        repetition_penalty: Above 1 makes a token that was said less probable; 1.0.
    """

    beams: int
    p: float
    top_k: int
    temperature: float
    min_tokens: int
    max_tokens: int
    repetition_penalty: float


def caption(
    model: Model,
    images: Sequence[Picture],
    *,
    sampler: Literal["beam", "nucleus"] = "beam",
    num_candidates: int = 1,
    prompt: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    **options: Unpack[SamplerOptions],
) -> list[list[str]]:
    """Captions of pictures by a BLIP.

    A sampled caption follows from the seed and the picture's own pixels, whatever stands beside it and in whichever form it comes.

    Args:
        model: From `load_model`; it must have a decoder.
        images: Paths, the bytes of files (JPEG, PNG, WebP, GIF), PIL images or arrays, uint8 [height, width, 3].
        sampler: beam, the most probable caption, as the paper evaluates; or nucleus, more diverse, as its CapFilt writes (section 4.3).
        num_candidates: Captions of each picture; of a beam search at most `beams`.
        prompt: Put before each caption, and no part of it. None is the one that the model was tuned with, as far as it is known.
        seed: Of what nucleus draws; 0 or more.
        batch_size: Pictures at a time.
        **options: See `SamplerOptions`.

    Returns:
        For each picture its captions: the best first of a beam search, in the order of drawing of nucleus.

    Raises:
        ValueError: A picture can't be read, an option has no such value, or the model can't write.
    """
    if model.captioner is None:
        raise ValueError(f"{type(model.model).__name__} can't write captions, for it has no decoder; load a BLIP")
    about = {"captioner": model.identity, "prompt": prompt, "fuses": None, "sentences": "all", "num_candidates": num_candidates}
    cfg = checked(WriterConfig, about | {"sampler": _USUAL | {"name": sampler} | options}, "caption")
    captioner = model.captioner if prompt is None else replace(model.captioner, prompt=prompt)
    found: list[list[str]] = []
    for pictures in read_pictures(images, captioner.prepare, batch_size=batch_size):
        keys = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
        numbers = {"seed": seed, "num_candidates": num_candidates, "first": 0}
        found += [[c.text for c in own] for own in captioner.captions(pictures, keys, cfg.sampler, **numbers)]
    return found


def score(model: Model, images: Sequence[Picture], texts: Sequence[str] | Sequence[Sequence[str]], *, batch_size: int = 64) -> PairScores:
    """How well texts fit pictures, by a BLIP, or by a CLIP or SigLIP.

    `texts[i]` is a text of `images[i]`, or a list of them, equally many of each picture, as `caption` gives them. All texts with all
    pictures are `score(model, images, [texts] * len(images))`; where the cosine will do, the product of `model.image_features` and
    `model.text_features` is far quicker.

    Args:
        model: From `load_model`; a BLIP must have what ITM and ITC need.
        images: N pictures, as in `caption`.
        texts: N texts, or N lists of K. A text is cut to as many tokens as the model was tuned with.
        batch_size: Pairs at a time, but at least those of one picture.

    Returns:
        Arrays float64 [N], or [N, K]: `itm`, the raw P(match) of the ITM head with [ENC] first, as trained (paper section 3.2);
            `itm_logit`, its log-odds; `itc`, the cosine of the ITC features, -1 to 1. A CLIP or SigLIP has no such head: its `itm` is
            NaN. What a round decides by is the calibrated `match` of its scores, made of both.

    Raises:
        ValueError: A picture can't be read, a text is no string, the numbers do not fit, or the model lacks a head.
    """
    single = all(isinstance(text, str) for text in texts)
    rows = [list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text] for text in texts]
    _check(rows, len(images))
    width = len(rows[0])
    found, at = [], 0
    for pictures in read_pictures(images, model.filter.prepare, batch_size=max(1, batch_size // width)):
        encoded = [model.filter.encode(row) for row in rows[at : at + len(pictures)]]
        found.append(model.filter.score(pictures, encoded))
        at += len(pictures)
    shape = (len(rows),) if single else (len(rows), width)
    itm_logit, itc = (np.concatenate(parts).reshape(shape) for parts in zip(*((f.itm_logit, f.itc) for f in found), strict=True))
    return PairScores(itm_logit, itc)


def _check(rows: list[list[str]], num_images: int) -> None:
    if len(rows) != num_images or not rows:
        raise ValueError(f"{num_images} pictures and texts for {len(rows)}: expected a text, or a list of texts, for each of at least one")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row:
            raise ValueError(f"texts[{number}]: {len(row)} texts, texts[0] has {len(rows[0])}; expected equally many, at least one")
        if not all(isinstance(text, str) for text in row):
            raise ValueError(f"texts[{number}]: expected strings, got {row!r}")
