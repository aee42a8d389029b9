"""Questions about videos, answered by a network that learned from questions about pictures (paper section 5.7).

Train and val are pictures, as of `vqa`; test are videos. The question encoder reads the tokens of all frames, one behind the other, and
nothing tells it their order. A video is decoded and encoded once for all of its questions, and forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import Tensor

from blip_core.compute.ahead import read_ahead
from blip_core.compute.pixels import load_pixels
from blip_core.config.tasks import AnswersConfig, VideoQaConfig
from blip_core.model.network import Network
from blip_core.tasks.task import Measured, Result, SetAside
from blip_core.tasks.videos import VIDEO, Videos, checked_videos, video_pixels
from blip_core.tasks.vqa import Question, VqaTask, questions
from blip_core.tokenizer.tokenizer import Tokenizer


class VideoQaTask(VqaTask):
    def read(self, folder: Path, split: str, cfg: AnswersConfig) -> tuple[list[Question], list[SetAside]]:
        if split != "test":
            return super().read(folder, split, cfg)
        assert isinstance(cfg, VideoQaConfig)
        return checked_videos(*questions(Videos(folder), folder, split, VIDEO), cfg.frames)

    def measure(
        self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Question], cfg: AnswersConfig
    ) -> list[Result]:
        assert isinstance(cfg, VideoQaConfig)
        network.frames = cfg.frames
        videos = _ByVideo(batches.examples, batches.image_size, batches.batch_size, cfg.frames)
        return super().measure(network, tokenizer, folder, videos, cfg)


@dataclass(frozen=True)
class _ByVideo(Measured[Question]):
    """Batches of questions of one video each, with its frames."""

    frames: int

    def __iter__(self) -> Iterator[tuple[list[Question], Tensor]]:
        ordered = sorted(self.examples, key=lambda e: e.pictures)
        groups = [list(group) for _, group in groupby(ordered, key=lambda e: e.pictures)]
        for [group], [pixels] in read_ahead(lambda g: video_pixels(g[0].pictures[0], self.frames, self.image_size), ([g] for g in groups)):
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size], load_pixels(pixels, self.image_size)
