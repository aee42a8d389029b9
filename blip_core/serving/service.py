"""A loaded model that answers requests, batch by batch, one request at a time: two at once would only share the same cores and memory."""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip_core.capfilt.med import caption_images, check_captions, image_features, score_texts, text_features
from blip_core.capfilt.pair_scores import PairScores
from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved
from blip_core.gradcam.maps import Kind
from blip_core.gradcam.words import How, Look, look_for_caption, look_for_match
from blip_core.model.blip import CAPTIONING, RETRIEVAL
from blip_core.model.blip2 import require_blip
from blip_core.model.inference import for_inference
from blip_core.selection.calibration import Calibration, read_calibrations
from blip_core.serving.maps import as_answer
from blip_core.serving.options import CALIBRATION, BadRequest, Options, Settings, Task
from blip_core.serving.questions import QuestionService
from blip_core.serving.rows import Row, decoded, whole
from blip_core.weights.checkpoint import model_hash
from blip_core.weights.load import read_config
from blip_core.weights.models import load_any

if TYPE_CHECKING:
    from blip_core.serving.others import OthersService

NEEDS = {"caption": CAPTIONING, "match": RETRIEVAL, "embed": ("encoder", "contrast")}


def open_service(folder: Path, settings: Settings) -> "Service | QuestionService | OthersService":
    """Of a model folder, of one that was tuned for questions, or of a model of others. ValueError when it was tuned for another task, or
    can neither write nor judge."""
    about = read_config(folder)
    if "model" in about:
        return Service(folder, settings)
    if "task_model" in about:
        if about.get("kind") != "vqa":
            raise ValueError(f"{folder}: tuned for {about.get('kind')}, which is not served; expected a model folder, or one tuned for vqa")
        return QuestionService(folder, settings)
    from blip_core.serving.others import OthersService  # with what reads folders of others, which a packed BLIP goes without

    return OthersService(folder, settings)


