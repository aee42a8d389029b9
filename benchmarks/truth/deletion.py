"""Whether Grad-CAM's maps say what the model needs: `make demo && python benchmarks/truth/deletion.py`.

A quarter of a picture's patches are painted over with its mean colour: the hottest of the map, or as many drawn at random. Where the map is
right, the score falls further without the hottest. A match falls by its ITM logit, a caption by the log-probability of the word whose map
it is, an answer by its log-probability. Pictures are those of test; with --questions also the answers of a model that was tuned for them.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from blip_core.capfilt.med import score_texts
from blip_core.compute.padding import pad, tokenize
from blip_core.compute.pixels import load_pixels, read_resized, resized
from blip_core.gradcam.words import How, look_for_answer, look_for_caption, look_for_match
from blip_core.model.blip import Blip
from blip_core.model.vqa import Vqa
from blip_core.pictures.images import decode_rgb
from blip_core.tables.captions import each_table
from blip_core.tables.shards import ShardImages
from blip_core.texts.clean import clean_question
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.weights.checkpoint import load_model
from blip_core.weights.vqa import load_answering

Pictures = Sequence[np.ndarray]
HOW = How(max_tokens=40, precision="fp32")


class Drops(NamedTuple):
    """By how much the score of each item falls without the hottest patches of its map, and without random ones (a mean over the draws)."""

    hot: np.ndarray
    random: np.ndarray


def drops(
    pictures: Pictures,
    maps: Sequence[np.ndarray],
    score: Callable[[Pictures], np.ndarray],
    *,
    seed: int,
    share: float = 0.25,
    draws: int = 10,
) -> Drops:
    """`maps`: S x S of each picture, which is uint8 at the model's size; `score`: of the items with these pictures in place of theirs."""
    before, count, rng = score(pictures), round(share * maps[0].size), np.random.default_rng(seed)

    def drop(orders: Sequence[np.ndarray]) -> np.ndarray:
        return before - score([without(p, order[:count], len(maps[0])) for p, order in zip(pictures, orders, strict=True)])

    hot = drop([np.argsort(-m.ravel(), kind="stable") for m in maps])
    return Drops(hot, np.mean([drop([rng.permutation(m.size) for m in maps]) for _ in range(draws)], axis=0))


def without(picture: np.ndarray, patches: np.ndarray, side: int) -> np.ndarray:
    shown, step = picture.copy(), len(picture) // side
    for row, column in zip(*np.divmod(patches, side), strict=True):
        shown[row * step : (row + 1) * step, column * step : (column + 1) * step] = picture.mean((0, 1))
    return shown


def match_drops(model: Blip, tokenizer: Tokenizer, pictures: Pictures, texts: list[str], *, seed: int, how: How = HOW) -> Drops:
    def score(shown: Pictures) -> np.ndarray:
        return score_texts(model, tokenizer, list(shown), [[t] for t in texts], max_tokens=how.max_tokens).itm_logit

    looks = look_for_match(model, tokenizer, pictures, texts, how)
    return drops(pictures, [look.whole for look in looks], score, seed=seed)


def caption_drops(model: Blip, tokenizer: Tokenizer, pictures: Pictures, texts: list[str], *, seed: int, how: How = HOW) -> Drops:
    """An item for each word."""
    looks = look_for_caption(model, tokenizer, pictures, texts, how)
    words = [tokenizer.words(t, max_tokens=how.max_tokens) for t in texts]
    owner = np.repeat(np.arange(len(texts)), [len(own) for own in words])
    ids, mask = pad([tokenizer.encode_prompt("") + tokenizer.encode(texts[i], max_tokens=how.max_tokens)[1:] for i in owner], tokenizer.pad)
    own = torch.zeros(mask.shape)
    for row, (_, places) in enumerate(word for one in words for word in one):
        own[row, places] = 1

    @torch.inference_mode()
    def score(shown: Pictures) -> np.ndarray:
        images = model.keys_values(model.image_tokens(load_pixels(list(shown), model.cfg.vision.image_size)))
        logits = model.med.vocabulary_logits(model.caption_hidden(ids, images, mask)[:, :-1])
        said = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return (said * own[:, 1:]).sum(1).numpy()

    return drops([pictures[i] for i in owner], [m for look in looks for m in look.weights], score, seed=seed)


