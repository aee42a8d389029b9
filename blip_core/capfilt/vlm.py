"""Any folder of transformers that its mapping of image-text-to-text models lists: as a captioner here, as a judge in judge.py.

Pictures of a batch whose prompts have one length go together, so nothing is padded: padding is where public models go wrong. For that,
sides of pictures are rounded, which leaves a picture of any aspect one of few shapes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.capfilt.answers import without_thoughts
from blip_core.capfilt.med import Caption
from blip_core.compute.distributed import device
from blip_core.config.capfilt import SamplerConfig
from blip_core.weights.folders import FAULTS, LOCAL, read_model
from blip_core.weights.load import read_config

_LONGEST, _STEP = 448, 112  # pixels; multiples of the patches of all families, 28 pixels and less
INSTRUCTION = "Describe the image in one sentence."
# of models that were not taught to follow instructions: what they were taught to caption by
_PROMPTS = {"florence2": "<CAPTION>", "paligemma": "caption en", "git": "", "blip-2": "", "kosmos-2": "An image of", "pix2struct": ""}

_PLACE_THEMSELVES = ("blip-2", "florence2", "git", "instructblip", "kosmos-2", "pix2struct")  # the picture among the words


@dataclass(frozen=True)
class Vlm:
    """A model ready for inference and what makes its inputs."""

    model: Any
    processor: Any

    def inputs(self, picture: np.ndarray, prompt: str) -> dict[str, Tensor]:
        """Of a uint8 H x W x 3 picture and an instruction, as `generate` takes them."""
        words: dict[str, Any] = {"text": prompt} if prompt else {}
        if self.chats:
            text, bos = self.prompt_text(prompt), self.tokenizer.bos_token
            words = {"text": [text], "add_special_tokens": not (bos and text.startswith(bos))}
        elif isinstance(mark := getattr(self.processor, "image_token", None), str) and self.kind not in _PLACE_THEMSELVES:
            words = {"text": prompt if mark in prompt else mark + prompt}
        found = self.processor(images=[[snapped(picture)]] if self.chats else snapped(picture), **words, return_tensors="pt")
        found = {name: value for name, value in found.items() if isinstance(value, Tensor) and name != "labels"}
        return {name: value.to(self.model.dtype) if value.is_floating_point() else value for name, value in found.items()}

    @property
    def kind(self) -> str:
        return self.model.config.model_type

    @property
    def chats(self) -> bool:
        """Whether its prompts are turns of a conversation."""
        return getattr(self.processor, "chat_template", None) is not None

    def opens_thoughts(self, prompt: str) -> bool:
        """Whether an answer begins within a block of thoughts, which the template opens."""
        return self.chats and self.prompt_text(prompt).rstrip().endswith(("<think>", "<thinking>", "◁think▷"))

    def prompt_text(self, prompt: str) -> str:
        """A turn of the user with the picture and the prompt, and what opens the answer, in the words of the template."""
        turn = {"role": "user", "content": self.content(prompt)}
        brief = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}  # else it would be a fault
        return self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False, **brief)

    def content(self, prompt: str) -> Any:
        """Of the user's turn."""
        return [{"type": "image"}, {"type": "text", "text": prompt}]

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def plain(self, text: str) -> str:
        """A text of the web with what would be read as a mark of the prompt, as <image>, taken apart."""
        for mark in self.tokenizer.get_added_vocab():
            text = text.replace(mark, f"{mark[0]} {mark[1:]}") if len(mark.strip()) > 1 else text
        return text

    def decode(self, ids: Tensor) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def ended(self, ids_RL: Tensor) -> list[bool]:
        """Of each text, whether the model itself ended it."""
        return torch.isin(ids_RL, torch.tensor(self.ends, dtype=torch.long, device=ids_RL.device)).any(1).tolist()

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        configs = (self.model.generation_config, self.model.config.get_text_config(decoder=True))
        eos: int | list[int] = next((c.eos_token_id for c in configs if c.eos_token_id is not None), [])
        return eos if isinstance(eos, list) else [eos]


