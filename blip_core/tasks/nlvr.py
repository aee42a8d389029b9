"""Whether a sentence is true of two pictures (NLVR2, paper section 5.5).

A row has a sentence, a label (True or False) and two pictures: `images`, a list, as the authors' lists; or a column each, as `left` and
`right` or LXMERT's `img0` and `img1`; or NLVR2's own `identifier`, split-set-pair-sentence, whose pictures are split-set-pair-img0.png and
-img1.png. One picture alone, `image`, stands for both: that of NLVR's own sentences has its boxes side by side.

In training the pictures of a pair change places by chance, and so do the words left and right. The authors do it in evaluations too, so
that their numbers vary; here an evaluation sees each pair as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.compute.precision import autocast
from blip_core.config.tasks import NlvrConfig
from blip_core.files.content import hash64
from blip_core.files.rejected import Rejected
from blip_core.intake.formats.columns import texts_of
from blip_core.model.blip import Blip
from blip_core.model.network import Network
from blip_core.model.nlvr import Nlvr, nlvr_of
from blip_core.tasks.pictures import Pictures
from blip_core.tasks.records import Row, examples_of, facts_of, first_of, split_files
from blip_core.tasks.task import Example, Measured, Result, SetAside, Statistic, checked
from blip_core.texts.clean import without_marks
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.objectives import entropy
from blip_core.training.step import Losses, Objective, TaskBatch

_MOST_WORDS = 40
_SIDES = {"left": "right", "right": "left"}
_SENTENCE = ("sentence", "sent")
_PAIRS = (("left", "right"), ("left_image", "right_image"), ("img0", "img1"), ("image0", "image1"), ("image_0", "image_1"))
_USED = (*_SENTENCE, "label", "images", *(name for pair in _PAIRS for name in pair), "image", "identifier")
_LABELS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Statement(Example):
    """`group`: what the pairs of one sentence have in common."""

    sentence: str = ""
    label: bool = False
    group: str = ""

    @property
    def told(self) -> dict[str, Any]:
        return self.facts | {"sentence": self.sentence, "label": self.label}

    @property
    def swapped(self) -> str:
        """What is said of the pictures in each other's place; sides within one picture stay."""
        return self.sentence if len(set(self.pictures)) == 1 else sides_swapped(self.sentence)


def sides_swapped(sentence: str) -> str:
    """Left for right and right for left, as words: in left-hand as well, but not in leftover."""
    return re.sub(r"\b(left|right)\b", lambda found: _SIDES[found[1]], sentence)


class NlvrTask:
    def read(self, folder: Path, split: str, cfg: NlvrConfig) -> tuple[list[Statement], list[SetAside]]:
        return checked(*examples_of(Pictures(folder), split_files(folder, split), "identifier", _statement, _USED))

    def network(self, base: Blip, cfg: NlvrConfig) -> Nlvr:
        return nlvr_of(base)

    def objective(self, network: Network, cfg: NlvrConfig) -> Objective:
        return StatementObjective(cfg.swap)

    def tensors(self, examples: Sequence[Statement], tokenizer: Tokenizer, cfg: NlvrConfig) -> dict[str, Tensor]:
        """ids, mask: P x 2 x T, of each sentence as it is and with its sides swapped. label: P."""
        texts = [text for e in examples for text in (e.sentence, e.swapped)]
        ids, mask = (t.unflatten(0, (-1, 2)) for t in tokenize(tokenizer, texts, max_tokens=cfg.optim.max_tokens))
        return {"ids": ids, "mask": mask, "label": torch.tensor([int(e.label) for e in examples])}

    def measure(self, network: Network, tokenizer: Tokenizer, folder: Path, batches: Measured[Statement], cfg: NlvrConfig) -> list[Result]:
        assert isinstance(network, Nlvr)
        results = []
        for examples, pixels in batches:
            ids, mask = (t.to(device()) for t in tokenize(tokenizer, [e.sentence for e in examples], max_tokens=cfg.optim.max_tokens))
            with torch.inference_mode(), autocast(cfg.measure.precision):
                said = network.logits(pixels.unflatten(0, (-1, 2)), ids, mask).argmax(1).tolist()
            for e, answer in zip(examples, said, strict=True):
                results.append(Result(e.id, e.group, {"accuracy": float(answer == e.label)}, str(bool(answer)), e.told))
        return results

    def overall(self, results: Sequence[Result]) -> dict[str, Statistic]:
        """consistency: the share of sentences all of whose pairs are right."""
        groups, place = np.unique([r.image for r in results], return_inverse=True)
        right = np.ones(len(groups))
        np.minimum.at(right, place, [r.values["accuracy"] for r in results])

        def statistic(counts: np.ndarray) -> float:
            drawn = np.zeros(len(groups))
            drawn[place] = counts  # the pairs of a sentence are drawn together
            return float((right * drawn).sum() / drawn.sum())

        return {"consistency": statistic}


