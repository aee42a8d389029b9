"""Captioners and filters by name, as params.yaml has them in `caption.writers` and `score.filters`.

tuned                    the round's own
a folder or .pth file    a BLIP, ours or a public one (weights/load.py); a CLIP or SigLIP folder as a filter (clip.py)
models:/blip/3           a version of the registry, or an alias as models:/blip@champion; DVC can't see that an alias has moved on
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from blip_core.capfilt.clip import is_clip, load_clip
from blip_core.capfilt.med import Captioner, Filter, MedCaptioner, MedFilter
from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved
from blip_core.files.content import sha256_file
from blip_core.model.blip import CAPTIONING, RETRIEVAL, Blip
from blip_core.model.inference import for_inference
from blip_core.weights.checkpoint import model_hash
from blip_core.weights.load import load_pretrained, read_config

T = TypeVar("T")
TUNED = "tuned"
Fetch = Callable[[str], Path]  # models:/NAME/VERSION to the folder where it lies now
_LONGEST = 40  # tokens of a text, where nothing says what a public filter was tuned with: more than the paper's 35


def open_captioner(name: str, tuned: Path, *, prompt: str | None, precision: str, fetch: Fetch | None) -> Captioner:
    """ValueError when there is no such model, or it can't write."""
    captioner, _ = open_blip(find_model(name, tuned, fetch), precision=precision)
    _require(captioner.model, CAPTIONING, f"{name}: can't write captions, as BlipForConditionalGeneration can")
    return captioner if prompt is None else replace(captioner, prompt=prompt)


def open_filter(name: str, tuned: Path, *, precision: str, fetch: Fetch | None) -> Filter:
    """ValueError when there is no such model, or it can't score."""
    path = find_model(name, tuned, fetch)
    if is_clip(path):
        return load_clip(path, identify(path), precision=precision)
    _, judge = open_blip(path, precision=precision)
    _require(judge.model, RETRIEVAL, f"{name}: can't judge texts, as BlipForImageTextRetrieval can")
    return judge


def open_blip(path: Path, *, precision: str, vocab: Path | None = None, image_size: int | None = None) -> tuple[MedCaptioner, MedFilter]:
    """A BLIP in both its roles, whichever it has the weights for; `vocab` and `image_size` as `load_pretrained` has them."""
    model, tokenizer = load_pretrained(path, vocab=vocab, image_size=image_size)
    for_inference(model.to(device()), resolved(precision))
    identity, max_tokens = identify(path), _fact(path, "max_tokens", min(_LONGEST, model.cfg.text.max_positions))
    captioner = MedCaptioner(model, tokenizer, identity, _fact(path, "prompt", ""), precision)
    return captioner, MedFilter(model, tokenizer, identity, max_tokens, precision)


def find_model(name: str, tuned: Path, fetch: Fetch | None) -> Path:
    """The folder or file behind a name."""
    if name == TUNED:
        return tuned
    if name.startswith("models:/"):
        if fetch is None:
            raise ValueError(f"{name}: no registry here to fetch it from; name a folder")
        return fetch(name)
    if not Path(name).exists():
        raise ValueError(f"{name}: no such folder or file; expected 'tuned', the path of a model, or models:/NAME/VERSION")
    return Path(name)


def identify(path: Path) -> str:
    """Content hash of a model: of ours by what makes it, of others by all their files but texts for people.

    ValueError when a folder has no config.json."""
    if path.is_file():
        return sha256_file(path)[:16]
    if "model" in read_config(path) and all((path / name).exists() for name in ("model.safetensors", "vocab.txt")):
        return model_hash(path)
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".txt", ".safetensors", ".bin", ".model"))
    return hashlib.sha256("".join(f"{p.name} {sha256_file(p)}\n" for p in files).encode()).hexdigest()[:16]


def _require(model: Blip, parts: tuple[str, ...], fault: str) -> None:
    if lacking := model.lacking(*parts):
        raise ValueError(f"{fault}: its weights have no {', '.join(lacking)}; name a folder that has them")


def _fact(path: Path, key: str, default: T) -> T:
    """What our model folders note beside the weights."""
    return read_config(path).get(key, default) if path.is_dir() else default
