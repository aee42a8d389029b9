"""A captioner and a filter at work on pictures of one's own (paper section 3.3): what stands behind the methods of `Model`."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from blip_core.api.pictures import Picture, read_each, require_read
from blip_core.capfilt.med import Captioner, Filter
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


@dataclass(frozen=True)
class Match:
    """How well texts fit pictures: arrays float64, or single numbers of one picture with one text.

    Attributes:
        itm: Raw P(match) of the ITM head with [ENC] first, as trained (paper section 3.2); NaN of a CLIP or SigLIP, which has no such head.
        itm_logit: Its log-odds.
        itc: Cosine of the ITC features, -1 to 1.
        match: Calibrated P(match), by which a round decides; None of a model that no round has calibrated.
    """

    itm: np.ndarray
    itm_logit: np.ndarray
    itc: np.ndarray
    match: np.ndarray | None


def writer(
    identity: str, *, sampler: Literal["beam", "nucleus"], num_candidates: int, prompt: str | None, options: SamplerOptions
) -> WriterConfig:
    """The checked settings of a captioner. ValueError names an option that has no such value."""
    about = {"captioner": identity, "prompt": prompt, "fuses": None, "sentences": "all", "num_candidates": num_candidates}
    return checked(WriterConfig, about | {"sampler": _USUAL | {"name": sampler} | options}, "caption")


def each_caption(
    captioner: Captioner, images: Sequence[Picture], cfg: WriterConfig, *, seed: int, batch_size: int
) -> Iterator[list[str] | ValueError]:
    """The captions of each picture, in order; of one that can't be read, why."""

    def prepared(picture: np.ndarray) -> tuple[str, Any]:
        return hashlib.sha256(picture.tobytes()).hexdigest(), captioner.prepare(picture)

    numbers = {"seed": seed, "num_candidates": cfg.num_candidates, "first": 0}
    for batch in read_each(images, prepared, batch_size=batch_size):
        readable = [found for found in batch if not isinstance(found, ValueError)]
        keys, pictures = [key for key, _ in readable], [picture for _, picture in readable]
        made = iter(captioner.captions(pictures, keys, cfg.sampler, **numbers) if pictures else [])
        yield from (found if isinstance(found, ValueError) else [caption.text for caption in next(made)] for found in batch)


def each_score(
    judge: Filter, images: Sequence[Picture], texts: Sequence[list[str]], *, batch_size: int
) -> Iterator[PairScores | ValueError]:
    """The scores of texts[i] against images[i], in order; of a picture that can't be read, why. Each has equally many texts."""
    at, width = 0, len(texts[0])
    for batch in read_each(images, judge.prepare, batch_size=max(1, batch_size // width)):
        own = texts[at : at + len(batch)]
        readable = [(found, row) for found, row in zip(batch, own, strict=True) if not isinstance(found, ValueError)]
        scores = judge.score([found for found, _ in readable], [judge.encode(row) for _, row in readable]) if readable else None
        places = iter(np.arange(len(readable) * width).reshape(-1, width))
        for found in batch:
            if isinstance(found, ValueError):
                yield found
            else:
                assert scores is not None
                yield scores.where(next(places))
        at += len(batch)


def scores_of(judge: Filter, images: Sequence[Picture], texts: list[list[str]], *, batch_size: int) -> PairScores:
    """Flat, of all pairs. ValueError names a picture that can't be read, or texts that do not fit."""
    check_texts(texts, len(images))
    each = each_score(judge, images, texts, batch_size=batch_size)
    found = [require_read(scores, number) for number, scores in enumerate(each)]
    return PairScores(*(np.concatenate([getattr(f, name) for f in found]) for name in ("itm_logit", "itc")))


def rows_of(texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """A list of texts for each picture, where a picture may have a single one."""
    if isinstance(texts, str):
        raise ValueError(f"texts: expected a list, a text or more for each picture, got {texts!r:.80}")
    return [list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text] for text in texts]


def check_texts(rows: list[list[str]], num_images: int) -> None:
    if len(rows) != num_images or not rows:
        raise ValueError(f"{num_images} pictures and texts for {len(rows)}: expected a text, or a list of texts, for each of at least one")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row:
            raise ValueError(f"texts[{number}]: {len(row)} texts, texts[0] has {len(rows[0])}; expected equally many, at least one")
        if not all(isinstance(text, str) for text in row):
            raise ValueError(f"texts[{number}]: expected strings, got {row!r}")
