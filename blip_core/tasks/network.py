"""Tuned networks on disk: a folder with config.json, tokenizer.json and model.safetensors, as a model folder; and the identity of a task's
data."""

from pathlib import Path
from typing import Any

from blip_core.config.model import ModelConfig
from blip_core.files.content import hash_files
from blip_core.intake.walk import below
from blip_core.model.blip import Blip
from blip_core.model.network import Network
from blip_core.tables.stopped import require_made
from blip_core.tasks.task import Task
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import load_model, load_weights, new_model, save_model, save_network
from blip_core.weights.load import read_config


def save_tuned(network: Network, tokenizer: Tokenizer, folder: Path, **facts: Any) -> None:
    """By rename; `facts` go into its config.json. A Blip that nothing was added to is a model folder as any other."""
    if isinstance(network, Blip):
        save_model(network, tokenizer, folder, **facts)
    else:
        save_network(network, tokenizer, folder, task_model=network.cfg.model_dump(), **facts)


def load_network(folder: Path, task: Task[Any], cfg: Any) -> tuple[Network, Tokenizer]:
    """In eval mode. ValueError names what is missing or does not fit."""
    require_made(folder)
    about = read_config(folder)
    if "model" in about:
        base, tokenizer = load_model(folder)
        return task.network(base, cfg), tokenizer
    tokenizer = load_tokenizer(folder)
    network = task.network(new_model(ModelConfig(**about["task_model"]), tokenizer, seed=0), cfg)
    load_weights(network, folder)
    network.kept = about.get("kept", {})
    return network.eval(), tokenizer


def folder_hash(folder: Path) -> str:
    """Of the names and bytes of all files below a folder."""
    return hash_files(folder, below(folder).names)
