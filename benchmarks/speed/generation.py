"""Captions per second: ours against transformers' BlipForConditionalGeneration.generate, the same weights.

    python benchmarks/speed/generation.py [--search beam|nucleus] [--size tiny|vit-b16|vit-l16] [--runs N] [--threads N]

384 pixels, two images, 20 new tokens, none of which may be the end before the last, so that every run has the full length. Beam search
with 3 beams (the captions must be equal, token for token, or nothing is timed) and nucleus sampling with 5 captions per image (random
by nature: only their number and length are checked). Each run has the image encoder in it. Both in fp32 and in bf16: ours under
autocast, transformers with all its weights in bf16.
Writes benchmarks/results/<search>-<size>.json.
"""

import argparse
import copy
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from side_by_side import SIZES, alternate, build, compared, show, write

from blip_core.model.blip import Blip
from blip_core.model.generate import Limits, beam_search, nucleus
from blip_core.model.inference import for_inference
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.export import export_huggingface

NUM_IMAGES, NEW_TOKENS, BEAMS, SAMPLES, TOP_P = 2, 20, 3, 5, 0.9
CAPTIONS = {"beam": NUM_IMAGES, "nucleus": NUM_IMAGES * SAMPLES}
LIMITS = Limits(min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS)


def exported(model: Blip, tokenizer: Tokenizer):
    """The same weights in the class of transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BlipForConditionalGeneration

    with tempfile.TemporaryDirectory() as folder:
        export_huggingface(model, tokenizer, Path(folder) / "captioning", kind="captioning")
        return BlipForConditionalGeneration.from_pretrained(Path(folder) / "captioning").eval()


def lively(model: Blip) -> Blip:
    """Weights large enough that a caption depends on the picture and no two beams tie, and as sure of the next token as a trained
    captioner: few of them reach nine tenths of the probability."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.med.head_bias.normal_(std=4.0, generator=generator)
    return model.eval()


@torch.inference_mode()
def ours(model: Blip, pixels: torch.Tensor, search: str, *, bf16: bool = False) -> torch.Tensor:
    """Ids of the new tokens."""
    prompt = [model.special.dec]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        images = model.keys_values(model.image_tokens(pixels))
        if search == "beam":
            return beam_search(model, images, prompt, LIMITS, beams=BEAMS)[:, 0]
        draws = torch.rand(len(pixels), SAMPLES, NEW_TOKENS)
        return nucleus(model, images, prompt, LIMITS, p=TOP_P, draws_IKL=draws).flatten(0, 1)


@torch.inference_mode()
def theirs(model, pixels: torch.Tensor, search: str) -> torch.Tensor:
    """Ids of the new tokens. Their lengths count the first token."""
    how = {"beam": dict(num_beams=BEAMS, do_sample=False)}
    how["nucleus"] = dict(do_sample=True, top_p=TOP_P, top_k=0, num_return_sequences=SAMPLES)
    start = torch.tensor([[model.config.text_config.bos_token_id, model.config.text_config.sep_token_id]]).repeat(len(pixels), 1)
    ids = model.generate(pixels, input_ids=start, min_length=NEW_TOKENS + 1, max_length=NEW_TOKENS + 1, **how[search])
    return ids[:, 1:]


def check(model: Blip, peer, pixels: torch.Tensor, search: str) -> None:
    """ValueError unless beam search gives equal captions, and nucleus as many, of full length."""
    got, expected = ours(model, pixels, search), theirs(peer, pixels, search)
    if search == "beam" and not torch.equal(got, expected):
        raise ValueError(f"beam search: ours {got.tolist()}, transformers {expected.tolist()}; expected equal captions")
    shapes, full = {tuple(got.shape), tuple(expected.shape)}, (CAPTIONS[search], NEW_TOKENS)
    if shapes != {full}:
        raise ValueError(f"{search}: shapes {shapes}; expected {full}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--search", choices=CAPTIONS, default="beam")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = build(args.size, image_size=384)
    peer = exported(lively(model), tokenizer)
    pixels = torch.randn(NUM_IMAGES, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    check(model, peer, pixels, args.search)
    sides = {"transformers, fp32": partial(theirs, peer, pixels, args.search), "ours, fp32": partial(ours, model, pixels, args.search)}
    lowered = for_inference(copy.deepcopy(model), "bf16")
    sides["ours, bf16"] = partial(ours, lowered, pixels, args.search, bf16=True)
    sides["transformers, bf16"] = partial(theirs, copy.deepcopy(peer).bfloat16(), pixels.bfloat16(), args.search)
    rows = compared(alternate(sides, runs=args.runs), theirs="transformers, fp32")
    captions = CAPTIONS[args.search]
    show(f"{args.search}, {args.size}, {captions} captions", rows, items=captions, unit="captions")
    about = {"size": args.size, "images": NUM_IMAGES, "image_size": 384, "new_tokens": NEW_TOKENS, "captions": captions}
    print(write(f"{args.search}-{args.size}", {**about, "rows": rows}))


if __name__ == "__main__":
    main()
