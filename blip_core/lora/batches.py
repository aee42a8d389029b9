"""Micro-batches of questions about pictures: how to caption them, and whether a text fits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blip_core.capfilt.judge import JudgeFilter
from blip_core.capfilt.vlm import VlmCaptioner, alike
from blip_core.compute.padding import pad
from blip_core.compute.pixels import read_picture
from blip_core.lora.examples import answer_ids, answers, continued
from blip_core.training.augment import augment_picture
from blip_core.training.batches import Picked, RowBatches, Rows
from blip_core.training.step import MicroBatch

MISMATCHED = 2  # texts of other pictures for each picture: one pair of three is true, as for ITM
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class AskedBatch(MicroBatch):
    """`groups` are batches of inputs of one shape each; what else is in them, their objective knows."""

    groups: list[dict[str, Any]]


class _AskedBatches(RowBatches):
    def _prepared(self, picked: Picked, prepare: Callable[[np.ndarray], Any]) -> tuple[tuple[str, ...], list[str], list[Any]]:
        """Keys, texts, and the pictures as the model takes them."""
        shards, keys, texts = self.rows.at(picked.rows)
        views = (
            augment_picture(read_picture(self.images, shard, key), self.cfg.augment, draw)
            for shard, key, draw in zip(shards, keys, picked.draws, strict=True)
        )
        return tuple(keys), texts, [prepare(view) for view in views]


class AnswerBatches(_AskedBatches):
    """Pictures with the captioner's instruction; the answer is the text."""

    def __init__(self, captioner: VlmCaptioner, *args: Any, **options: Any):
        """`args` and `options` are those of RowBatches."""
        super().__init__(*args, **options)
        self.captioner = captioner

    def read(self, place: int) -> AskedBatch:
        picked = self.picked(place)
        keys, texts, prompts = self._prepared(picked, self.captioner.prepare)
        vlm = self.captioner.vlm
        ids = [answer_ids(vlm, text, max_tokens=self.cfg.max_tokens) for text in texts]
        return AskedBatch(groups=answers(vlm, prompts, ids), keys=keys, **picked.about)


class JudgementBatches(_AskedBatches):
    """Pictures with the judge's question of their own text and of texts of others. A group has also `last`, the place of each question's
    last token, and `truth`."""

    def __init__(self, judge: JudgeFilter, *args: Any, **options: Any):
        """`args` and `options` are those of RowBatches."""
        super().__init__(*args, **options)
        self.judge = judge

    def read(self, place: int) -> AskedBatch:
        picked = self.picked(place)
        keys, texts, prompts = self._prepared(picked, self.judge.prepare)
        step, groups = picked.about["step"], []
        others = [
            mismatched(self.rows, row, np.random.default_rng([self.seed, step, 2, at]))
            for row, at in zip(picked.rows, picked.places, strict=True)
        ]
        for group in alike(prompts):
            asked = [ids for i in group for ids in self.judge.encode([texts[i], *others[i]])]
            each = [prompts[i] for i in group for _ in range(1 + MISMATCHED)]
            last = each[0]["input_ids"].shape[1] - 1 + torch.tensor([len(ids) for ids in asked])
            truth = torch.tensor([1.0] + [0.0] * MISMATCHED).repeat(len(group))
            groups.append({"inputs": continued(self.judge.vlm, each, pad(asked, 0)[0]), "last": last, "truth": truth})
        return AskedBatch(groups=groups, keys=keys, **picked.about)


def mismatched(rows: Rows, row: int, rng: np.random.Generator) -> list[str]:
    """Texts of other pictures, none of them the row's own. ValueError when there are next to none."""
    own, found = rows.text[row].as_py(), []
    for other in rng.integers(len(rows.text), size=_TRIES):
        text = rows.text[other].as_py()
        if rows.image_id[other] != rows.image_id[row] and text != own:
            found.append(text)
        if len(found) == MISMATCHED:
            return found
    raise ValueError(
        f"the clean set has next to no text but {own!r} of another picture, so a judge can't learn what does not fit; bring pictures with "
        "other texts"
    )
