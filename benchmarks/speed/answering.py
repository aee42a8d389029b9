"""A vision-language model as captioner and judge, beside a plain loop of the same model by transformers: one picture, one text at a time.

    OMP_NUM_THREADS=1 python benchmarks/speed/answering.py [--size tiny|small] [--runs N] [--pictures N]

A Qwen2-VL with random weights (small: 6 layers of width 384 in both parts, 192 tokens of a picture) writes 5 texts of 20 tokens for each
picture, and judges 6 texts of each. The loop calls `generate` for each text, with the same noise, and for each judgement the model on the
whole prompt. What the processor makes is ready for both. Texts must be the same and log-odds agree, or nothing is timed. Writes
benchmarks/results/answering-<size>.json.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import alternate, compared, show, write

from blip_core.capfilt.decoding import Draw, draw_keys
from blip_core.capfilt.judge import JudgeFilter
from blip_core.capfilt.plugins import open_captioner, open_filter
from blip_core.capfilt.vlm import VlmCaptioner
from blip_core.config.capfilt import SamplerConfig
from tests.support.vlms import TEMPLATE, make_tokenizer, spread

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
TEXTS = [
    "a red ball",
    "a photo of a red ball on the grass",
    "yes",
    "there is a green box next to a blue star",
    "2 dogs",
    "a box and a star",
]
CANDIDATES, THEIRS = 5, "plain loop of transformers"
SAMPLER = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.0, beams=1, min_tokens=20, max_tokens=20, repetition_penalty=1.0)
WIDTHS = {"tiny": (64, 2), "small": (384, 6)}


def make_model(size: str, folder: Path) -> Path:
    """As it would be published."""
    width, depth = WIDTHS[size]
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = make_tokenizer(*marks)
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {"vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
    text |= {"num_attention_heads": width // 16, "num_key_value_heads": 2, "rope_parameters": rope}
    vision = {"depth": depth, "embed_dim": width, "hidden_size": width, "num_heads": width // 32, "mlp_ratio": 4}
    names = {"vision_start_token_id": start, "vision_end_token_id": end, "image_token_id": image, "video_token_id": video}
    torch.manual_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **names))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    spread(model, 0, std=width**-0.5).save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


def captions(captioner: VlmCaptioner, prepared: list[Any], keys: list[str]) -> list[list[str]]:
    found = captioner.captions(prepared, keys, SAMPLER, seed=0, num_candidates=CANDIDATES, first=0)
    return [[caption.text for caption in own] for own in found]


@torch.inference_mode()
def captions_by_loop(captioner: VlmCaptioner, prepared: list[Any], keys: list[str]) -> list[list[str]]:
    vlm, found = captioner.vlm, []
    limits = {"max_new_tokens": SAMPLER.max_tokens, "min_new_tokens": SAMPLER.min_tokens, "do_sample": False}
    for inputs, key in zip(prepared, keys, strict=True):
        own = []
        for n in range(CANDIDATES):
            draw = transformers.LogitsProcessorList([Draw(SAMPLER, draw_keys([key], 1, 0, first=n))])
            ids = vlm.model.generate(**inputs, **limits, logits_processor=draw)[:, inputs["input_ids"].shape[1] :]
            own += vlm.decode(ids)
        found.append(own)
    return found


def judged(judge: JudgeFilter, prepared: list[Any]) -> np.ndarray:
    return judge.score(prepared, [judge.encode(TEXTS)] * len(prepared)).itm_logit


def whole_prompts(judge: JudgeFilter, pictures: list[np.ndarray]) -> list[Any]:
    return [judge.vlm.inputs(picture, QUESTION.replace("{text}", text)) for picture in pictures for text in TEXTS]


@torch.inference_mode()
def judged_by_loop(judge: JudgeFilter, prompts: list[Any]) -> np.ndarray:
    logits = [judge.vlm.model(**prompt, logits_to_keep=1).logits[0, -1] for prompt in prompts]
    return np.array([float(own[judge.yes].logsumexp(-1) - own[judge.no].logsumexp(-1)) for own in logits])


def check(captioner: VlmCaptioner, judge: JudgeFilter, pictures: list[np.ndarray]) -> float:
    """The greatest difference of two log-odds. ValueError where texts differ."""
    keys, prepared = [f"k{i}" for i in range(len(pictures))], [captioner.prepare(p) for p in pictures]
    ours, theirs = captions(captioner, prepared, keys), captions_by_loop(captioner, prepared, keys)
    if ours != theirs:
        raise ValueError(f"texts differ: {ours} and {theirs}")
    difference = np.abs(judged(judge, [judge.prepare(p) for p in pictures]) - judged_by_loop(judge, whole_prompts(judge, pictures))).max()
    if difference > 1e-3:
        raise ValueError(f"log-odds differ by {difference}")
    return float(difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=WIDTHS, default="small")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(args.size, Path(folder))
        options = {"precision": "fp32", "fetch": None}
        captioner, judge = (
            open_captioner(str(path), path, prompt=None, **options),
            open_filter(str(path), path, question=QUESTION, **options),
        )
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (336, 448, 3), dtype=np.uint8) for _ in range(args.pictures)]
    difference = check(captioner, judge, pictures[:2])
    keys, prepared = [f"k{i}" for i in range(len(pictures))], [captioner.prepare(p) for p in pictures]
    begun, prompts = [judge.prepare(p) for p in pictures], whole_prompts(judge, pictures)
    writing = {
        "ours": lambda: captions(captioner, prepared, keys),
        THEIRS: lambda: captions_by_loop(captioner, prepared, keys),
    }
    judging = {
        "ours": lambda: judged(judge, begun),
        THEIRS: lambda: judged_by_loop(judge, prompts),
    }
    tables = {}
    for title, sides in ((f"captions, {CANDIDATES} a picture", writing), (f"judgements, {len(TEXTS)} texts a picture", judging)):
        tables[title] = compared(alternate(sides, runs=args.runs), theirs=THEIRS)
        show(title, tables[title], items=len(pictures), unit="pictures")
    about = {"size": args.size, "pictures": len(pictures), "greatest_difference_of_log_odds": difference}
    print(write(f"answering-{args.size}", {**about, "tables": tables}))


if __name__ == "__main__":
    main()