class StatementObjective(Objective):
    """Cross-entropy of true and false."""

    def __init__(self, swap: float):
        super().__init__()
        self.swap = swap

    def forward(self, model: Nlvr, batch: TaskBatch) -> Losses:
        t = batch.tensors
        swapped_P = self.swapped(batch).to(batch.pixels.device)
        pixels = batch.pixels.unflatten(0, (-1, 2))
        pixels = torch.where(swapped_P[:, None, None, None, None], pixels.flip(1), pixels)
        rows = torch.arange(len(swapped_P), device=swapped_P.device)
        ids, mask = (t[name][rows, swapped_P.long()] for name in ("ids", "mask"))
        return {"ce": F.cross_entropy(model.logits(pixels, ids, mask), t["label"])}

    def swapped(self, batch: TaskBatch) -> Tensor:
        """Which pairs change places: P. A pure function of seed, step and the pair, whatever process it falls to."""
        draws = [(hash64(f"{batch.seed} {batch.step} {key}") % 2**32) / 2**32 for key in batch.keys]
        return torch.tensor(draws) < self.swap

    def vitals(self, batch: TaskBatch) -> dict[str, float]:
        return {"ce_chance": entropy(batch.tensors["label"])}


def _statement(row: Row, where: str, pictures: Pictures) -> Statement:
    """Rejected says what the row lacks."""
    sentence, label = first_of(row, _SENTENCE), _LABELS.get(str(row.get("label")).strip().lower())
    if not isinstance(sentence, str) or not sentence.strip():
        raise Rejected("bad_row", f"no sentence among its columns {', '.join(row)}")
    if label is None:
        raise Rejected("bad_row", f"label is {row.get('label')!r}; expected True or False")
    identifier = str(row.get("identifier") or "")
    parts = identifier.split("-")
    group = f"{parts[0]}-{parts[1]}-{parts[3]}" if len(parts) == 4 else sentence
    found = tuple(pictures.find(name) for name in _two(row, parts))
    facts = facts_of(row, _USED)
    return Statement(identifier or where, found, facts, without_marks(sentence, _MOST_WORDS), label, group)


def _two(row: Row, identifier: list[str]) -> tuple[object, object]:
    """What the row says of its pictures."""
    images = texts_of(row.get("images"), written=True)
    if images and len(images) != 2:
        raise Rejected("bad_row", f"images names {len(images)} pictures; expected two, or `image` that shows all of them side by side")
    if images:
        return images[0], images[1]
    for left, right in _PAIRS:
        if row.get(left) not in (None, "") and row.get(right) not in (None, ""):
            return row[left], row[right]
    if row.get("image") not in (None, ""):
        return row["image"], row["image"]
    if len(identifier) == 4:
        stem = "-".join(identifier[:3])
        return f"{stem}-img0", f"{stem}-img1"
    raise Rejected("bad_row", "no two pictures: expected images (a list of two), left and right, one image for both, or NLVR2's identifier")
