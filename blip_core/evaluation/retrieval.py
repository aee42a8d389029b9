"""Retrieval among n images and m texts in memory that grows with n + m: 5,000 x 25,000 similarities would be 500 MB.

ITC encodes every image and text once; similarities are made in blocks, where somebody looks (`Similarities`). ITM then ranks the k
best of each image and of each text anew, by its log-odds plus the ITC cosine, as the public BLIP adds the two (`rerank`). With several
processes each encodes and scores its own part of the images and texts, and all have the whole of what came out.
"""

# I images, T texts, E width of the ITC space, K candidates of an image or text

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from blip_core.compute.ahead import read_ahead
from blip_core.compute.distributed import device, rank, total, world_size
from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels, read_resized
from blip_core.compute.precision import autocast
from blip_core.config.evaluation import EvaluateConfig
from blip_core.evaluation.metrics import Scores, blocks
from blip_core.model.blip2 import ImageText
from blip_core.tables.heldout import Picture
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.tokenizer import Tokenizer

OUTRANKED = -1000.0  # added to the ITC of pairs that ITM does not rank anew: behind all that it does, in ITC's order
TEXTS_AT_ONCE = 1024  # that ITM takes in one pass, whatever the number of candidates


class Ranking(Protocol):
    """How a gallery is searched; an EvaluateConfig says it too."""

    @property
    def batch_size(self) -> int: ...

    @property
    def precision(self) -> str: ...

    @property
    def rerank(self) -> int:
        """The k best by ITC that ITM ranks anew."""


@dataclass(frozen=True)
class Gallery(ABC):
    """A model, and images with texts among which it finds. Text t belongs to image owner[t]."""

    model: ImageText
    tokenizer: Tokenizer
    max_tokens: int
    cfg: Ranking

    @property
    @abstractmethod
    def texts_of(self) -> list[Sequence[str]]:
        """Those of each image."""

    @abstractmethod
    def read(self, image: int) -> list[np.ndarray]:
        """An image as the model sees it, or the frames of a video: uint8 size x size x 3 each. Called in threads."""

    @cached_property
    def texts(self) -> list[str]:
        return [t for texts in self.texts_of for t in texts]

    @cached_property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.texts_of)), [len(texts) for texts in self.texts_of])

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of all texts."""
        return tokenize(self.tokenizer, self.texts, max_tokens=self.max_tokens)

    def batches(self, images: Sequence[int]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """This process's part of the images' numbers, batch by batch, with their pixels."""
        for numbers, read in read_ahead(self.read, self.own(images)):
            yield numbers, [pixels for own in read for pixels in own]

    def own(self, numbers: Sequence[int]) -> list[list[int]]:
        """Batches that are this process's; the same batches, whatever the number of processes."""
        parts = [list(numbers[start : start + self.cfg.batch_size]) for start in range(0, len(numbers), self.cfg.batch_size)]
        return parts[rank() :: world_size()]

    def text_tokens(self, texts: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Ids and mask of some texts, padded to the longest of them, on this process's device."""
        ids, mask = (t[torch.as_tensor(texts)] for t in self.tokens)
        longest = int(mask.sum(1).max())
        return ids[:, :longest].to(device()), mask[:, :longest].to(device())


@dataclass(frozen=True)
class Subject(Gallery):
    """A model and the held-out pictures that it is evaluated on."""

    cfg: EvaluateConfig
    items: list[Picture]
    images: ShardImages
    prompt: str

    @property
    def texts_of(self) -> list[Sequence[str]]:
        return [item.texts for item in self.items]

    def read(self, image: int) -> list[np.ndarray]:
        item = self.items[image]
        return [read_resized(self.images, item.shard, item.key, self.model.image_size)]


@dataclass(frozen=True)
class Similarities:
    """ITC's cosine of every image with every text, I x T in fp32; a block is made when it is asked for."""

    images: Tensor  # I x E, or I x Q x E of a BLIP-2, of whose Q queries the best counts
    texts_TE: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.images), len(self.texts_TE)

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        rows, columns = place
        images, texts_ET = self.images[rows], self.texts_TE[columns].T
        if images.dim() == 2:
            return (images @ texts_ET).numpy()
        return reduce(torch.maximum, (images_IE @ texts_ET for images_IE in images.unbind(1))).numpy()  # a block at a time, not Q

    def of_pairs(self, images: list[int], texts: np.ndarray) -> np.ndarray:
        """Of images[i] with each of texts[i]."""
        if self.images.dim() == 2:
            return (self.images[images][:, None] * self.texts_TE[texts]).sum(-1).numpy()
        with autocast("fp32"):  # whoever asks may compute in bf16
            return torch.einsum("iqe,ike->ikq", self.images[images], self.texts_TE[texts]).amax(-1).numpy()


