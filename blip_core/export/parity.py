"""How far the files of an exported model are from the model itself, on pictures and texts of more sizes than were traced."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from blip_core.export.graphs import flat
from blip_core.model.blip import Blip
from blip_core.model.med import KeysValues

Part = Callable[..., dict[str, np.ndarray]]
Differences = dict[str, dict[str, float]]

_BATCHES, _LENGTHS, _STEPS = (1, 3), (2, 9), 3


@torch.inference_mode()
def differences(model: Blip, parts: Mapping[str, Part]) -> Differences:
    """The greatest absolute difference of each output of each part from what the model itself makes of the same random inputs.

    What a part reads of another is the model's own, so that each is judged alone."""
    found: Differences = defaultdict(dict)
    generator = torch.Generator().manual_seed(0)
    side = model.cfg.vision.image_size

    def compare(name: str, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        got = parts[name](**{key: value.numpy() for key, value in inputs.items()})
        for key, value in expected.items():
            largest = float(np.abs(got[key] - value.numpy()).max())
            found[name][key] = float(np.maximum(found[name].get(key, 0.0), largest))  # NaN stays

    for batch in _BATCHES:
        pixels = torch.randn(batch, 3, side, side, generator=generator)
        image_BND = model.image_tokens(pixels)
        layers = model.keys_values(image_BND)
        seen = _named("image", layers)
        feature = {} if model.lacking("contrast") else {"feature": model.image_features(image_BND)}
        compare("image", {"pixels": pixels}, feature | seen)
        for length in _LENGTHS:
            ids, mask = _texts(model, batch, min(length, model.med.cfg.max_positions), generator)
            if "text" in parts:
                compare("text", {"ids": ids, "mask": mask}, {"feature": model.text_features(ids, mask)})
            if "match" in parts:
                compare("match", {"ids": ids, "mask": mask, **seen}, {"logits": model.match_logits(ids, mask, layers)})
        if "step" in parts:
            _compare_steps(model, batch, layers, generator, compare)
    return dict(found)


def _compare_steps(
    model: Blip,
    batch: int,
    layers: list[KeysValues],
    generator: torch.Generator,
    compare: Callable[[str, dict[str, Tensor], dict[str, Tensor]], None],
) -> None:
    """Tokens one behind the other, the first with no past."""
    text = model.cfg.text
    nothing = [(torch.zeros(batch, text.heads, 0, text.width // text.heads),) * 2] * text.depth
    past: list[KeysValues] | None = None
    for _ in range(_STEPS):
        ids = torch.randint(model.special.vocab_size, (batch, 1), generator=generator)
        hidden, grown = model.med.step(ids, layers, past)
        expected = {"logits": model.med.vocabulary_logits(hidden[:, 0]), **_named("present", grown)}
        compare("step", {"ids": ids, **_named("image", layers), **_named("past", past or nothing)}, expected)
        past = grown


def _named(kind: str, layers: Sequence[KeysValues]) -> dict[str, Tensor]:
    return {f"{kind}_{'value' if i % 2 else 'key'}_{i // 2}": tensor for i, tensor in enumerate(flat(list(layers)))}


def _texts(model: Blip, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random ids behind [CLS], the texts of unequal lengths."""
    ids = torch.randint(model.special.vocab_size, (batch, length), generator=generator)
    ids[:, 0] = model.special.cls
    ends = torch.randint(1, length + 1, (batch, 1), generator=generator)
    mask = torch.arange(length) < ends
    return ids.masked_fill(~mask, model.special.pad), mask
