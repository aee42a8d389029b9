"""CapFilt (paper section 3.3): caption the crawl's images and score texts against images.

`Captioner` and `Filter` are what the stages know of a model; `MedCaptioner` and `MedFilter` are our own, plugins.py opens others.
One pass over an image serves all its texts.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from blip_core.capfilt.pair_scores import PairScores
from blip_core.compute.distributed import device
from blip_core.compute.padding import pad
from blip_core.compute.pixels import load_pixels, resized
from blip_core.compute.precision import autocast
from blip_core.config.capfilt import SamplerConfig
from blip_core.files.content import hash64
from blip_core.model.blip2 import ImageText
from blip_core.model.generate import Limits, beam_search, check_length, nucleus
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.models import BothStages


class Caption(NamedTuple):
    text: str
    truncated: bool  # the limit of tokens cut it off


@torch.inference_mode()
def write_captions(
    model: ImageText,
    tokenizer: Tokenizer,
    images: list[np.ndarray],
    keys: list[str],
    cfg: SamplerConfig,
    *,
    seed: int,
    num_candidates: int = 1,
    first: int = 0,
    prompt: str = "",
    precision: str = "fp32",
) -> list[list[Caption]]:
    """`num_candidates` captions of each of the uint8 H x W x 3 images; those of a beam search are its best beams, best first.

    A sampled caption is a function of (seed, key, number of the candidate), not of the batch it was computed in; the numbers
    begin at `first`.
    """
    check_captions(model, tokenizer, prompt, cfg.max_tokens)
    pixels, drawn = load_pixels(images, model.image_size), {"seed": seed, "num_candidates": num_candidates, "first": first}
    if isinstance(model, BothStages):
        return _by_language(model, pixels, keys, cfg, prompt=prompt, precision=precision, **drawn)
    limits, start = Limits(cfg.min_tokens, cfg.max_tokens, cfg.repetition_penalty), tokenizer.encode_prompt(prompt)
    with autocast(precision):
        keys_values = model.keys_values(model.image_tokens(pixels))
        if cfg.name == "beam":
            ids = beam_search(model, keys_values, start, limits, beams=cfg.beams, num_return=num_candidates)
        else:
            draws = sample_draws(keys, num_candidates, cfg.max_tokens, seed, first=first)
            ids = nucleus(model, keys_values, start, limits, p=cfg.p, top_k=cfg.top_k, temperature=cfg.temperature, draws_IKL=draws)
    return [[Caption(tokenizer.decode(c), tokenizer.sep not in c) for c in image] for image in ids.tolist()]


def check_captions(model: ImageText, tokenizer: Tokenizer, prompt: str, max_tokens: int) -> None:
    """ValueError unless captions of so many tokens behind the prompt have a position each."""
    if isinstance(model, BothStages):
        model.language.check_length(model.cfg.num_queries, prompt, max_tokens)
    else:
        check_length(model, tokenizer.encode_prompt(prompt), max_tokens)


def _by_language(
    model: BothStages, pixels: Tensor, keys: list[str], cfg: SamplerConfig, *, prompt: str, precision: str, **drawn: int
) -> list[list[Caption]]:
    """Of the frozen language model behind the soft prompt; `prompt` and all it writes are of its own tokens."""
    from blip_core.capfilt.decoding import write  # with what transformers' models need alone

    language = model.language
    with autocast(precision):
        soft = model.prompter(model.features(pixels))
    start = torch.tensor([language.prompt(prompt)] * len(keys), dtype=torch.long, device=soft.device)
    inputs = language.inputs(soft, start, torch.ones_like(start, dtype=torch.bool))
    ends = {"eos_token_id": language.end, "pad_token_id": language.padding}
    ids = write(language.model, {**inputs, **ends}, keys, cfg, **drawn)
    return [[Caption(language.decode(c), language.end not in c) for c in image] for image in ids.tolist()]


def caption_images(*args: Any, **kwargs: Any) -> list[list[str]]:
    """The texts of `write_captions`, which says what it takes."""
    return [[caption.text for caption in image] for image in write_captions(*args, **kwargs)]


def sample_draws(keys: list[str], num_candidates: int, num_tokens: int, seed: int, *, first: int = 0) -> Tensor:
    """Uniform numbers, images x candidates x tokens; a longer limit or more candidates leave the first ones as they are."""
    numbers = range(first, first + num_candidates)
    draws = [[np.random.default_rng([seed, hash64(key) & 0xFFFFFFFFFFFF, n]).random(num_tokens) for n in numbers] for key in keys]
    return torch.from_numpy(np.array(draws)).float()


def score_texts(
    model: ImageText, tokenizer: Tokenizer, images: list[np.ndarray], texts: list[list[str]], *, max_tokens: int, precision: str = "fp32"
) -> PairScores:
    """ITM and ITC of texts[i] against images[i]; [ENC] stands at position 0, the trained score."""
    encoded = [[tokenizer.encode(t, max_tokens=max_tokens) for t in row] for row in texts]
    return score_encoded(model, images, encoded, precision=precision)


@torch.inference_mode()
def score_encoded(model: ImageText, images: list[np.ndarray], texts: list[list[list[int]]], *, precision: str) -> PairScores:
    """The same of texts that are [CLS] ids [SEP]."""
    most, special = max(map(len, texts)), model.special
    empty = [special.cls, special.sep]
    padded = [t + [empty] * (most - len(t)) for t in texts]  # equal numbers, so that each image's keys and values serve its texts at once
    with autocast(precision):
        tokens = model.image_tokens(load_pixels(images, model.image_size))
        ids, mask = (t.to(device()) for t in pad([t for row in padded for t in row], special.pad))
        logits = model.match_logits(ids, mask, model.keys_values(tokens))
        features = model.text_features(ids, mask).unflatten(0, (len(images), most))
        image = model.image_features(tokens)
        itc = torch.einsum("ie,ike->ik", image, features) if image.dim() == 2 else torch.einsum("iqe,ike->iqk", image, features).amax(1)
    real = np.concatenate([np.arange(most) < len(t) for t in texts])
    difference = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
    return PairScores(difference[real], itc.flatten().double().cpu().numpy()[real])


@torch.inference_mode()
def image_features(model: ImageText, images: list[np.ndarray], *, precision: str) -> Tensor:
    """ITC features of uint8 H x W x 3 images, unit length, fp32, on this process's device: I x E. ValueError of a BLIP-2."""
    if len(model.feature_shape) > 1:
        raise ValueError(
            f"a BLIP-2 has ITC features of {model.feature_shape[0]} queries of an image, and the best of them counts for each text, so "
            "there is no one embedding; ask for the match of image and text"
        )
    with autocast(precision):
        return model.image_features(model.image_tokens(load_pixels(images, model.image_size)))


