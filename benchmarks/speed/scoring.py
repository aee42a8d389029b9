"""ITM of 6 texts per image: ours against transformers' BlipForImageTextRetrieval, the same weights.

    python benchmarks/speed/scoring.py [--size tiny|vit-b16|vit-l16] [--runs N] [--threads N]

384 pixels, two images. transformers twice: by its `forward`, which wants an image for every text and encodes each of them, and as
someone would write it who calls its image encoder once per image and repeats the tokens for the texts. All texts have 12 tokens, so
no side pads. Logits must agree to 1e-4 before anything is timed. Writes benchmarks/results/scoring-<size>.json.
"""

import argparse
import copy
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from side_by_side import SIZES, alternate, build, compared, random_texts, show, write

from blip_core.model.blip import Blip
from blip_core.model.inference import for_inference
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.export import export_huggingface

NUM_IMAGES, TEXTS_PER_IMAGE, TOKENS = 2, 6, 12


def exported(model: Blip, tokenizer: Tokenizer):
    """The same weights in the class of transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BlipForImageTextRetrieval

    with tempfile.TemporaryDirectory() as folder:
        export_huggingface(model, tokenizer, Path(folder) / "retrieval", kind="retrieval")
        return BlipForImageTextRetrieval.from_pretrained(Path(folder) / "retrieval").eval()


@torch.inference_mode()
def ours(model: Blip, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, *, bf16: bool = False) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model.match_logits(ids, mask, model.keys_values(model.image_tokens(pixels)))


@torch.inference_mode()
def forward(peer, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, *, enc: int) -> torch.Tensor:
    """By the public interface."""
    ids = torch.cat([torch.full_like(ids[:, :1], enc), ids[:, 1:]], dim=1)
    return peer(ids, pixels.repeat_interleave(len(ids) // len(pixels), 0), attention_mask=mask.long()).itm_score


@torch.inference_mode()
def images_once(peer, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, *, enc: int) -> torch.Tensor:
    """By the parts of the public class, the image encoder once per image."""
    ids = torch.cat([torch.full_like(ids[:, :1], enc), ids[:, 1:]], dim=1)
    tokens = peer.vision_model(pixels).last_hidden_state.repeat_interleave(len(ids) // len(pixels), 0)
    seen = torch.ones(tokens.shape[:2], dtype=torch.long)
    hidden = peer.text_encoder(input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=tokens, encoder_attention_mask=seen)
    return peer.itm_head(hidden.last_hidden_state[:, 0])


def make_sides(size: str) -> dict:
    model, tokenizer = build(size, image_size=384)
    peer = exported(model.eval(), tokenizer)
    pixels = torch.randn(NUM_IMAGES, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    given = (pixels, *random_texts(tokenizer, [TOKENS] * NUM_IMAGES * TEXTS_PER_IMAGE, seed=0))
    sides = {"transformers, fp32": partial(forward, peer, *given, enc=tokenizer.enc)}
    sides["transformers, images once, fp32"] = partial(images_once, peer, *given, enc=tokenizer.enc)
    lowered = for_inference(copy.deepcopy(model), "bf16")
    return sides | {"ours, fp32": partial(ours, model, *given), "ours, bf16": partial(ours, lowered, *given, bf16=True)}


def check(sides: dict) -> float:
    """The greatest difference of the logits in fp32; ValueError when it is above 1e-4."""
    expected = sides["ours, fp32"]()
    worst = max((sides[name]() - expected).abs().max().item() for name in sides if name.startswith("transformers"))
    if worst > 1e-4:
        raise ValueError(f"ITM logits of ours and of transformers differ by {worst:.2e}; expected 1e-4")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = make_sides(args.size)
    difference = check(sides)
    print(f"logits agree: greatest difference {difference:.1e}")
    sides["ours, bf16"]()  # the check has warmed up the others
    rows = compared(alternate(sides, runs=args.runs, warmup=0), theirs="transformers, fp32")
    num_texts = NUM_IMAGES * TEXTS_PER_IMAGE
    show(f"ITM, {args.size}, {NUM_IMAGES} images, {num_texts} texts", rows, items=num_texts, unit="texts")
    about = {"size": args.size, "images": NUM_IMAGES, "texts": num_texts, "tokens": TOKENS, "image_size": 384}
    print(write(f"scoring-{args.size}", {**about, "greatest_logit_difference": difference, "rows": rows}))


if __name__ == "__main__":
    main()
