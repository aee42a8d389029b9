"""Tuned networks on disk: a folder with config.json, vocab.txt and model.safetensors, as a model folder; and the identity of a task's
data."""

import json
from pathlib import Path
from typing import Any

from blip_core.config.model import ModelConfig
from blip_core.files.content import hash_files
from blip_core.intake.walk import below
from blip_core.model.network import Network
from blip_core.tables.stopped import require_made
from blip_core.tasks.task import Task
from blip_core.tokenizer.wordpiece import Tokenizer
from blip_core.weights.checkpoint import load_model, load_weights, new_model, save_network


def save_tuned(network: Network, tokenizer: Tokenizer, folder: Path, **facts: Any) -> None:
    """By rename; `facts` go into its config.json."""
    save_network(network, tokenizer, folder, task_model=network.cfg.model_dump(), kept=network.kept, **facts)


def load_network(folder: Path, task: Task[Any], cfg: Any) -> tuple[Network, Tokenizer]:
    """In eval mode. ValueError names what is missing or does not fit."""
    if not task.tunes:
        base, tokenizer = load_model(folder)
        return task.network(base, cfg), tokenizer
    require_made(folder)
    about = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.load(folder / "vocab.txt")
    network = task.network(new_model(ModelConfig(**about["task_model"]), tokenizer, seed=0), cfg)
    load_weights(network, folder)
    network.kept = about["kept"]
    return network.eval(), tokenizer


def folder_hash(folder: Path) -> str:
    """Of the names and bytes of all files below a folder."""
    return hash_files(folder, below(folder).names)
