"""LoRA adapters (Hu et al. 2021) upon models of others: what is tuned of them, and captioners and judges with it. The only home of peft.

A folder of an adapter holds adapter_config.json and adapter_model.safetensors as peft has them, and config.json: the base with its content
hash, and what the adapter was tuned to be asked. The base is not copied, so it must lie where it lay, as it was.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from blip_core.capfilt.judge import JudgeFilter, judge_by
from blip_core.capfilt.vlm import Vlm, VlmCaptioner, load_vlm
from blip_core.config.training import LoraConfig
from blip_core.files.atomic import new_folder
from blip_core.files.content import write_json
from blip_core.weights.folders import FAULTS
from blip_core.weights.hashes import folder_hash
from blip_core.weights.load import read_config

ADAPTER = "lora"  # model_type of such a folder


def add_adapter(model: nn.Module, cfg: LoraConfig, *, seed: int) -> Any:
    """A PeftModel around the model, whose own weights are frozen; it answers as before until it is tuned. ValueError when it has no layer
    of a name in `cfg.targets`, or peft is not installed."""
    peft = _peft()
    if "peft_config" in vars(model):
        raise ValueError(f"{cfg.base}: holds an adapter already (adapter_config.json); expected a model alone: merge it into the weights")
    targets = cfg.targets if isinstance(cfg.targets, str) else list(cfg.targets)
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in names)] if isinstance(targets, list) else []
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(f"lora.targets: {cfg.base} has no linear layer named {', '.join(unknown)}; expected some of {', '.join(known)}")
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules=targets)
    return peft.get_peft_model(model, settings)


def save_adapter(adapted: Any, folder: Path, **about: Any) -> None:
    """Write the folder of an adapter by rename; `about` goes into its config.json. An older folder of that name is replaced."""
    settings = adapted.peft_config["default"].to_dict() | {"inference_mode": True}
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}  # equal runs, equal bytes
    tensors = _peft().get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with new_folder(folder) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / "adapter_model.safetensors")
        write_json(settings, temporary / "adapter_config.json")
        write_json({"model_type": ADAPTER, **about}, temporary / "config.json")


def identify_adapter(folder: Path) -> str:
    """The content hashes of base and adapter, as BASE+ADAPTER."""
    return f"{read_config(folder)['base_hash']}+{folder_hash(folder)}"


def load_adapted_captioner(folder: Path, identity: str, *, prompt: str | None, precision: str) -> VlmCaptioner:
    """ValueError when the base is not the one it was tuned upon, or the adapter judges."""
    own = _asked(folder, "prompt", "writes")
    return VlmCaptioner(_opened(folder, precision), identity, own if prompt is None else prompt)


def load_adapted_judge(folder: Path, identity: str, *, precision: str, **_: Any) -> JudgeFilter:
    """It asks the question that it was tuned with. ValueError when the base is not the one it was tuned upon, or the adapter writes."""
    question = _asked(folder, "question", "judges")
    return judge_by(_opened(folder, precision), folder, identity, question=question)


def _asked(folder: Path, key: str, does: str) -> str:
    about = read_config(folder)
    if key not in about:
        other = "judge" if "question" in about else "write"
        raise ValueError(f"{folder}: this adapter was tuned to {other}; expected one that {does}")
    return about[key]


def _opened(folder: Path, precision: str) -> Vlm:
    """The base with the adapter merged into its weights, so that it works as quickly as the base."""
    about = read_config(folder)
    base, wanted = Path(about["base"]), about["base_hash"]
    if not (base / "config.json").exists():
        raise ValueError(f"{folder}: an adapter of {base}, which is not here; put the model with the content hash {wanted} there")
    if (found := folder_hash(base)) != wanted:
        raise ValueError(
            f"{folder}: an adapter of {base} with the content hash {wanted}; what lies there has {found}: put that one back, or tune anew"
        )
    peft, vlm = _peft(), load_vlm(base, precision=precision)
    try:
        merged = peft.PeftModel.from_pretrained(vlm.model, str(folder)).merge_and_unload(safe_merge=True)
    except (*FAULTS, SafetensorError) as e:
        raise ValueError(f"{folder}: peft can't put this adapter upon {base} ({e}); tune it anew") from None
    return Vlm(merged.eval(), vlm.processor)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError("an adapter (LoRA) wants the package peft, which is not installed; pip install 'blip-bootstrap[lora]'") from None
    return peft
