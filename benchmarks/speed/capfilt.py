"""CapFilt of a shard, whole: our stages `caption` and `score` against the plain loop with the two models of transformers.

    python benchmarks/speed/capfilt.py [--size tiny|vit-b16] [--runs N] [--threads N] [--candidates N,N,..] [--images N]

Each run reads a shard of JPEGs of about 500 x 375 pixels, captions every image by nucleus sampling, scores its web text and its captions
with ITM and ITC at 384 pixels, and writes Parquet; it begins with loading both models. The settings are those of configs/vit-b16.yaml, the
weights random and the same on all sides. transformers twice: by `generate` and `forward`, which gives one of the two scores of a text
and encodes the image each time; and "images once", as someone would write it who calls the parts of BlipForImageTextRetrieval so that
the filter encodes each image once. Random weights seldom end a caption, so all have full length on every side. Scores of the same
texts must agree or nothing is timed; captions are random by nature. Writes benchmarks/results/capfilt-<size>.json.
"""

import argparse
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from data_path import picture
from generation import lively
from PIL import Image
from side_by_side import ROOT, SIZES, alternate, build, compared, show, write

from blip_core.config.params import load_params
from blip_core.files.content import write_json
from blip_core.stages.caption import caption
from blip_core.stages.score import score
from blip_core.tables.captions import caption_table, read_table, write_table
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.tables.shards import ShardWriter
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.tokenizer.wordpiece import BERT_TOKENS
from blip_core.weights.checkpoint import save_model
from blip_core.weights.export import export_huggingface

SEED, IMAGE_SIZE, BATCH = 0, 384, 8
MOST = 1e-3  # by which a score may differ: Pillow and torch round a resized pixel to neighbouring grey levels
SHARD = "web-00000"
PARAMS = load_params(ROOT / "configs/vit-b16.yaml")
(WRITER,) = PARAMS.caption.writers
MAX_TOKENS = PARAMS.tune_filter.optim.max_tokens


def make_world(folder: Path, size: str, num_images: int) -> None:
    """A shard with its web texts, and one random model as captioner and filter, in our folders and in those of transformers."""
    model, tokenizer = build(size, image_size=IMAGE_SIZE)
    save_model(lively(model), tokenizer, folder / "captioner", prompt="", max_tokens=MAX_TOKENS)
    save_model(model, tokenizer, folder / "filter", prompt="", max_tokens=MAX_TOKENS)
    for kind in ("captioning", "retrieval"):
        export_huggingface(model, tokenizer, folder / kind, kind=kind)
    rng, rows = np.random.default_rng(SEED), []
    with ShardWriter(folder / "shards", "web", num_images=num_images) as writer:
        for i in range(num_images):
            jpeg = simplejpeg.encode_jpeg(picture(rng, 500, 375), quality=85, colorsubsampling="420")
            writer.add(f"{i:06d}", jpeg, image_id=f"{i}", width=500, height=375)
            rows.append(
                {"key": f"{i:06d}", "image_id": f"{i}", "text": web_text(tokenizer, rng), "source": "web", "candidate": 0, "reason": "kept"}
            )
    write_table(caption_table(rows), folder / "generation" / f"{SHARD}.parquet")
    # no pictures of val, so that no side has controls to score
    write_table(caption_table([{**rows[0], "source": "human"}]), folder / "heldout/test-00000.parquet")
    for part in ("shards", "generation", "heldout"):
        write_manifest(folder / part)
    write_json({"passed": True, "generation": content_hash(folder / "generation")}, folder / "gate.json")


def web_text(tokenizer: Tokenizer, rng: np.random.Generator) -> str:
    """As long as a caption of COCO: 8 to 15 tokens with both ends."""
    return " ".join(rng.choice(tokenizer.vocab[len(BERT_TOKENS) :], rng.integers(6, 14)))


# --- ours