@dataclass(frozen=True)
class VlmCaptioner:
    """Writes by an instruction."""

    vlm: Vlm
    identity: str
    prompt: str

    def prepare(self, picture: np.ndarray) -> dict[str, Tensor]:
        return self.vlm.inputs(picture, self.prompt)

    @torch.inference_mode()
    def captions(
        self, pictures: list[dict[str, Tensor]], keys: list[str], sampler: SamplerConfig, *, seed: int, num_candidates: int, first: int
    ) -> list[list[Caption]]:
        from blip_core.capfilt.decoding import write

        numbers = {"seed": seed, "num_candidates": num_candidates, "first": first}
        found: list[list[Caption]] = [[] for _ in pictures]
        opened = self.vlm.opens_thoughts(self.prompt)
        for group in alike(pictures):
            ids = write(self.vlm.model, together([pictures[i] for i in group]), [keys[i] for i in group], sampler, **numbers)
            for i, own in zip(group, ids, strict=True):
                texts = [without_thoughts(text, opened=opened) for text in self.vlm.decode(own)]
                found[i] = [Caption(text, not end) for text, end in zip(texts, self.vlm.ended(own), strict=True)]
        return found


def alike(pictures: list[dict[str, Tensor]]) -> list[list[int]]:
    """Places of the inputs that have the same shapes, so that they can be one batch."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, inputs in enumerate(pictures):
        groups.setdefault(tuple((name, value.shape) for name, value in inputs.items()), []).append(i)
    return list(groups.values())


def together(pictures: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch on this process's device."""
    return {name: torch.cat([p[name] for p in pictures]).to(device()) for name in pictures[0]}


def repeat_cache(cache: Any, rows: int, copies: int) -> None:
    """Each of so many rows as often, in order. By what beam search uses: caches of linear attention have nothing else."""
    cache.reorder_cache(torch.arange(rows).repeat_interleave(copies))


def snapped(picture: np.ndarray) -> np.ndarray:
    """The picture with sides that are multiples of 112 pixels, 448 at most."""
    scale = min(1.0, _LONGEST / max(picture.shape[:2]))
    height, width = (max(_STEP, _STEP * round(side * scale / _STEP)) for side in picture.shape[:2])
    pixels = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def load_vlm_captioner(folder: Path, identity: str, *, prompt: str | None, precision: str) -> VlmCaptioner:
    """ValueError when transformers can't read the folder."""
    return captioner_of(load_vlm(folder, precision=precision), identity, prompt)


def captioner_of(vlm: Vlm, identity: str, prompt: str | None) -> VlmCaptioner:
    """Without a prompt it writes as it was taught."""
    return VlmCaptioner(vlm, identity, own_prompt(vlm) if prompt is None else prompt)


def own_prompt(vlm: Vlm) -> str:
    """What asks for a caption where nobody says how."""
    return _PROMPTS.get(vlm.kind, INSTRUCTION)


def load_vlm(folder: Path, *, precision: str) -> Vlm:
    """No code in the folder is run. ValueError when transformers can't read it."""
    from transformers import AutoModelForImageTextToText

    try:
        processor = _processor(folder)
        model = read_model(AutoModelForImageTextToText, folder, precision=precision)
    except FAULTS as e:
        raise ValueError(
            f"{folder}: transformers can't read this as a {read_config(folder)['model_type']} with its processor ({e})"
        ) from None
    return Vlm(model, processor)


def _processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(folder, **LOCAL)
    except (ImportError, ValueError) as e:
        if "torchvision" not in str(e).lower():
            raise
        found = _processor_of_pictures(folder)
    if not hasattr(found, "image_processor"):
        raise ValueError(f"found a {type(found).__name__} and no processor of pictures: save the model's processor into the folder too")
    return found


class _NoVideos(dict[str, Any]):
    """In place of what reads videos: has no settings, and each is None."""

    def __getattr__(self, name: str) -> None:
        return None


def _processor_of_pictures(folder: Path) -> Any:
    """A processor that could take videos too, without the part that does: that one wants torchvision."""
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(folder, **LOCAL))]
    parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    made = [parts[n].from_pretrained(folder, **LOCAL) if n in parts else _NoVideos() for n in kind.get_attributes()]
    settings, _ = kind.get_processor_dict(folder, **LOCAL)
    unchecked: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})  # it would miss the part
    return unchecked.from_args_and_dict(made, settings)
