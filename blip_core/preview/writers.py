"""What a captioner of others will need of a device's memory, by its files: the weights, and what a text keeps while it is written."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from blip_core.compute.precision import resolved
from blip_core.config.capfilt import CaptionConfig, WriterConfig

_PROMPT = 400  # tokens of a picture of 448 x 448 pixels and an instruction, as of Qwen2-VL; a model that takes tiles has more


def writer_needs(writer: WriterConfig, cfg: CaptionConfig) -> tuple[int, int] | None:
    """Bytes of the weights, and of one batch's keys and values. None where the name is no folder of such a model."""
    folder = Path(writer.captioner)
    if not (folder / "config.json").exists():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    layers, width, heads = (text.get(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if not layers or not width or not heads or config.get("model_type") == "blip":
        return None
    size = 2 if resolved(cfg.precision) == "bf16" else 4
    vector = (text.get("num_key_value_heads") or heads) * (text.get("head_dim") or width // heads)
    rows = cfg.batch_size * max(writer.num_candidates, writer.sampler.beams if writer.sampler.name == "beam" else 1)
    return size * sum(tensor_sizes(folder)), rows * (_PROMPT + writer.sampler.max_tokens) * layers * 2 * vector * size


def tensor_sizes(folder: Path) -> Iterator[int]:
    """Numbers in each tensor, by the headers of the files."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():
                yield math.prod(tensors.get_slice(name).get_shape())
