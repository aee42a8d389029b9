"""What is computed block by block, candidate by candidate and process by process equals the dense matrices."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels, read_picture
from blip_core.config.evaluation import EvaluateConfig
from blip_core.config.params import Params
from blip_core.evaluation import metrics, retrieval
from blip_core.evaluation.metrics import image_ranks, text_ranks
from blip_core.evaluation.retrieval import OUTRANKED, Reranked, Similarities, Subject, encode, nearest, rerank
from blip_core.stages.evaluate import evaluate
from blip_core.tables.captions import read_table
from blip_core.tables.heldout import heldout_pictures
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.weights.checkpoint import new_model, save_model

BLOCKS = (1, 100, 1 << 22)


def random_similarities(seed: int = 0, *, images: int = 40, texts: int = 130) -> tuple[Similarities, np.ndarray]:
    """Features of small whole numbers, so that many cosines tie exactly whatever the order of the sum; one to many texts an image."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(images), rng.integers(images, size=texts - images)]))
    features = [torch.from_numpy(rng.integers(-2, 3, (n, 4)).astype(np.float32)) for n in (images, texts)]
    return Similarities(*features), owner


def dense(itc: Similarities) -> np.ndarray:
    return (itc.images @ itc.texts_TE.T).numpy()


@pytest.mark.parametrize("cells", BLOCKS)
def test_ranks_by_blocks_are_those_of_the_matrix(monkeypatch, cells):
    itc, owner = random_similarities()
    scores = dense(itc)
    to_text = [sum(scores[i, owner != i] >= scores[i, owner == i].max()) for i in range(len(scores))]
    to_image = [sum(scores[:, t] >= scores[owner[t], t]) - 1 for t in range(len(owner))]
    assert len(np.unique(scores)) < 40, "without ties this would prove less"
    monkeypatch.setattr(metrics, "BLOCK_CELLS", cells)
    assert text_ranks(itc, owner).tolist() == to_text
    assert image_ranks(itc, owner).tolist() == to_image


@pytest.mark.parametrize("cells", BLOCKS)
def test_the_nearest_are_the_k_best_of_the_matrix(monkeypatch, cells):
    itc, _ = random_similarities()
    scores = dense(itc)
    monkeypatch.setattr(metrics, "BLOCK_CELLS", cells)
    for axis, by_row in ((0, scores), (1, scores.T)):
        found = nearest(itc, 7, axis=axis)
        assert found.shape == (len(by_row), 7) and all(len(set(row)) == 7 for row in found.tolist())
        best = -np.sort(-by_row, axis=1)[:, :7]
        assert np.array_equal(-np.sort(-np.take_along_axis(by_row, found, axis=1), axis=1), best)
        assert np.array_equal(found, np.argpartition(-by_row, 6, axis=1)[:, :7]), "also where several tie for the last place"


@pytest.mark.parametrize("cells", BLOCKS)
def test_candidates_stand_before_all_others_in_both_directions(monkeypatch, cells):
    itc, owner = random_similarities()
    scores, rng = dense(itc), np.random.default_rng(1)
    monkeypatch.setattr(metrics, "BLOCK_CELLS", cells)
    for axis, ranks in ((0, text_ranks), (1, image_ranks)):
        candidates = nearest(itc, 5, axis=axis)
        anew = rng.integers(-3, 3, candidates.shape).astype(np.float32)
        expected = scores + np.float32(OUTRANKED)
        np.put_along_axis(expected if axis == 0 else expected.T, candidates, anew, axis=1)
        assert ranks(Reranked(itc, candidates, anew, axis), owner).tolist() == ranks(expected, owner).tolist()


@pytest.fixture(scope="module")
def artifacts(ingested, params, tmp_path_factory) -> tuple[Path, Path]:
    """What ingest left, and a model of random weights large enough to tell texts apart."""
    folder, tokenizer = tmp_path_factory.mktemp("model") / "m", load_tokenizer(ingested / "tokenizer.json")
    save_model(new_model(params.model, tokenizer, seed=0), tokenizer, folder, prompt="", max_tokens=24)
    return ingested, folder


def subject(artifacts: tuple[Path, Path], params: Params, **changes) -> Subject:
    from blip_core.weights.checkpoint import load_model

    cfg = EvaluateConfig(**params.evaluate.model_dump() | {"batch_size": 7, "rerank": 4} | changes)
    model, tokenizer = load_model(artifacts[1])
    items = heldout_pictures(artifacts[0] / "heldout", "test")[:12]
    return Subject(model, tokenizer, 24, cfg, items, ShardImages(artifacts[0] / "shards"), "")