@dataclass(frozen=True)
class Reranked:
    """Similarities in which the candidates of each row (axis 0: an image's texts) or column (axis 1: a text's images) stand before
    all others, by new scores. Blocks must be of whole rows, or whole columns."""

    similarities: Scores
    candidates: np.ndarray  # I x K texts, or T x K images
    scores: np.ndarray  # of these
    axis: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.similarities.shape

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        block = self.similarities[place] + np.float32(OUTRANKED)
        own, by_row = place[self.axis], block if self.axis == 0 else block.T
        np.put_along_axis(by_row, self.candidates[own], self.scores[own], axis=1)
        return block


@torch.inference_mode()
def encode(gallery: Gallery) -> Similarities:
    """Every image and every text through its own encoder."""
    model = gallery.model
    images = torch.zeros(len(gallery.texts_of), *model.feature_shape, device=device())
    texts = torch.zeros(len(gallery.texts), model.cfg.embed_dim, device=device())
    with autocast(gallery.cfg.precision):
        for batch, pictures in gallery.batches(range(len(images))):
            images[batch] = model.image_features(model.image_tokens(load_pixels(pictures, model.image_size)))
        for batch in gallery.own(range(len(texts))):
            texts[batch] = model.text_features(*gallery.text_tokens(batch))
    return Similarities(total(images).cpu(), total(texts).cpu())


def nearest(scores: Scores, k: int, *, axis: int) -> np.ndarray:
    """The k best texts of each image (axis 0), or images of each text (axis 1), in no order: I x K or T x K."""
    found = []
    for _, block in blocks(scores, axis):
        by_row = block if axis == 0 else block.T
        found.append(np.argpartition(-by_row, k - 1, axis=1)[:, :k].astype(np.int32))
    return np.concatenate(found)


def rerank(gallery: Gallery, itc: Similarities) -> tuple[Reranked, Reranked]:
    """What ranks texts for each image, and what ranks images for each text.

    Every pair that either direction needs is scored once, and each image is encoded once. In memory: (I + T) K pairs.
    """
    num_images, num_texts = itc.shape
    texts_IK = nearest(itc, min(gallery.cfg.rerank, num_texts), axis=0)
    images_TK = nearest(itc, min(gallery.cfg.rerank, num_images), axis=1)
    # a pair as one number, image by image
    to_text = np.arange(num_images)[:, None] * num_texts + texts_IK
    to_image = images_TK.astype(np.int64) * num_texts + np.arange(num_texts)[:, None]
    pairs = np.unique(np.concatenate([to_text.ravel(), to_image.ravel()]))
    scores = match_scores(gallery, itc, pairs)
    by_image, by_text = (scores[np.searchsorted(pairs, wanted)] for wanted in (to_text, to_image))
    return Reranked(itc, texts_IK, by_image, axis=0), Reranked(itc, images_TK, by_text, axis=1)


@torch.inference_mode()
def match_scores(gallery: Gallery, itc: Similarities, pairs: np.ndarray) -> np.ndarray:
    """ITM's log-odds plus the ITC cosine of each pair: image * T + text, sorted, at least one of each image. Keys and values are
    held of one batch of images at a time."""
    model, (num_images, num_texts) = gallery.model, itc.shape
    first = np.searchsorted(pairs, np.arange(num_images + 1) * num_texts)
    counts, scores = np.diff(first), torch.zeros(len(pairs), device=device())
    with autocast(gallery.cfg.precision):
        # images with about equally many candidates go together, which keeps the padding small
        for batch, pictures in gallery.batches(np.argsort(counts, kind="stable").tolist()):
            keys_values = model.keys_values(model.image_tokens(load_pixels(pictures, model.image_size)))
            most, width = counts[batch].max(), max(1, TEXTS_AT_ONCE // len(batch))
            for start in range(0, most, width):
                # equal numbers of each image: where one has no more candidates, its last stands again
                number = np.arange(start, min(most, start + width))
                place = first[batch][:, None] + np.minimum(number, counts[batch][:, None] - 1)
                texts = pairs[place] % num_texts
                logits = model.match_logits(*gallery.text_tokens(texts.ravel()), keys_values)
                odds = (logits[:, 1] - logits[:, 0]).unflatten(0, texts.shape)
                found = odds + torch.from_numpy(itc.of_pairs(batch, texts)).to(odds)
                real = torch.from_numpy(number < counts[batch][:, None])
                scores[torch.from_numpy(place)[real]] = found[real.to(found.device)]
    return total(scores).cpu().numpy()
