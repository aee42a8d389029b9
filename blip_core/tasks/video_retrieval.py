"""Retrieval among videos by a model that learned from pictures (paper section 5.7): nothing is tuned, and frames carry no time.

ITC compares a text with the mean of the frames' projections; ITM reads the tokens of all frames, one behind the other, and ranks the
best anew. The frames of some videos are in memory at a time, and decoded again for ITM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip_core.config.tasks import VideoRetrievalConfig
from blip_core.evaluation.retrieval import Gallery
from blip_core.model.blip import RETRIEVAL, Blip
from blip_core.model.network import Network
from blip_core.tasks.captioned import LIMITS, Captioned, grouped
from blip_core.tasks.retrieval import Found, Ranking, found, text_recalls
from blip_core.tasks.task import Measured, Result, SetAside, Statistic
from blip_core.tasks.videos import VIDEO, Videos, caption_rows, checked_videos, video_pixels
from blip_core.texts.clean import by_rule
from blip_core.tokenizer.tokenizer import Tokenizer

_LIMITS = LIMITS.model_copy(update={"max_words": 40})  # the authors cut a text here later than elsewhere


class VideoRetrievalTask:
    def read(self, folder: Path, split: str, cfg: VideoRetrievalConfig) -> tuple[list[Captioned], list[SetAside]]:
        rows, aside = caption_rows(folder, split)
        return checked_videos(grouped(rows, Videos(folder), VIDEO, aside), aside, cfg.frames)

    def network(self, base: Blip, cfg: VideoRetrievalConfig) -> Blip:
        base.require("image", "text", *RETRIEVAL)
        base.frames = cfg.frames
        return base

    def measure(
        self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Captioned], cfg: VideoRetrievalConfig
    ) -> list[Result]:
        assert isinstance(network, Blip)
        ranking = Ranking(cfg.measure.batch_size, cfg.measure.precision, cfg.rerank)
        return [*found(_Videos(network, tokenizer, cfg.max_tokens, ranking, batches.examples), batches.examples, ("v2t", "t2v"))]

    def overall(self, results: Sequence[Found]) -> dict[str, Statistic]:
        """Recalls over the texts, and the median rank both ways, the first being 1."""
        medians = {}
        for prefix in results[0].to_text:
            medians[f"{prefix}v2t_mdr"] = _median([np.array([r.to_text[prefix]]) for r in results])
            medians[f"{prefix}t2v_mdr"] = _median([r.to_image[prefix] for r in results])
        return text_recalls(results, "t2v") | medians


@dataclass(frozen=True)
class _Videos(Gallery):
    examples: Sequence[Captioned]

    @property
    def texts_of(self) -> list[Sequence[str]]:
        return [[by_rule(text, _LIMITS) for text in example.texts] for example in self.examples]

    def read(self, image: int) -> list[np.ndarray]:
        return video_pixels(self.examples[image].pictures[0], self.model.frames, self.model.image_size)


def _median(ranks: list[np.ndarray]) -> Statistic:
    """Of the ranks of all videos, or of their texts."""
    flat, texts = np.concatenate(ranks) + 1, [len(own) for own in ranks]
    return lambda counts: float(np.median(np.repeat(flat, np.repeat(counts, texts))))
