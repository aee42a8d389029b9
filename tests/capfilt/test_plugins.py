"""Captioners and filters by name: ours, public BLIP, CLIP and SigLIP folders, with the numbers that transformers gives for the files."""

import json
import re
from functools import partial
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import simplejpeg
import torch

from blip_core.capfilt.pair_scores import opinions
from blip_core.capfilt.plugins import identify, identify_captioner, open_captioner
from blip_core.capfilt.plugins import open_filter as open_any_filter
from blip_core.capfilt.scoring import score_table
from blip_core.selection.calibration import read_calibrations
from blip_core.stages.assemble import assemble
from blip_core.stages.calibrate import calibrate
from blip_core.stages.caption import caption
from blip_core.stages.score import score
from blip_core.tables.captions import read_table, read_tables
from blip_core.tables.manifest import write_manifest
from blip_core.tables.shards import ShardImages, ShardWriter
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.tokenizer.wordpiece import save_vocab
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.peers import peer, randomize, save

TEXTS = ["a red ball", "blue star on grass", "there is a photo of a green box next to a red star"]

open_filter = partial(open_any_filter, question="Does it show {text}?")


def pixels(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 56, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> ShardImages:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "web", num_images=9) as writer:
        for n, image in enumerate(pixels(3)):
            writer.add(f"k{n}", simplejpeg.encode_jpeg(image, quality=95), image_id=f"{n}", width=56, height=40)
    write_manifest(folder)
    return ShardImages(folder)


def clip_folder(kind: str, folder, tokenizer: Tokenizer):
    """A small random CLIP, SigLIP or SigLIP 2 of any aspect as save_pretrained writes it, with a processor of its own."""
    import transformers

    size = {"num_patches": 16} if kind == "Siglip2" else {"image_size": 32}
    vision = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, patch_size=8, **size)
    text = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=20)
    words = {"vocab_size": tokenizer.size, "pad_token_id": 0, "bos_token_id": tokenizer.cls, "eos_token_id": tokenizer.sep}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text | words | ({"projection_size": 32} if kind != "CLIP" else {}),
        vision_config=vision,
        **({"projection_dim": 16} if kind == "CLIP" else {}),
    )
    randomize(getattr(transformers, f"{kind}Model")(config), 0).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    sizes = {
        "CLIP": {"size": {"shortest_edge": 32}, "crop_size": square},
        "Siglip": {"size": square},
        "Siglip2": {"patch_size": 8, "max_num_patches": 16},
    }
    # without torchvision the class is that of Pillow; its file names the plain one
    processor = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")
    processor(**sizes[kind]).save_pretrained(folder)
    save_vocab(tokenizer.vocab, folder / "vocab.txt")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "Siglip2"])
def test_clip_scores_are_the_cosines_of_transformers(kind, tokenizer, stored, tmp_path):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = clip_folder(kind, tmp_path / "clip", tokenizer)
    judge = open_filter(str(folder), tmp_path, precision="fp32", fetch=None)
    rows = [{"shard": "web-00000", "key": f"k{i}", "text": t} for i in range(3) for t in TEXTS[: 1 + i]]
    found = score_table(judge, pa.Table.from_pylist(rows), stored, batch_size=2)
    assert np.isnan(found.itm_logit).all() and np.std(found.itc) > 1e-3

    model, words, images = (c.from_pretrained(folder) for c in (AutoModel, AutoTokenizer, AutoImageProcessor))
    for row, cosine in zip(rows, found.itc, strict=True):
        decoded = simplejpeg.decode_jpeg(stored.bytes(row["shard"], row["key"]))
        inputs = words([row["text"]], padding=True if kind == "CLIP" else "max_length", max_length=20, truncation=True, return_tensors="pt")
        inputs = {name: inputs[name] for name in (("input_ids", "attention_mask") if kind == "CLIP" else ("input_ids",))}
        with torch.no_grad():
            out = model(**inputs, **{n: torch.as_tensor(v) for n, v in images(images=decoded, return_tensors="pt").items()})
        assert cosine == pytest.approx(float((out.image_embeds * out.text_embeds).sum()), abs=1e-5)


