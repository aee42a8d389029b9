"""Retrieval: the texts of a picture and the picture of a text, found among those of all test pictures (paper section 5.1).

The training is that of the paper's Table 14, from the objectives of pretraining: ITC with momentum encoder and queue, and ITM, in which a
pair meets one hard negative text and one hard negative picture out of the batch of all processes. As the authors' code, a picture's
other captions are no negatives. What is measured is what `evaluate` measures: ITC ranks all, ITM the best `rerank` of them anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from blip_core.compute.pixels import resized
from blip_core.config.tasks import RetrievalConfig
from blip_core.evaluation.metrics import RECALLS, Scores, blocks, image_ranks, text_ranks
from blip_core.evaluation.retrieval import Gallery, encode, rerank
from blip_core.model.blip import RETRIEVAL, Blip
from blip_core.model.network import Network
from blip_core.tasks.captioned import Captioned, pair_tensors, pairs, read_captioned
from blip_core.tasks.pictures import read_pixels
from blip_core.tasks.task import Measured, Result, SetAside, Statistic
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.objectives import PretrainObjective
from blip_core.training.step import Losses, Objective, TaskBatch


@dataclass(frozen=True)
class Found(Result):
    """What was found of a picture and its texts, by ITC ("") and by ITM ("itm_"). `to_text`: the rank of its best text; `to_image`: that
    of the picture for each text. 0 is the first."""

    to_text: dict[str, int]
    to_image: dict[str, np.ndarray]


class RetrievalTask:
    def read(self, folder: Path, split: str, cfg: RetrievalConfig) -> tuple[list[Captioned], list[SetAside]]:
        return read_captioned(folder, split)

    def network(self, base: Blip, cfg: RetrievalConfig) -> Blip:
        base.require("image", "text", *RETRIEVAL)
        return base

    def untuned(self, cfg: RetrievalConfig, about: dict[str, Any]) -> RetrievalConfig:
        return cfg

    def objective(self, network: Blip, cfg: RetrievalConfig) -> Objective:
        return RetrievalObjective(network, cfg.contrast, language=None)

    def tensors(self, examples: Sequence[Captioned], tokenizer: Tokenizer, cfg: RetrievalConfig) -> dict[str, Tensor]:
        return pair_tensors(examples, tokenizer, max_tokens=cfg.optim.max_tokens)

    def measure(
        self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Captioned], cfg: RetrievalConfig
    ) -> list[Result]:
        assert isinstance(network, Blip)
        ranking = Ranking(batches.batch_size, cfg.measure.precision, cfg.rerank)
        return [*found(_Files(network, tokenizer, cfg.optim.max_tokens, ranking, batches.examples), batches.examples, ("tr", "ir"))]

    def overall(self, results: Sequence[Found]) -> dict[str, Statistic]:
        return text_recalls(results, "ir")


def found(gallery: Gallery, examples: Sequence[Captioned], ways: tuple[str, str]) -> list[Found]:
    """Of each example of the gallery. `ways`: what metrics call image to text, and text to image."""
    itc = encode(gallery)
    itm = rerank(gallery, itc)
    to_text = {"": text_ranks(itc, gallery.owner), "itm_": text_ranks(itm[0], gallery.owner)}
    to_image = {"": image_ranks(itc, gallery.owner), "itm_": image_ranks(itm[1], gallery.owner)}
    results = []
    for i, (example, best) in enumerate(zip(examples, _best(itm[0]), strict=True)):
        own_text = {prefix: int(ranks[i]) for prefix, ranks in to_text.items()}
        own_image = {prefix: ranks[gallery.owner == i] for prefix, ranks in to_image.items()}
        values = {f"{prefix}{ways[0]}_r{k}": float(rank < k) for prefix, rank in own_text.items() for k in RECALLS}
        facts = {f"{prefix}{ways[1]}_ranks": " ".join(map(str, ranks)) for prefix, ranks in own_image.items()}
        results.append(Found(example.id, example.id, values, gallery.texts[best], example.told | facts, own_text, own_image))
    return results


def text_recalls(results: Sequence[Found], way: str) -> dict[str, Statistic]:
    """Recalls over the texts, of which pictures may have different numbers."""
    return {f"{prefix}{way}_r{k}": _recall([r.to_image[prefix] for r in results], k) for prefix in results[0].to_image for k in RECALLS}


class RetrievalObjective(PretrainObjective):
    """That of pretraining without LM, on examples of a task."""

    def forward(self, model: Blip, batch: TaskBatch) -> Losses:  # type: ignore[override]  # its own kind of batch
        return super().forward(model, pairs(batch))


@dataclass(frozen=True)
class Ranking:
    """That of a task's settings."""

    batch_size: int
    precision: str
    rerank: int


@dataclass(frozen=True)
class _Files(Gallery):
    examples: Sequence[Captioned]

    @property
    def texts_of(self) -> list[Sequence[str]]:
        return [example.cleaned for example in self.examples]

    def read(self, image: int) -> list[np.ndarray]:
        return [resized(read_pixels(self.examples[image].pictures[0]), self.model.image_size)]


def _best(scores: Scores) -> list[int]:
    """The text of highest score of each image."""
    return [int(text) for _, block in blocks(scores, 0) for text in block.argmax(1)]


def _recall(ranks: list[np.ndarray], k: int) -> Statistic:
    hits, texts = np.array([(own < k).sum() for own in ranks]), np.array([len(own) for own in ranks])
    return lambda counts: float((counts * hits).sum() / (counts * texts).sum())
