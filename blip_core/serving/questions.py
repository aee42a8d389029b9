"""A model that was tuned for questions (model/vqa.py), as it answers requests: with words of its own, not from a list."""

import threading
from pathlib import Path
from typing import Any

import torch

from blip_core.compute.distributed import device
from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.compute.precision import autocast, resolved
from blip_core.gradcam.maps import Kind
from blip_core.gradcam.words import How, Look, look_for_answer
from blip_core.model.generate import Limits, beam_search
from blip_core.model.inference import for_inference
from blip_core.serving.maps import as_answer
from blip_core.serving.options import BadRequest, Options, Settings
from blip_core.serving.rows import Row, decoded, whole
from blip_core.texts.clean import clean_question
from blip_core.weights.vqa import load_answering

LIMITS = Limits(min_tokens=1, max_tokens=11)  # of an answer, as in training by default (tasks.*.max_answer_tokens)


class QuestionService:
    """What `Service` is for other models; its one task is `answer`."""

    def __init__(self, folder: Path, settings: Settings):
        self.settings = settings
        self.model, self.tokenizer = load_answering(folder)
        for_inference(self.model.to(device()), resolved(settings.precision))
        self.max_tokens = settings.max_tokens or self.model.cfg.text.max_positions
        self.lock = threading.Lock()

    def answer(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        """One dict a row: answer, and with `explain` maps."""
        if options.task != "answer":
            raise BadRequest(f"task {options.task} is beyond this model: it was tuned for questions; expected task answer")
        rows, size = [decoded(row, self.settings, self.model.cfg.vision.image_size) for row in rows], self.settings.batch_size
        with self.lock:
            return [answer for start in range(0, len(rows), size) for answer in self._answer(rows[start : start + size], options)]

    def _answer(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        answers = self._written(rows, options.sampler.beams)
        if not options.explain:
            return [{"answer": answer} for answer in answers]
        found = zip(rows, answers, self.looks(rows, answers), strict=True)
        return [{"answer": answer, "maps": as_answer(look, whole(row, self.settings))} for row, answer, look in found]

    @torch.inference_mode()
    def _written(self, rows: list[Row], beams: int) -> list[str]:
        ids, mask = (t.to(device()) for t in tokenize(self.tokenizer, _questions(rows), max_tokens=self.max_tokens))
        with autocast(self.settings.precision):
            memory = self.model.memory(load_pixels(_pictures(rows), self.model.cfg.vision.image_size), ids, mask)
            written = beam_search(self.model, memory, [self.tokenizer.dec], LIMITS, beams=beams)[:, 0]
        return [self.tokenizer.decode(answer) for answer in written.tolist()]

    def looks(self, rows: list[Row], answers: list[str], *, layer: int | None = None, kind: Kind = "grad_cam") -> list[Look]:
        """Where each word of the rows' questions looks for these answers. `lock` is held. BadRequest when there is no such layer."""
        how = How(self.max_tokens, self.settings.precision, layer, kind)
        try:
            return look_for_answer(self.model, self.tokenizer, _pictures(rows), _questions(rows), answers, how)
        except ValueError as e:
            raise BadRequest(str(e)) from None


def _questions(rows: list[Row]) -> list[str]:
    return [clean_question(row.text) for row in rows]  # type: ignore[arg-type]  # read_rows has seen that each has one


def _pictures(rows: list[Row]) -> list[Any]:
    return [row.picture for row in rows]
