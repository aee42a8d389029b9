"""What every network here has, whatever stands on top of it."""

from typing import Any

from torch import nn

from blip_core.config.model import ModelConfig
from blip_core.model.vit import Vit


class Network(nn.Module):
    """Sizes and an image encoder; `state_dict` and sizes make a network again."""

    cfg: ModelConfig
    vit: Vit
    kept: dict[str, Any]  # what a task keeps of its training for its measurement (tasks/task.py)
