"""Models for a notebook: where they come from, and what they can be asked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Unpack

import numpy as np

from blip_core.api.capfilt import Match, SamplerOptions, each_caption, rows_of, scores_of, writer
from blip_core.api.pictures import Picture, is_picture, read_pictures, require_read
from blip_core.capfilt.clip import is_clip, load_clip
from blip_core.capfilt.med import Captioner, FeatureFilter, MedCaptioner
from blip_core.capfilt.plugins import identify, open_blip, open_captioner
from blip_core.capfilt.vlm import VlmCaptioner
from blip_core.model.blip import CAPTIONING, RETRIEVAL
from blip_core.selection.calibration import Calibration
from blip_core.serving.service import calibration_of
from blip_core.tables.stopped import require_made
from blip_core.tracking.registry import fetch_model
from blip_core.weights.load import read_config


@dataclass(frozen=True)
class Model:
    """A model that `load` made ready: in eval mode, on the GPU of this process or else the CPU.

    Attributes:
        source: What `load` was asked for.
        captioner: What captions ask; None where the model can't write, as a CLIP. A BLIP's has the network as `model`, and `tokenizer`.
        filter: What scores ask; None where the model can't judge. A BLIP's has both as well.
        calibration: What makes `match` of its scores; None but of a filter of a round.
    """

    source: str
    captioner: Captioner | None = field(repr=False)
    filter: FeatureFilter | None = field(repr=False)
    calibration: Calibration | None = field(repr=False, default=None)

    def caption(self, image: Picture, *, prompt: str | None = None, seed: int = 0, **options: Unpack[SamplerOptions]) -> str:
        """The caption of a picture, the most probable one. `captions` says more, and takes many pictures.

        ValueError: the picture can't be read, an option has no such value, or the model can't write.
        """
        if not is_picture(image):
            raise ValueError(
                f"image: expected one picture, as a path, bytes, PIL image or array, got {type(image).__name__}; `captions` takes a list"
            )
        [[text]] = self.captions([image], prompt=prompt, seed=seed, **options)
        return text

    def captions(
        self,
        images: Sequence[Picture],
        *,
        sampler: Literal["beam", "nucleus"] = "beam",
        num_candidates: int = 1,
        prompt: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **options: Unpack[SamplerOptions],
    ) -> list[list[str]]:
        """Captions of pictures.

        A sampled caption follows from the seed and the picture's own pixels, whatever stands beside it and in whichever form it comes.

        Args:
            images: Paths, the bytes of files (JPEG, PNG, WebP, GIF), PIL images or arrays, uint8 [height, width, 3].
            sampler: beam, the most probable caption, as the paper evaluates; or nucleus, more diverse, as its CapFilt writes
                (section 4.3).
            num_candidates: Captions of each picture; of a beam search at most `beams`.
            prompt: Of a BLIP what stands before each caption, and is no part of it; None is the one that it was tuned with, as far as it is
                known. Of a vision-language model the instruction; None asks for one sentence.
            seed: Of what nucleus draws; 0 or more.
            batch_size: Pictures at a time.
            **options: See `SamplerOptions`.

        Returns:
            For each picture its captions: the best first of a beam search, in the order of drawing of nucleus.

        Raises:
            ValueError: A picture can't be read, an option has no such value, or the model can't write.
        """
        captioner = self.writing(prompt)
        cfg = writer(captioner.identity, sampler=sampler, num_candidates=num_candidates, prompt=prompt, options=options)
        each = each_caption(captioner, images, cfg, seed=seed, batch_size=batch_size)
        return [require_read(found, number) for number, found in enumerate(each)]

    def match(
        self, images: Picture | Sequence[Picture], texts: str | Sequence[str] | Sequence[Sequence[str]], *, batch_size: int = 64
    ) -> Match:
        """How well texts fit pictures.

        `model.match(picture, text)` gives numbers, `model.match(picture, texts)` and `model.match(pictures, texts)` arrays. All texts
        with all pictures are `model.match(pictures, [texts] * len(pictures))`; where the cosine will do, the product of `image_features`
        and `text_features` is far quicker.

        Args:
            images: One picture, or N, as in `captions`.
            texts: Of one picture its text, or a list of them. Of N pictures N texts, or N lists of K. A text is cut to as many tokens as
                the model was tuned with.
            batch_size: Pairs at a time, but at least those of one picture.

        Returns:
            Of one picture a number or an array [K]; of N pictures arrays [N], or [N, K].

        Raises:
            ValueError: A picture can't be read, a text is no string, the numbers do not fit, or the model can't judge.
        """
        judge = self.judging()
        shape: tuple[int, ...] = () if isinstance(texts, str) else (len(texts),)
        if is_picture(images):
            scores = scores_of(judge, [images], rows_of([texts]), batch_size=batch_size)  # type: ignore[list-item]  # of one: no list of lists
        else:
            rows = rows_of(texts)
            scores = scores_of(judge, images, rows, batch_size=batch_size)  # type: ignore[arg-type]  # it is no picture
            shape = shape if all(isinstance(text, str) for text in texts) else (*shape, len(rows[0]))
        match = None if self.calibration is None else self.calibration.match(scores).reshape(shape)[()]
        itm, itm_logit, itc = (values.reshape(shape)[()] for values in (scores.itm, scores.itm_logit, scores.itc))  # [()]: a lone number
        return Match(itm, itm_logit, itc, match)

    def image_features(self, images: Sequence[Picture], *, batch_size: int = 32) -> np.ndarray:
        """ITC features of pictures: float32 [images, width of the ITC space], each row of unit length. Pictures as in `captions`."""
        judge = self.judging()
        batches = read_pictures(images, judge.prepare, batch_size=batch_size)
        return np.concatenate([judge.image_features(pictures).cpu().numpy() for pictures in batches])

    def text_features(self, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """ITC features of texts: float32 [texts, width of the ITC space], each row of unit length; their products with those of pictures
        are ITC's cosines."""
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts: expected a list of one or more strings, got {texts!r:.80}")
        judge = self.judging()
        batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return np.concatenate([judge.text_features(judge.encode(batch)).cpu().numpy() for batch in batches])

    def writing(self, prompt: str | None = None) -> Captioner:
        """The captioner, with another prompt than its own where one is given. ValueError when the model can't write."""
        if self.captioner is None:
            raise ValueError(f"{self.source}: can't write captions, for it has no decoder; load a BLIP that has one")
        if prompt is None:
            return self.captioner
        if not isinstance(self.captioner, MedCaptioner | VlmCaptioner):
            raise ValueError(f"{self.source}: takes no prompt; leave it out")
        return replace(self.captioner, prompt=prompt)

    def judging(self) -> FeatureFilter:
        """The filter. ValueError when the model can't judge."""
        if self.filter is None:
            raise ValueError(f"{self.source}: can't judge texts; load a BLIP with the heads of ITM and ITC, a CLIP or a SigLIP")
        return self.filter


