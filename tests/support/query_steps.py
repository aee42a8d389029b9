"""One step of stage 1 of BLIP-2 on six pairs, whole or a part of it."""

from dataclasses import replace

import torch

from blip_core.compute.padding import tokenize
from blip_core.config.contrast import QueryContrastConfig
from blip_core.config.training import LanguageConfig
from blip_core.files.content import hash64
from blip_core.training.loop import backward, parallel
from blip_core.training.query_objective import QueryObjective
from blip_core.training.step import FeatureBatch
from tests.support.plain_qformer import tiny_qformer

TEXTS = ["a red ball", "a blue star on grass", "a red ball", "a photo of a red star", "a box and a ball", "a green ball"]
IMAGES = [0, 1, 2, 0, 4, 5]  # rows 0 and 3 show one picture; rows 0 and 2 have one text


def contrast_cfg(**changes) -> QueryContrastConfig:
    values = dict(label_smoothing=0.1, hardness_ramp=0.0, temperature=0.1, temperature_range=(0.01, 0.5))
    return QueryContrastConfig(**{**values, **changes})


def objective() -> QueryObjective:
    return QueryObjective(contrast_cfg(), LanguageConfig(label_smoothing=0.1, prompt="")).eval()


def batch_of(tokenizer, *, texts=TEXTS, images=IMAGES) -> FeatureBatch:
    ids, mask = tokenize(tokenizer, texts, max_tokens=20)
    return FeatureBatch(
        features=torch.stack([torch.randn(7, 20, generator=torch.Generator().manual_seed(i)) for i in images]),
        ids=ids,
        mask=mask,
        prompt_tokens=1,
        image_ids=torch.tensor(images),
        text_ids=torch.tensor([hash64(t) for t in texts]),
        step=3,
        progress=0.5,
        seed=0,
    )


def gradients(tokenizer, *, own: slice = slice(None)) -> dict:
    """Losses, and the gradient of every weight and of the temperature, of these pairs of the batch."""
    model, learned, whole = tiny_qformer(tokenizer), objective(), batch_of(tokenizer)
    fields = ("features", "ids", "mask", "image_ids", "text_ids")
    batch = replace(whole, **{f: getattr(whole, f)[own] for f in fields})
    losses = backward(parallel(model, learned), [batch], precision="fp32")
    named = [*model.named_parameters(), *learned.named_parameters()]
    return {"losses": {k: float(v) for k, v in losses.items()}, "gradients": {n: p.grad for n, p in named}}
