"""Model folders (what a stage gives to the next) and checkpoints of a running training.

A model folder holds config.json, tokenizer.json (older ones vocab.txt) and model.safetensors. Both kinds appear by rename.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from blip_core.config.model import ModelConfig
from blip_core.files.atomic import new_folder
from blip_core.files.content import sha256_file, write_json
from blip_core.model.blip import Blip, SpecialTokens
from blip_core.tables.stopped import require_made
from blip_core.tokenizer.folders import TOKENIZER, VOCAB, load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.hashes import folder_hash
from blip_core.weights.undrawn import undrawn

LANGUAGE = "language"  # within a model folder: the frozen language model of a BLIP-2
log = logging.getLogger(__name__)


def new_model(cfg: ModelConfig, tokenizer: Tokenizer, *, seed: int) -> Blip:
    """A model with random weights drawn from the seed."""
    torch.manual_seed(seed)
    return Blip(cfg, special_tokens(tokenizer))


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    return SpecialTokens(tokenizer.size, tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.dec, tokenizer.enc)


def save_model(model: Blip, tokenizer: Tokenizer, folder: Path, **facts: Any) -> None:
    """Write a model folder by rename; `facts` go into its config.json. An older folder of that name is replaced."""
    about: dict[str, Any] = {"model": model.cfg.model_dump(), "match_token": model.match_token, "missing": sorted(model.missing)}
    save_network(model, tokenizer, folder, **about, **facts)


def save_network(network: nn.Module, tokenizer: Tokenizer, folder: Path, *, language: Path | None = None, **about: Any) -> None:
    """The same of any network: `about` is its config.json, `language` the folder of a language model that is to lie within."""
    with new_folder(folder) as temporary:
        if language is not None:
            shutil.copytree(language, temporary / LANGUAGE, ignore=shutil.ignore_patterns(".*", "*.h5", "*.msgpack"))  # of other libraries
        save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, temporary / "model.safetensors")
        tokenizer.save(temporary / TOKENIZER)
        write_json(about, temporary / "config.json")


def load_model(folder: Path) -> tuple[Blip, Tokenizer]:
    """The model of a folder, in eval mode, and its tokenizer. ValueError names what is missing or does not fit."""
    config = folder / "config.json"
    require_made(folder)
    if not config.exists():
        raise ValueError(f"{folder}: no config.json, so no model folder; expected config.json, tokenizer.json and model.safetensors")
    if is_blip2(folder):
        raise ValueError(f"{folder}: a BLIP-2, which only the chain, `load` and `serve` take (docs/blip2.md); expected a BLIP here")
    tokenizer, about = load_tokenizer(folder), json.loads(config.read_text())
    with undrawn():
        model = new_model(ModelConfig(**about["model"]), tokenizer, seed=0)
    model.match_token, model.missing = about["match_token"], frozenset(about["missing"])
    load_weights(model, folder)
    return model.eval(), tokenizer


def load_weights(network: nn.Module, folder: Path) -> None:
    """Those of a model folder. ValueError when they do not fit, or the file is damaged."""
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (SafetensorError, OSError, RuntimeError) as e:
        raise ValueError(f"{folder / 'model.safetensors'}: does not load ({e}); run the stage that makes it again") from None


def is_tuned(folder: Path) -> bool:
    """Whether a model folder holds what was tuned for a task (tasks/network.py), and not a model as it was."""
    return "kind" in json.loads((folder / "config.json").read_text())


def is_blip2(folder: Path) -> bool:
    """Whether a folder holds a BLIP-2 of ours (weights/models.py)."""
    config = folder / "config.json"
    return config.exists() and json.loads(config.read_text()).get("model", {}).get("kind") == "blip2"


def model_hash(folder: Path) -> str:
    """Identity of a model: its weights, sizes and vocabulary, and the language model within, if there is one."""
    names = ("config.json", "model.safetensors", TOKENIZER if (folder / TOKENIZER).exists() else VOCAB)
    hashes = [sha256_file(folder / n) for n in names]
    if (folder / LANGUAGE).is_dir():
        hashes.append(folder_hash(folder / LANGUAGE))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def save_checkpoint(state: dict[str, Any], folder: Path, step: int, *, keep: int = 2) -> None:
    """Write step-NNNNNNNN.pt by rename, its sha256 beside it first, and drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = folder / f"_tmp.{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as f:  # by its name PyTorch writes past Python and does not say that a disk is full
            torch.save(state, f)
        path.with_suffix(".sha256").write_text(sha256_file(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    for orphan in folder.glob("_tmp.*"):  # of a process that was killed
        orphan.unlink()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. A damaged one is reported and passed over for the one before."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        digest = path.with_suffix(".sha256")
        if digest.exists() and digest.read_text() == sha256_file(path):
            return path
        log.warning("%s is damaged (its sha256 differs); taking the checkpoint before it", path)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """ValueError when it is not there: some process may see other folders than the one that chose it."""
    if not path.exists():
        raise ValueError(f"{path}: process 0 resumes from this checkpoint, which is not here; --work must be one folder for all processes")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What the newest whole checkpoint holds, or None."""
    path = newest_checkpoint(folder)
    return None if path is None else read_checkpoint(path)