def test_a_public_captioner_and_filter_open_by_their_folder(tokenizer, stored, tmp_path):
    writes = save(peer("BlipForConditionalGeneration", "equal", tokenizer), tokenizer, tmp_path / "writes")
    judges = save(peer("BlipForImageTextRetrieval", "wide_text", tokenizer), tokenizer, tmp_path / "judges")
    captioner = open_captioner(str(writes), tmp_path, prompt="a photo of", precision="fp32", fetch=None)
    assert captioner.prompt == "a photo of" and captioner.identity == identify_captioner(writes, "a photo of") != identify(writes)
    judge = open_filter(str(judges), tmp_path, precision="fp32", fetch=None)
    found = score_table(judge, pa.Table.from_pylist([{"shard": "web-00000", "key": "k0", "text": t} for t in TEXTS]), stored, batch_size=2)
    assert np.isfinite(found.itm_logit).all() and np.isfinite(found.itc).all()
    with pytest.raises(ValueError, match=r"judges: can't write captions.* no decoder .*language"):
        open_captioner(str(judges), tmp_path, prompt=None, precision="fp32", fetch=None)
    with pytest.raises(ValueError, match=r"writes: can't judge texts.* no encoder .*match"):
        open_filter(str(writes), tmp_path, precision="fp32", fetch=None)


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="the package is there")
def test_a_siglip_folder_as_it_is_published_needs_no_sentencepiece(tokenizer, stored, tmp_path):
    """Its tokenizer_config.json names a class that wants that package: without it the folder crashed."""
    folder = clip_folder("Siglip", tmp_path / "siglip", tokenizer)
    row = pa.Table.from_pylist([{"shard": "web-00000", "key": "k0", "text": TEXTS[0]}])
    wanted = score_table(open_filter(str(folder), tmp_path, precision="fp32", fetch=None), row, stored, batch_size=1)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "SiglipTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").unlink()
    found = score_table(open_filter(str(folder), tmp_path, precision="fp32", fetch=None), row, stored, batch_size=1)
    assert found.itc == pytest.approx(wanted.itc, abs=1e-6)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"siglip: transformers can't read this .*needs the package sentencepiece, or a tokenizer.json"):
        open_filter(str(folder), tmp_path, precision="fp32", fetch=None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json; expected a folder as transformers' save_pretrained writes it"),
        ({"model.safetensors": "", "vocab.txt": ""}, "no config.json"),
        ({"config.json": '{"model_type": "bl'}, "config.json: not valid JSON"),
        ({"config.json": "[1, 2]"}, "config.json: expected the settings of a model as a JSON object, got list"),
        ({"config.json": '{"model_type": "bert"}', "vocab.txt": "x"}, "config.json: model_type is 'bert', which can't "),
    ],
)
def test_a_wrong_folder_is_named_with_what_is_wrong(files, message, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    for open_it in (open_filter, partial(open_captioner, prompt=None)):  # as the stages do
        with pytest.raises(ValueError, match=re.escape(message)):
            identify(folder), open_it(str(folder), tmp_path, precision="fp32", fetch=None)


def test_a_clip_folder_writes_nothing(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="config.json: model_type is 'clip', which can't write; expected a BLIP"):
        open_captioner(str(clip_folder("CLIP", tmp_path / "clip", tokenizer)), tmp_path, prompt=None, precision="fp32", fetch=None)


def test_names_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights/none: no such folder or file; expected 'tuned', the path of a model, or models:/"):
        open_filter("weights/none", tmp_path, precision="fp32", fetch=None)
    with pytest.raises(ValueError, match="models:/blip/1: no registry here"):
        open_filter("models:/blip/1", tmp_path, precision="fp32", fetch=None)


def test_a_round_with_two_captioners_and_an_ensemble_of_filters(ingested, params, tmp_path):
    """Ours and a public one write, ours, a public BLIP and CLIP judge, and two of the three must accept a text."""
    tokenizer = load_tokenizer(ingested / "tokenizer.json")
    for name, seed in (("captioner", 1), ("filter", 2)):
        save_model(new_model(params.model, tokenizer, seed=seed), tokenizer, tmp_path / name, prompt="", max_tokens=24)
    writes = save(peer("BlipForConditionalGeneration", "equal", tokenizer), tokenizer, tmp_path / "writes")
    judges = save(peer("BlipForImageTextRetrieval", "wide_text", tokenizer), tokenizer, tmp_path / "judges")
    clip = clip_folder("CLIP", tmp_path / "clip", tokenizer)
    (own,) = params.caption.writers
    other = {"captioner": str(writes), "prompt": "", "num_candidates": 2, "sampler": own.sampler.model_copy(update={"name": "beam"})}
    writers = (own.model_copy(update={"num_candidates": 2}), own.model_copy(update=other))
    g0, shards, heldout, work = ingested / "generations/g0", ingested / "shards", ingested / "heldout", tmp_path / "work"
    cfg = params.caption.model_copy(update={"writers": writers})
    options = {"seed": 3, "work": work}
    caption(tmp_path / "captioner", g0, shards, ingested / "gates/g0.json", tmp_path / "captions", round="r1", cfg=cfg, **options)
    made = read_tables(tmp_path / "captions").to_pylist()
    first = sorted((r["candidate"], r["model"] == identify_captioner(writes, ""), r["sampler"]) for r in made if r["key"] == made[0]["key"])
    assert first == [(0, False, "nucleus p=0.9"), (1, False, "nucleus p=0.9"), (2, True, "beam 3"), (3, True, "beam 3")]

    score_cfg = params.score.model_copy(update={"filters": ("tuned", str(judges), str(clip))})
    score(tmp_path / "filter", g0, tmp_path / "captions", shards, heldout, tmp_path / "scores", cfg=score_cfg, **options)
    (tmp_path / "labels").mkdir()
    outs = (tmp_path / "calibration.json", tmp_path / "calibration-metrics.json")
    calibrate(
        tmp_path / "filter", shards, heldout, tmp_path / "labels", *outs, cfg=params.calibrate, score_cfg=score_cfg, seed=3, work=tmp_path
    )
    assert [c.name for c in read_calibrations(outs[0]).values()] == ["tuned", str(judges), str(clip)]
    for votes in (1, 2, 3):
        rule = params.assemble.model_copy(update={"votes": votes, "threshold": {"web": 0.5, "synthetic": 0.5}})
        assemble(g0, tmp_path / "scores", outs[0], tmp_path / f"g{votes}", tmp_path / "m.json", cfg=rule)
        for path in sorted((tmp_path / f"g{votes}").glob("web-*.parquet")):
            table = read_table(path)
            table = table.filter(pc.not_equal(table["filter"], ""))  # one picture came without a text
            judged = [table["match"].to_numpy(), *(o["match"].to_numpy() for o in opinions(table))]
            accepted = sum((match >= 0.5).astype(int) for match in judged)
            assert len(judged) == 3 and all(
                (a < votes) == (r == "below_threshold")
                for a, r in zip(accepted, table["reason"].to_pylist(), strict=False)
                if r in ("kept", "below_threshold")
            )