class Service:
    """A BLIP or BLIP-2 of ours. `lock` is held while it works; whoever takes the model itself holds it too.

    `told_by`: the names of what a match is told by, the one to rank by first, each with what it is.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.settings = settings
        self.model, self.tokenizer = load_any(folder)
        for_inference(self.model.to(device()), resolved(settings.precision))
        self.calibration = calibration_of(folder)
        self.prompt, self.max_tokens = settings.prompt or "", settings.max_tokens or self.model.med.cfg.max_positions
        calibrated = {"match": "P(match), calibrated"} if self.calibration else {}
        self.told_by = calibrated | {"itm": "P(match) of the ITM head, raw", "itc": "ITC cosine"}
        self.lock = threading.Lock()

    def answer(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        """One dict a row: captions; itm, itc and where calibrated match; or image_embedding and text_embedding of what the row has. With
        `explain` also maps: of the match, or of each caption."""
        if options.task == "answer":
            raise BadRequest(
                "task answer is beyond this model: it was not tuned for questions (docs/tasks.md); expected caption, match or embed"
            )
        self.require(f"task {options.task}", *NEEDS[options.task])
        if options.task == "caption":
            self._check_length(options)
            self._check_maps(len(rows), options)
        rows = [decoded(row, self.settings, self.model.image_size) for row in rows]
        work = {"caption": self._caption, "match": self._match, "embed": self._embed}[options.task]
        size = self.settings.batch_size
        with self.lock:
            return [answer for start in range(0, len(rows), size) for answer in work(rows[start : start + size], options)]

    def require(self, what: str, *parts: str) -> None:
        """BadRequest when the model lacks weights that `what` needs."""
        try:
            self.model.require(*parts)
        except ValueError as e:
            raise BadRequest(f"{what} is beyond this model: {e}") from None

    def _caption(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        cfg = self.settings
        made = caption_images(
            self.model,
            self.tokenizer,
            _pictures(rows),
            [row.key for row in rows],
            options.sampler,
            seed=options.seed,
            num_candidates=options.num_captions,
            prompt=self.prompt,
            precision=cfg.precision,
        )
        if not options.explain:
            return [{"captions": captions} for captions in made]
        pairs = [(row, caption) for row, captions in zip(rows, made, strict=True) for caption in captions]
        maps = iter(self._maps("caption", *zip(*pairs, strict=True)))
        return [{"captions": captions, "maps": [next(maps) for _ in captions]} for captions in made]

    def _check_length(self, options: Options) -> None:
        try:
            check_captions(self.model, self.tokenizer, self.prompt, options.sampler.max_tokens)
        except ValueError as e:
            raise BadRequest(f"params: {e}") from None

    def _check_maps(self, num_rows: int, options: Options) -> None:
        asked, most = num_rows * options.num_captions, self.settings.limits.max_rows
        if options.explain and asked > most:
            raise BadRequest(f"params: explain: {num_rows} rows with {options.num_captions} captions each; at most {most} maps are drawn")

    def _match(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        # read_rows has seen that each has both
        texts: list[str] = [row.text for row in rows]  # type: ignore[misc]
        answers = self.as_answers(self.scores(_pictures(rows), texts))
        if not options.explain:
            return answers
        return [answer | {"maps": found} for answer, found in zip(answers, self._maps("match", rows, texts), strict=True)]

    def looks(
        self, task: Task, rows: Sequence[Row], texts: Sequence[str], *, layer: int | None = None, kind: Kind = "grad_cam"
    ) -> list[Look]:
        """Where each word of texts[i] looks in the picture of rows[i], by task match or caption. `lock` is held. BadRequest when the model
        can't do the task, or there is no such layer."""
        cfg, pictures = self.settings, _pictures(rows)
        how = How(self.max_tokens if task == "match" else self.model.med.cfg.max_positions, cfg.precision, layer, kind)
        try:
            model = require_blip(self.model, "a map")
            if task == "match":
                return look_for_match(model, self.tokenizer, pictures, texts, how)
            return look_for_caption(model, self.tokenizer, pictures, texts, how, prompt=self.prompt)
        except ValueError as e:
            raise BadRequest(f"a map is beyond this model: {e}") from None

    def _maps(self, task: Task, rows: Sequence[Row], texts: Sequence[str]) -> list[dict[str, Any]]:
        looks = self.looks(task, rows, texts)
        return [as_answer(look, whole(row, self.settings)) for look, row in zip(looks, rows, strict=True)]

    def scores(self, pictures: list[np.ndarray], texts: list[str]) -> PairScores:
        """Of each picture with its text. ITM has [ENC] at position 0, as training."""
        cfg, pairs = self.settings, [[text] for text in texts]
        return score_texts(self.model, self.tokenizer, pictures, pairs, max_tokens=self.max_tokens, precision=cfg.precision)

    def as_answers(self, scores: PairScores) -> list[dict[str, Any]]:
        columns = {"itm": scores.itm, "itc": scores.itc}
        if self.calibration is not None:
            columns["match"] = self.calibration.match(scores)
        return [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]

    def _embed(self, rows: list[Row], options: Options) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = [{} for _ in rows]
        for name, field, encode in (("image", "picture", self.image_features), ("text", "text", self.text_features)):
            places = [i for i, row in enumerate(rows) if getattr(row, field) is not None]
            features: Iterable[np.ndarray] = encode([getattr(rows[i], field) for i in places]) if places else []
            for i, feature in zip(places, features, strict=True):
                answers[i][f"{name}_embedding"] = feature.tolist()
        return answers

    def image_features(self, pictures: list[np.ndarray]) -> np.ndarray:
        """ITC features, unit length: one row a picture. BadRequest of a BLIP-2, which has no one embedding of it."""
        try:
            return image_features(self.model, pictures, precision=self.settings.precision).cpu().numpy()
        except ValueError as e:
            raise BadRequest(f"the embedding of an image is beyond this model: {e}") from None

    def text_features(self, texts: list[str]) -> np.ndarray:
        """Likewise of texts."""
        encoded = [self.tokenizer.encode(t, max_tokens=self.max_tokens) for t in texts]
        return text_features(self.model, encoded, precision=self.settings.precision).cpu().numpy()


def _pictures(rows: Sequence[Row]) -> list[np.ndarray]:
    """Of rows that all have one, decoded."""
    return [row.picture for row in rows]  # type: ignore[misc]


def calibration_of(folder: Path) -> Calibration | None:
    """What a round found for its filter in this folder, and wrote beside it; other models have none."""
    path = folder.parent / CALIBRATION
    own = read_calibrations(path).get(model_hash(folder)) if path.exists() else None
    return own.calibration if own else None
