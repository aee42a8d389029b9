"""Models and tokenizers of transformers from a folder: nothing is fetched, no code in it is run, and no weight is made up."""

from pathlib import Path
from typing import Any

import torch

from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved

LOCAL = {"local_files_only": True, "trust_remote_code": False}
FAULTS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    TypeError,
)  # what transformers raises of a folder that is not as it should be


def read_model(kind: Any, folder: Path, *, precision: str, **built: Any) -> Any:
    """A model of a class of transformers, ready for inference on this process's device. `built`: how else the class makes one.
    ValueError where a weight is missing, for transformers would draw it at random."""
    dtype = torch.bfloat16 if resolved(precision) == "bf16" else torch.float32
    model, found = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **built, **LOCAL)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"its weights lack {len(missing)} tensors of a {type(model).__name__}, as {missing[0]}")
    return model.eval().to(device())


def read_tokenizer(folder: Path) -> Any:
    """A class of its own may want the package sentencepiece; where that is missing, tokenizer.json says the same."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL)
    except ImportError:
        if not (folder / "tokenizer.json").exists():
            raise ValueError("its tokenizer needs the package sentencepiece, or a tokenizer.json in the folder") from None
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