def load(
    source: str | Path,
    *,
    vocab: str | Path | None = None,
    image_size: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    project: str | Path = ".",
) -> Model:
    """A model of ours or of others, ready to caption and score. Nothing is downloaded but from your own registry.

    It goes to the GPU of this process where there is one; `CUDA_VISIBLE_DEVICES` says which, and "" says the CPU.

    Args:
        source: A model folder of a chain, as `artifacts/models/g1`; a BLIP, CLIP, SigLIP or vision-language folder as transformers'
            `save_pretrained` writes it; a `.pth` file of BLIP's authors; or `models:/NAME/VERSION` or `models:/NAME@ALIAS` in MLflow's
            registry.
        vocab: The tokenizer of a public BLIP, a folder, tokenizer.json or vocab.txt, where it is not beside the weights.
        image_size: Of a public BLIP: another side of the pictures, in pixels; its position embeddings are resized.
        precision: What it computes in. auto is bf16 where the device has instructions for it, else fp32.
        project: The folder whose `mlflow.db` is the registry, unless MLFLOW_TRACKING_URI names one. A version is copied into its
            `.work/models` once.

    Raises:
        ValueError: There is no such model, or its files do not fit. The message says what was found and what was expected.
    """
    path = _find(str(source), Path(project))
    if not _is_blip(path):
        if vocab or image_size:
            raise ValueError(f"{path}: loads as it is; vocab and image_size are for public BLIPs")
        if is_clip(path):
            return Model(str(source), None, load_clip(path, identify(path), precision=precision))
        return Model(str(source), open_captioner(str(path), path, prompt=None, precision=precision, fetch=None), None)
    captioner, judge = open_blip(path, precision=precision, vocab=Path(vocab) if vocab else None, image_size=image_size)
    writes, judges = (not judge.model.lacking(*parts) for parts in (CAPTIONING, RETRIEVAL))
    calibration = calibration_of(path) if path.is_dir() and "model" in read_config(path) else None
    return Model(str(source), captioner if writes else None, judge if judges else None, calibration)


def _is_blip(path: Path) -> bool:
    """Ours, of transformers, or a file of the authors."""
    if path.is_file():
        return True
    config = read_config(path)
    return "model" in config or config.get("model_type") == "blip"


def _find(source: str, project: Path) -> Path:
    if source.startswith("models:/"):
        if not os.environ.get("MLFLOW_TRACKING_URI") and not (project / "mlflow.db").exists():
            raise ValueError(f"{source}: no registry in {project.resolve()}: name the project's folder, or set MLFLOW_TRACKING_URI")
        return fetch_model(source, project, project / ".work/models")
    if not Path(source).exists():
        raise ValueError(f"{source}: no such folder or file; expected a model folder, a .pth file, or models:/NAME/VERSION")
    require_made(Path(source))
    return Path(source)
