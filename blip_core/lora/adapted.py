"""A model of others under an adapter, as the training loop takes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from blip_core.capfilt.adapter import add_adapter
from blip_core.capfilt.vlm import Vlm, load_vlm
from blip_core.config.training import LoraConfig
from blip_core.weights.load import read_config


class Adapted(nn.Module):
    """Its state is the adapter's alone: checkpoints hold no copy of the base."""

    def __init__(self, model: Any, cfg: LoraConfig, *, recompute: bool, seed: int):
        """Puts the adapter into `model` itself, so who holds that answers with the adapter from then on."""
        super().__init__()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.peft = add_adapter(model, cfg, seed=seed)
        self.keeps_some = model._supports_logits_to_keep()

    def forward(self, inputs: dict[str, Tensor], keep: int | Tensor) -> Tensor:
        """Logits in fp32 of the last `keep` tokens, R x keep x V, or of those at the places `keep`."""
        some = {"logits_to_keep": keep} if self.keeps_some else {}
        logits = self.peft(**inputs, **some, use_cache=False).logits
        return (logits[:, -keep:] if isinstance(keep, int) else logits).float()

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]  # torch's takes the names of its hooks
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """RuntimeError when it is no state of this adapter."""
        own = self.state_dict()
        if own.keys() != state_dict.keys():
            raise RuntimeError(f"expected the {len(own)} tensors of this adapter, got {len(state_dict)} of other names")
        for name, parameter in own.items():
            parameter.data.copy_(state_dict[name])


def open_base(folder: Path, *, precision: str) -> Vlm:
    """The model that gets an adapter. ValueError when transformers does not list its kind, or can't read it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LISTED

    if (kind := read_config(folder).get("model_type")) not in LISTED:
        raise ValueError(f"lora.base: {folder}: model_type is {kind!r}; expected a model that transformers lists for image-text-to-text")
    return load_vlm(folder, precision=precision)