def ours(folder: Path, *, candidates: int, precision: str, threads: int) -> Path:
    """The scored table of the shard."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    generation, shards, captions, scores = folder / "generation", folder / "shards", folder / "out/captions", folder / "out/scores"
    common = {"seed": SEED, "work": folder / "out/work"}
    writers = (WRITER.model_copy(update={"num_candidates": candidates}),)
    cfg = PARAMS.caption.model_copy(update={"writers": writers, "precision": precision, "threads": threads})
    caption(folder / "captioner", generation, shards, folder / "gate.json", captions, round="r1", cfg=cfg, **common)
    cfg = PARAMS.score.model_copy(update={"precision": precision, "threads": threads})
    score(folder / "filter", generation, captions, shards, folder / "heldout", scores, cfg=cfg, **common)
    return scores / f"{SHARD}.parquet"


# --- the plain loop


class Peers:
    """Both models of transformers with their processor."""

    def __init__(self, folder: Path):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor

        self.captioner = BlipForConditionalGeneration.from_pretrained(folder / "captioning").eval()
        self.filter = BlipForImageTextRetrieval.from_pretrained(folder / "retrieval").eval()
        self.processor = BlipProcessor.from_pretrained(folder / "captioning")
        self.enc = self.processor.tokenizer.convert_tokens_to_ids("[ENC]")

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.as_tensor(self.processor(images=images, return_tensors="pt")["pixel_values"])

    def captions(self, pixels: torch.Tensor, num: int) -> list[list[str]]:
        """`num` of each image. Their lengths count the first token."""
        sampler = WRITER.sampler
        lengths = {"min_length": 1 + sampler.min_tokens, "max_length": 1 + sampler.max_tokens}
        how = {"do_sample": True, "top_p": sampler.p, "top_k": 0, "repetition_penalty": sampler.repetition_penalty}
        ids = self.captioner.generate(pixels, num_return_sequences=num, **lengths, **how)
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [texts[start : start + num] for start in range(0, len(texts), num)]

    def tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids with [CLS] for ITC, with [ENC] for ITM, and the mask."""
        found = self.processor.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        ids = found["input_ids"]
        return ids, torch.cat([torch.full_like(ids[:, :1], self.enc), ids[:, 1:]], dim=1), found["attention_mask"]

    def scores(self, pixels: torch.Tensor, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """P(match) and cosine of the texts of each image, images x texts, by the public interface."""
        columns = []
        for column in zip(*texts, strict=True):
            cls_ids, enc_ids, mask = self.tokens(list(column))
            itm = self.filter(enc_ids, pixels, attention_mask=mask).itm_score.softmax(-1)[:, 1]
            itc = self.filter(cls_ids, pixels, attention_mask=mask, use_itm_head=False).itm_score.diagonal()
            columns.append(torch.stack([itm, itc]))
        itm, itc = torch.stack(columns, dim=-1).numpy()
        return itm, itc

    def scores_images_once(self, pixels: torch.Tensor, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """The same by the parts of the public class: the image encoder once per image, all texts of a batch at once."""
        model, num = self.filter, len(texts[0])
        images = model.vision_model(pixels).last_hidden_state
        cls_ids, enc_ids, mask = self.tokens([text for row in texts for text in row])
        repeated = images.repeat_interleave(num, 0)
        seen = torch.ones(repeated.shape[:2], dtype=torch.long)
        pair = model.text_encoder(enc_ids, attention_mask=mask, encoder_hidden_states=repeated, encoder_attention_mask=seen)
        itm = model.itm_head(pair.last_hidden_state[:, 0]).softmax(-1)[:, 1].unflatten(0, (-1, num))
        text = model.text_proj(model.text_encoder(cls_ids, attention_mask=mask).last_hidden_state[:, 0])
        image = torch.nn.functional.normalize(model.vision_proj(images[:, 0]), dim=-1)
        itc = torch.einsum("ie,ike->ik", image, torch.nn.functional.normalize(text, dim=-1).unflatten(0, (-1, num)))
        return itm.numpy(), itc.numpy()


def read_pictures(folder: Path) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Keys and pictures of the shard in batches, decoded by Pillow."""
    with tarfile.open(folder / "shards" / f"{SHARD}.tar") as tar:
        members = tar.getmembers()
        for start in range(0, len(members), BATCH):
            part = members[start : start + BATCH]
            yield [Path(m.name).stem for m in part], [Image.open(io.BytesIO(tar.extractfile(m).read())).convert("RGB") for m in part]


@torch.inference_mode()
def plain(folder: Path, *, candidates: int, images_once: bool) -> Path:
    """The scored table of the shard."""
    peers, rows = Peers(folder), []
    score_batch = peers.scores_images_once if images_once else peers.scores
    web = {r["key"]: r["text"] for r in read_table(folder / "generation" / f"{SHARD}.parquet", ["key", "text"]).to_pylist()}
    for keys, images in read_pictures(folder):
        pixels = peers.pixels(images)
        texts = [[web[key], *own] for key, own in zip(keys, peers.captions(pixels, candidates), strict=True)]
        itm, itc = score_batch(pixels, texts)
        for i, key in enumerate(keys):
            for j, text in enumerate(texts[i]):
                made = {"source": "synthetic", "candidate": j - 1} if j else {"source": "web", "candidate": 0}
                rows.append({"key": key, "text": text, **made, "itm": float(itm[i, j]), "itc": float(itc[i, j])})
    write_table(caption_table(rows), folder / "plain.parquet")
    return folder / "plain.parquet"


# --- checked and timed


@torch.inference_mode()
def check(folder: Path, *, candidates: int = 2) -> float:
    """The greatest difference of a score of the same text in fp32, over both ways of transformers; ValueError when it is above MOST."""
    rows = read_table(ours(folder, candidates=candidates, precision="fp32", threads=0), ["key", "text", "itm", "itc"]).to_pylist()
    peers, worst = Peers(folder), 0.0
    for keys, images in read_pictures(folder):
        mine = [[row for row in rows if row["key"] == key] for key in keys]
        texts = [[row["text"] for row in own] for own in mine]
        expected = np.array([[[row[name] for row in own] for own in mine] for name in ("itm", "itc")])
        for way in (peers.scores, peers.scores_images_once):
            worst = max(worst, np.abs(np.array(way(peers.pixels(images), texts)) - expected).max())
    if worst > MOST:
        raise ValueError(f"scores of ours and of transformers differ by {worst:.1e}; expected {MOST:.0e} at most")
    return float(worst)


def make_sides(folder: Path, candidates: int, threads: int) -> dict[str, partial]:
    sides = {"transformers, fp32": partial(plain, folder, candidates=candidates, images_once=False)}
    sides["transformers, images once, fp32"] = partial(plain, folder, candidates=candidates, images_once=True)
    return sides | {f"ours, {p}": partial(ours, folder, candidates=candidates, precision=p, threads=threads) for p in ("fp32", "bf16")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--candidates", type=lambda s: [int(n) for n in s.split(",")], default=[1, 5])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tables = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(folder, args.size, args.images)
        difference = check(folder)
        print(f"scores agree: greatest difference {difference:.1e}")
        for candidates in args.candidates:
            times = alternate(make_sides(folder, candidates, args.threads), runs=args.runs, warmup=0)
            rows = compared(times, theirs="transformers, fp32")
            show(f"CapFilt, {args.size}, {args.images} images, captions of each {candidates}", rows, items=args.images, unit="images")
            tables.append({"captions_per_image": candidates, "rows": rows})
    about = {"size": args.size, "images": args.images, "image_size": IMAGE_SIZE, "greatest_score_difference": difference}
    print(write(f"capfilt-{args.size}", {**about, "tables": tables}))


if __name__ == "__main__":
    main()
