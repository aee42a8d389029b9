"""Models of others at work: a vision-language model, a CLIP, a BLIP of transformers; whatever the rounds can write or judge by."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from blip_core.capfilt.adapter import ADAPTER
from blip_core.capfilt.judge import JudgeFilter
from blip_core.capfilt.med import Captioner, Filter
from blip_core.capfilt.plugins import identify_captioner, open_captioner, open_filter
from blip_core.capfilt.vlm import captioner_of
from blip_core.pictures.images import decode_rgb
from blip_core.serving.options import BadRequest, Options, Settings, Task
from blip_core.serving.rows import Row, admitted
from blip_core.weights.load import read_config

Opened = TypeVar("Opened")
_BLANK = np.zeros((112, 112, 3), np.uint8)


class OthersService:
    """What `Service` is for a BLIP of ours, with what the folder has of a captioner and a filter."""

    def __init__(self, folder: Path, settings: Settings):
        self.settings = settings
        self.faults: dict[Task, str] = {
            "embed": f"{folder}: a model of others has no embeddings here; take a BLIP of ours",
            "answer": f"{folder}: a model of others writes captions and judges matches alone; take a BLIP of ours tuned for questions",
        }
        self.judge = self._opened("match", lambda: self._open_judge(folder))
        self.captioner = self._opened("caption", lambda: self._open_captioner(folder))
        if self.judge is None and self.captioner is None:
            raise ValueError("\n".join(self.faults[task] for task in ("caption", "match")))
        self.told_by = _told_by(self.judge) if self.judge else {}
        self.lock = threading.Lock()

    def answer(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        """One dict a row: captions, or `told_by`. BadRequest for what this model can't do."""
        if options.task in self.faults:
            raise BadRequest(f"task {options.task} is beyond this model: {self.faults[options.task]}")
        if options.explain:
            raise BadRequest("params: explain: beyond this model: a map is of the cross-attention of a BLIP of ours; ask without it")
        rows, size = [self._prepared(row, options.task) for row in rows], self.settings.batch_size
        with self.lock:
            return [answer for start in range(0, len(rows), size) for answer in self._work(rows[start : start + size], options)]

    def _prepared(self, row: Row, task: Task) -> Row:
        """With its picture as the model takes it."""
        model = self.captioner if task == "caption" else self.judge
        assert model is not None
        return replace(row, picture=model.prepare(decode_rgb(admitted(row, self.settings))))

    def _work(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        pictures = [row.picture for row in rows]
        if options.task == "match":
            return self._match(pictures, [row.text or "" for row in rows])
        assert self.captioner is not None
        numbers = {"seed": options.seed, "num_candidates": options.num_captions, "first": 0}
        made = self.captioner.captions(pictures, [row.key for row in rows], options.sampler, **numbers)
        return [{"captions": [caption.text for caption in own]} for own in made]

    def _match(self, pictures: list[Any], texts: list[str]) -> list[dict[str, Any]]:
        assert self.judge is not None
        found = self.judge.score(pictures, [[text] for text in self.judge.encode(texts)])
        return [{name: float(getattr(found, name)[i]) for name in self.told_by} for i in range(len(texts))]

    def _opened(self, task: Task, opener: Callable[[], Opened]) -> Opened | None:
        try:
            return opener()
        except ValueError as e:
            self.faults[task] = str(e)
            return None

    def _open_judge(self, folder: Path) -> Filter:
        options = {"question": self.settings.question, "precision": self.settings.precision}
        return open_filter(str(folder), folder, fetch=None, **options)

    def _open_captioner(self, folder: Path) -> Captioner:
        prompt, precision = self.settings.prompt, self.settings.precision
        adapter = read_config(folder).get("model_type") == ADAPTER  # one that judges was not tuned to write
        if isinstance(self.judge, JudgeFilter) and not adapter:  # a model of billions is not read twice
            return captioner_of(self.judge.vlm, identify_captioner(folder, prompt), prompt)
        return open_captioner(str(folder), folder, prompt=prompt, precision=precision, fetch=None)


def _told_by(judge: Filter) -> dict[str, str]:
    """Those scores that it has, by a blank picture."""
    found = judge.score([judge.prepare(_BLANK)], [judge.encode(["a picture"])])
    itm = f"P(yes), asked {judge.question!r}" if isinstance(judge, JudgeFilter) else "P(match) of the ITM head, raw"
    said = {"itm": itm, "itc": "cosine"}
    return {name: words for name, words in said.items() if not np.isnan(getattr(found, name)).any()}