def answer_drops(
    model: Vqa, tokenizer: Tokenizer, pictures: Pictures, questions: list[str], answers: list[str], *, seed: int, how: How = HOW
) -> Drops:
    ids, mask = tokenize(tokenizer, questions, max_tokens=how.max_tokens)
    answer_ids, answer_mask = tokenize(tokenizer, answers, max_tokens=how.max_tokens)

    @torch.inference_mode()
    def score(shown: Pictures) -> np.ndarray:
        memory = model.memory(load_pixels(list(shown), model.cfg.vision.image_size), ids, mask)
        return -model.answer_loss(memory, answer_ids, answer_mask, label_smoothing=0.0).numpy()

    looks = look_for_answer(model, tokenizer, pictures, questions, answers, how)
    return drops(pictures, [look.whole for look in looks], score, seed=seed)


def line(name: str, found: Drops) -> str:
    error = 1.96 * (found.hot - found.random).std() / len(found.hot) ** 0.5
    gain, wins = (found.hot - found.random).mean(), (found.hot > found.random).mean()
    return f"| {name} | {len(found.hot)} | {found.hot.mean():.2f} | {found.random.mean():.2f} | {gain:.2f} ± {error:.2f} | {wins:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--model", default="models/g1", help="below the artifacts")
    parser.add_argument("--questions", type=Path, help="folder of a task's files, as tasks/vqa; needs --answering")
    parser.add_argument("--answering", default="tasks/vqa-g1/model", help="below the artifacts")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer = load_model(args.artifacts / args.model)
    pictures, texts = test_pairs(args.artifacts, args.count, model.cfg.vision.image_size)
    print(
        "| map of | items | drop without the hottest | without random ones | difference | hottest drop further |\n|---|---|---|---|---|---|"
    )
    for name, measure in (("a match", match_drops), ("a caption's word", caption_drops)):
        for kind in ("grad_cam", "attention"):
            how = How(HOW.max_tokens, HOW.precision, kind=kind)  # type: ignore[arg-type]
            print(line(f"{name}, {kind}", measure(model, tokenizer, pictures, texts, seed=args.seed, how=how)), flush=True)
    if args.questions:
        answering, tokenizer = load_answering(args.artifacts / args.answering)
        asked = questions_of(args.questions, args.count, answering.cfg.vision.image_size)
        print(line("an answer, grad_cam", answer_drops(answering, tokenizer, *asked, seed=args.seed)))


def test_pairs(artifacts: Path, count: int, size: int) -> tuple[list[np.ndarray], list[str]]:
    """The first text of the first pictures of test."""
    rows = pa.concat_tables(each_table(artifacts / "heldout", ["key", "text"])).to_pylist()
    first = {row["key"]: row for row in reversed(rows) if row["shard"].startswith("test")}
    chosen, images = [first[key] for key in sorted(first)[:count]], ShardImages(artifacts / "shards")
    return [read_resized(images, row["shard"], row["key"], size) for row in chosen], [row["text"] for row in chosen]


def questions_of(folder: Path, count: int, size: int) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Every so many of test, each with the answer that people gave first."""
    rows = [json.loads(row) for row in (folder / "test.jsonl").read_text().splitlines()]
    rows = rows[:: max(1, len(rows) // count)][:count]
    pictures = [resized(decode_rgb((folder / row["image"]).read_bytes()), size) for row in rows]
    return pictures, [clean_question(row["question"]) for row in rows], [row["answers"][0] for row in rows]


if __name__ == "__main__":
    main()