@torch.inference_mode()
def text_features(model: ImageText, texts: list[list[int]], *, precision: str) -> Tensor:
    """Likewise of texts that are [CLS] ids [SEP]: T x E."""
    ids, mask = (t.to(device()) for t in pad(texts, model.special.pad))
    with autocast(precision):
        return model.text_features(ids, mask)


def set_threads(threads: int) -> None:
    """CPU threads of this process; 0 leaves the library's choice."""
    if threads:
        torch.set_num_threads(threads)


class Captioner(Protocol):
    """Writes captions. `identity` is the content hash that its candidates carry."""

    @property
    def identity(self) -> str: ...

    def prepare(self, picture: np.ndarray) -> Any:
        """What `captions` takes of a uint8 H x W x 3 picture; called in threads."""

    def captions(
        self, pictures: list[Any], keys: list[str], sampler: SamplerConfig, *, seed: int, num_candidates: int, first: int
    ) -> list[list[Caption]]:
        """`num_candidates` of each picture; `first` is the number of the first one, see write_captions."""


class Filter(Protocol):
    """Judges texts. `identity` is the content hash that its scores carry."""

    @property
    def identity(self) -> str: ...

    def prepare(self, picture: np.ndarray) -> Any:
        """What `score` takes of a uint8 H x W x 3 picture; called in threads."""

    def encode(self, texts: list[str]) -> list[Any]:
        """What `score` takes of texts: token ids, special ones included, or the text itself."""

    def score(self, pictures: list[Any], texts: list[list[Any]]) -> PairScores:
        """Of encoded texts[i] against pictures[i]."""


class FeatureFilter(Filter, Protocol):
    """A filter whose `itc` is the cosine of features."""

    def image_features(self, pictures: list[Any]) -> Tensor:
        """Unit length, fp32, a row for each picture."""

    def text_features(self, texts: list[Any]) -> Tensor:
        """Likewise of encoded texts."""


@dataclass(frozen=True)
class MedCaptioner:
    """A BLIP that writes captions; `model` is ready for inference at `precision` (model/inference.py)."""

    model: ImageText
    tokenizer: Tokenizer
    identity: str
    prompt: str
    precision: str

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        return resized(picture, self.model.image_size)

    def captions(
        self, pictures: list[np.ndarray], keys: list[str], sampler: SamplerConfig, *, seed: int, num_candidates: int, first: int
    ) -> list[list[Caption]]:
        numbers = {"seed": seed, "num_candidates": num_candidates, "first": first}
        return write_captions(self.model, self.tokenizer, pictures, keys, sampler, **numbers, prompt=self.prompt, precision=self.precision)


@dataclass(frozen=True)
class MedFilter:
    """A BLIP that scores by ITM and ITC; `model` is ready for inference at `precision`."""

    model: ImageText
    tokenizer: Tokenizer
    identity: str
    max_tokens: int
    precision: str

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        return resized(picture, self.model.image_size)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [self.tokenizer.encode(text, max_tokens=self.max_tokens) for text in texts]

    def score(self, pictures: list[np.ndarray], texts: list[list[list[int]]]) -> PairScores:
        return score_encoded(self.model, pictures, texts, precision=self.precision)

    def image_features(self, pictures: list[np.ndarray]) -> Tensor:
        return image_features(self.model, pictures, precision=self.precision)

    def text_features(self, texts: list[list[int]]) -> Tensor:
        return text_features(self.model, texts, precision=self.precision)
