"""Tuned networks on disk: a folder with config.json, vocab.txt and model.safetensors, as a model folder; and the identity of a task's
data."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from blip_core.config.model import ModelConfig
from blip_core.files.atomic import new_folder
from blip_core.files.content import sha256_file, write_json
from blip_core.intake.walk import below
from blip_core.model.network import Network
from blip_core.tables.stopped import require_made
from blip_core.tasks.task import Task
from blip_core.tokenizer.wordpiece import Tokenizer
from blip_core.weights.checkpoint import new_model


def save_network(network: Network, tokenizer: Tokenizer, folder: Path, **facts: Any) -> None:
    """By rename; `facts` go into its config.json."""
    with new_folder(folder) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, temporary / "model.safetensors")
        tokenizer.save(temporary / "vocab.txt")
        write_json({"task_model": network.cfg.model_dump(), **facts}, temporary / "config.json")


def load_network(folder: Path, task: Task[Any], cfg: Any) -> tuple[Network, Tokenizer]:
    """In eval mode. ValueError names what is missing or does not fit."""
    require_made(folder)
    about = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.load(folder / "vocab.txt")
    network = task.network(new_model(ModelConfig(**about["task_model"]), tokenizer, seed=0), cfg)
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (SafetensorError, OSError, RuntimeError) as e:
        raise ValueError(f"{folder / 'model.safetensors'}: does not load ({e}); run the stage that makes it again") from None
    return network.eval(), tokenizer


def folder_hash(folder: Path) -> str:
    """Of the names and bytes of all files below a folder."""
    names = below(folder).names
    return hashlib.sha256("".join(f"{name} {sha256_file(folder / name)}\n" for name in names).encode()).hexdigest()[:16]