@torch.inference_mode()
def every_pair(s: Subject) -> np.ndarray:
    """Log-odds of ITM plus cosine of each image with each text, one image after the other: what `rerank` must give for its candidates."""
    rows, (ids, mask) = [], tokenize(s.tokenizer, s.texts, max_tokens=24)
    for item in s.items:
        tokens = s.model.image_tokens(load_pixels([read_picture(s.images, item.shard, item.key)], s.model.cfg.vision.image_size))
        logits = s.model.match_logits(ids, mask, s.model.keys_values(tokens))
        rows.append(logits[:, 1] - logits[:, 0] + s.model.text_features(ids, mask) @ s.model.image_features(tokens)[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("texts_at_once", [1, 20, 1024])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_reranking_equals_that_of_the_dense_matrices(monkeypatch, artifacts, params, k, texts_at_once):
    monkeypatch.setattr(retrieval, "TEXTS_AT_ONCE", texts_at_once)
    s = subject(artifacts, params, rerank=k)
    itc, pairs = encode(s), every_pair(s)
    scores = dense(itc)
    for found, by_row, anew in zip(rerank(s, itc), (scores, scores.T), (pairs, pairs.T), strict=True):
        num = min(k, by_row.shape[1])
        chosen = np.argpartition(-by_row, num - 1, axis=1)[:, :num]
        expected = by_row + np.float32(OUTRANKED)
        np.put_along_axis(expected, chosen, np.take_along_axis(anew, chosen, axis=1), axis=1)
        whole = found[:, :]
        np.testing.assert_allclose(whole if found.axis == 0 else whole.T, expected, atol=1e-4)
        assert np.ptp(anew, axis=1).min() > 1e-2, "equal scores would hide a mistaken pair"


def test_reranking_in_bf16_is_near_that_in_fp32(artifacts, params):
    """The cosines that it adds stay fp32."""
    first, second = (subject(artifacts, params, precision=p) for p in ("bf16", "fp32"))
    for near, exact in zip(rerank(first, encode(second)), rerank(second, encode(second)), strict=True):
        assert np.array_equal(near.candidates, exact.candidates)
        np.testing.assert_allclose(near.scores, exact.scores, atol=0.1)
        assert np.ptp(exact.scores) > 0.3


def test_similarities_are_the_cosines_of_each_pair(artifacts, params):
    s = subject(artifacts, params)
    itc, (ids, mask) = encode(s), tokenize(s.tokenizer, s.texts, max_tokens=24)
    with torch.inference_mode():
        pictures = [read_picture(s.images, i.shard, i.key) for i in s.items]
        images = s.model.image_features(s.model.image_tokens(load_pixels(pictures, s.model.cfg.vision.image_size)))
        expected = images @ s.model.text_features(ids, mask).T
    np.testing.assert_allclose(itc[:, :], expected.numpy(), atol=1e-5)
    texts = np.array([[0, 3], [9, 1]])
    np.testing.assert_allclose(itc.of_pairs([2, 5], texts), expected.numpy()[[[2, 2], [5, 5]], texts], atol=1e-5)


def run(artifacts: tuple[Path, Path], params: Params, out: Path) -> None:
    """The columns lie beside what is written."""
    cfg = EvaluateConfig(**params.evaluate.model_dump() | {"batch_size": 7, "rerank": 4, "timeout": 60, "slices": ["place", "shard"]})
    where = (artifacts[1], artifacts[0] / "heldout", artifacts[0] / "shards", out, out.with_suffix(".json"))
    evaluate(*where, cfg=cfg, seed=0, columns=out.parents[1] / "columns")


def worker(place: int, artifacts: tuple[Path, Path], params: Params, out: Path, port: int) -> None:
    os.environ |= {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run(artifacts, params, out / ("e" if place == 0 else "nobody writes here"))


def test_two_processes_find_what_one_finds(artifacts, params, tmp_path):
    """To the last bit: the batches are the same, only who computes them differs."""
    keys = [p.key for split in ("test", "val") for p in heldout_pictures(artifacts[0] / "heldout", split)]
    (tmp_path / "columns").mkdir()
    (tmp_path / "columns/clean.csv").write_text(
        "key,place\n" + "".join(f"{key},{'rare' if i < 5 else i % 2}\n" for i, key in enumerate(keys))
    )
    run(artifacts, params, tmp_path / "one" / "e")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, args=(artifacts, params, tmp_path / "two", port), nprocs=2)
    one, two = tmp_path / "one", tmp_path / "two"
    assert sorted(p.name for p in two.iterdir()) == ["e", "e.json"], "process 0 alone writes"
    assert json.loads((one / "e.json").read_text()) == json.loads((two / "e.json").read_text())
    for name in ("items.parquet", "captions.parquet"):
        assert read_table(one / "e" / name).equals(read_table(two / "e" / name))
    slices_add_up(json.loads((one / "e.json").read_text()))


def slices_add_up(found: dict[str, float]) -> None:
    """Ranks and n-gram weights are those of the whole, so its means are those of the slices by their images."""
    sizes = {place: found[f"images[place={place}]"] for place in ("rare", 0, 1)}
    assert sum(sizes.values()) == found["images"] and sizes["rare"] == 5
    for metric in ("tr_r5", "itm_tr_r1", "cider", "rouge_l"):
        assert sum(found[f"{metric}[place={p}]"] * n for p, n in sizes.items()) == pytest.approx(found[metric] * found["images"])
        assert found[f"{metric}[shard=test-00000]_high"] == found[f"{metric}_high"], "the one shard is the whole"
    assert "cider[place=1]_low" in found and "cider[place=rare]_low" not in found, "5 images have no interval"
