"""Near copies by embeddings: the search, the encoders, and what ingest makes of copies of held-out and of crawled pictures."""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageOps

from blip_core.config.intake import MeaningConfig, NearCopiesConfig
from blip_core.intake import alike, by_meaning, near_copies
from blip_core.intake.alike import firsts, nearest, on_grid
from blip_core.intake.by_meaning import Embeddings, Vectors
from blip_core.intake.duplicates import fingerprint
from blip_core.intake.embedder import Embedder, load_embedder
from blip_core.intake.staged import Staged
from blip_core.intake.units import Task
from blip_core.tables.manifest import read_manifest
from blip_core.tables.shards import ShardWriter
from tests.intake.test_duplicates import add_web, encoded, near, photo
from tests.stages.test_ingest import CFG, pairs, quarantine, run, write_data

LIMIT = 0.985  # by the encoder below copies that are encoded anew are nearer, other pictures of these are not
VISION = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)


def save(folder: Path, model: transformers.PreTrainedModel, **processor) -> Path:
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, **processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A DINOv2 with random weights, large enough to tell pictures apart."""
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=1, initializer_range=0.5))
    return save(tmp_path_factory.mktemp("encoder") / "dinov2", model)


def meaning(model: Path, **changes) -> MeaningConfig:
    given = dict(model=model, heldout_cosine=LIMIT, web="off", web_cosine=LIMIT, batch_size=4, precision="fp32")
    return MeaningConfig(**given | changes)


# the search


def groups(rows: int, *, dims: int = 24) -> np.ndarray:
    """About thirty directions, each with some that are near; two rows are equal."""
    rng = np.random.default_rng(0)
    found = rng.standard_normal((30, dims))[rng.integers(0, 30, rows)] + 0.3 * rng.standard_normal((rows, dims))
    found[10] = found[3]
    return on_grid(found)


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    some, others = some.astype(np.int64), others.astype(np.int64)
    return (some @ others.T) / np.sqrt(((some**2).sum(1)[:, None] * (others**2).sum(1)).astype(float))


@pytest.mark.parametrize("sizes", [(70, 50), (2048, 8192)])
def test_all_that_are_near_are_found_and_no_others_whatever_the_blocks(sizes, monkeypatch):
    """As comparing all with all would find them."""
    monkeypatch.setattr(alike, "_ROWS", sizes[0])
    monkeypatch.setattr(alike, "_OTHERS", sizes[1])
    rows = groups(300)
    every, head = cosines(rows, rows), list(range(300))
    for later in range(300):
        near_heads = (j for j in range(later) if head[j] == j and every[later, j] >= 0.9)
        head[later] = next(near_heads, later)
    first, cosine = firsts(rows, cosine=0.9)
    assert first.tolist() == head and 50 < len(set(head)) < 100
    assert cosine.tolist() == [1.0 if i == j else every[i, j] for i, j in enumerate(head)]
    found, cosine = nearest(rows, rows[:40], cosine=0.9)
    best = every[:, :40].max(axis=1)
    assert found.tolist() == np.where(best >= 0.9, every[:, :40].argmax(axis=1), -1).tolist()
    assert cosine.tolist() == np.where(best >= 0.9, best, 0).tolist()
    assert np.flatnonzero(firsts(rows, cosine=1.0)[0] != np.arange(300)).tolist() == [10]


def test_products_are_whole_numbers_that_float32_holds():
    """The longest that there can be: so no order of sums decides."""
    for dims in (2, 768, 4096):
        longest = (np.abs(on_grid(np.random.default_rng(0).standard_normal((200, dims)))).astype(np.int64) ** 2).sum(axis=1).max()
        assert longest < 2**24
    assert on_grid(np.array([[1e30, 0], [0, 1e-30], [0, 0]], np.float32)).tolist() == [[4000, 0], [0, 4000], [0, 0]]


def test_nothing_is_near_to_nothing():
    none, some = np.empty((0, 3), np.int16), on_grid(np.eye(3))
    assert firsts(none, cosine=0.9)[0].tolist() == nearest(none, some, cosine=0.9)[0].tolist() == []
    assert nearest(some, none, cosine=0.9)[0].tolist() == [-1] * 3


def test_rows_of_several_files_are_one_array(tmp_path):
    rows, files, chosen = groups(20), [], [np.array([4, 1]), np.array([], int), np.arange(5), np.array([0])]
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rows[5 * i : 5 * i + 5])
        files.append(tmp_path / f"{i}.npy")
    whole, expected = Vectors(files, chosen), rows[[4, 1, 10, 11, 12, 13, 14, 15]]
    assert len(whole) == 8 and len(Vectors([], [])) == 0
    for start in range(8):
        for stop in range(start + 1, 10):
            assert np.array_equal(whole[start:stop], expected[start:stop])


# the encoders


def small(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    vision = VISION | {"intermediate_size": 32}
    if kind == "clip":
        return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    if kind == "blip":
        own = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
        return transformers.BlipForImageTextRetrieval(own)
    if kind == "vit":  # as DINO's folders, without the pooler that transformers' class has
        return transformers.ViTModel(transformers.ViTConfig(**vision), add_pooling_layer=False)
    return transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4))


def expected_of(kind: str, model: transformers.PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """As each model's own outputs for images and texts have it, or by hand."""
    ids = torch.ones(1, 4, dtype=torch.long)
    if kind in ("clip", "siglip"):
        return model(pixel_values=pixels, input_ids=ids).image_embeds
    if kind == "blip":
        return model.vision_proj(model.vision_model(pixels)[0][:, 0])
    return model(pixels)[0][:, 0] if kind == "vit" else model(pixels)[1]


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip", "vit", "convnext"])
def test_embeddings_are_those_of_transformers(tmp_path, kind):
    model = small(kind).eval()
    embedder = load_embedder(meaning(save(tmp_path, model)))
    prepared = [embedder.prepared(np.asarray(photo(name))) for name in "abc"]
    with torch.no_grad():
        expected = expected_of(kind, model, torch.cat([own["pixel_values"] for own in prepared])).numpy()
    found = embedder.vectors(prepared)
    assert np.abs(cosines(on_grid(found), on_grid(expected)).diagonal() - 1).max() < 1e-5


def test_a_picture_s_embedding_does_not_depend_on_its_batch(encoder):
    embedder = load_embedder(meaning(encoder))
    prepared = [embedder.prepared(np.asarray(photo(name))) for name in "abcdef"]
    together = on_grid(np.concatenate([embedder.vectors(prepared[:4]), embedder.vectors(prepared[4:])]))
    apart = on_grid(np.concatenate([embedder.vectors([prepared[i]]) for i in (5, 2, 0, 1, 4, 3)]))
    assert np.array_equal(apart, together[[5, 2, 0, 1, 4, 3]])


def test_a_folder_that_is_no_image_encoder_is_named(tmp_path):
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert = save(tmp_path / "bert", transformers.BertModel(transformers.BertConfig(**small, vocab_size=50)))
    mae = save(tmp_path / "mae", transformers.ViTMAEModel(transformers.ViTMAEConfig(**VISION, intermediate_size=32)))
    bare = tmp_path / "bare"
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION)).save_pretrained(bare)
    for folder in (bert, bare, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{folder}: transformers can't read this as an image encoder with its image processor"):
            load_embedder(meaning(folder))
    with pytest.raises(ValueError, match=f"{mae}: gives one picture two embeddings"):
        load_embedder(meaning(mae))


def test_a_missing_library_is_named_before_a_model_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"wants the package faiss-cpu, which is not installed; pip install 'blip-bootstrap\[meaning\]'"):
        Embeddings.open(meaning(tmp_path / "missing"), tmp_path / "kept")


def test_a_section_that_asks_for_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither heldout_cosine nor web asks for anything"):
        meaning(tmp_path, heldout_cosine=None, web=False)


# what becomes of copies


def staged(folder: Path, images: dict[str, bytes], split: str = "web") -> Staged:
    with ShardWriter(folder, split, num_images=100) as writer:
        for key, data in images.items():
            prints = fingerprint(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
            writer.add(key, data, image_id=key, width=1, height=1, fingerprint=prints)
    return Staged(Task("web", "web", "webdataset", folder.name, folder, CFG), f"{split}-00000")


@pytest.fixture
def embeddings(encoder, tmp_path) -> Embeddings:
    found = Embeddings.open(meaning(encoder), tmp_path / "kept")
    assert found
    return found


CHAIN = {  # by the hashes b_again is a copy of b, which is cropped too much to be one of a; by the encoder it is one at 0.9
    "a": encoded(photo("a")),
    "b": encoded(photo("a").crop((16, 12, 150, 112))),
    "b_again": encoded(photo("a").crop((16, 12, 150, 112)), 60),
    "other": encoded(photo("c")),
}


@pytest.mark.parametrize("then", ["mark", "drop"])
def test_what_the_hashes_joined_goes_where_its_first_goes(tmp_path, embeddings, then):
    """Over two shards. Nothing that the hashes found is lost, nor is it sought or counted anew."""
    shards = [
        staged(tmp_path / "0", {k: CHAIN[k] for k in ("a", "b")}),
        staged(tmp_path / "1", {k: CHAIN[k] for k in ("b_again", "other")}),
    ]
    near_copies.join(shards, "mark", 4)
    assert shards[0].same_as == {} and shards[1].same_as == {"b_again": "b"}
    by_meaning.join(shards, embeddings, then, 0.9)
    if then == "mark":
        assert shards[0].same_as == {"b": "a"} and shards[1].same_as == {"b_again": "a"}
        counts = shards[0].counts + shards[1].counts
        assert (counts["marked_near_copy"], counts["marked_near_copy_by_meaning"]) == (1, 1)
    else:
        reason, told = shards[0].dropped["b"]
        assert reason == "near_copy_by_meaning" and told.startswith("a near copy of a: the cosine of their embeddings is 0.9")
        assert shards[1].dropped == {
            "b_again": ("near_copy_by_meaning", "by its hashes a near copy of one that is a near copy of a"),
        }


def test_a_picture_without_an_embedding_is_no_copy_and_counted(tmp_path, embeddings, caplog):
    """Two black pictures, of which an encoder without biases makes zeros, as black is its mean."""
    for name, value in embeddings.embedder.model.named_parameters():
        if name.endswith("bias") or "token" in name or "position" in name:
            torch.nn.init.zeros_(value)
    embeddings.embedder.images.image_mean = [0.0] * 3
    black = encoded(Image.new("RGB", (40, 40)), kind="PNG")
    shard = staged(tmp_path / "0", {"a": black, "b": black, "c": encoded(photo("c"))})
    by_meaning.join([shard], embeddings, "drop", 0.9)
    assert not shard.dropped and shard.counts["missing_embedding"] == 2
    assert "2 pictures, as a, have an embedding of zeros: they are no copies by meaning" in caplog.text


def test_nan_stops_and_names_the_picture(tmp_path, embeddings):
    torch.nn.init.constant_(embeddings.embedder.model.layernorm.bias, torch.nan)
    with pytest.raises(ValueError, match=r"gives a \(and 3 more of 4 pictures\) an embedding with NaN or infinite numbers; try"):
        by_meaning.join([staged(tmp_path / "0", {**CHAIN})], embeddings, "drop", 0.9)
    assert not list((tmp_path / "kept").glob("*"))


def test_ingest_sets_copies_by_meaning_aside_and_keeps_what_the_encoder_made(tmp_path, encoder, monkeypatch):
    """Held-out copies, mirrored ones too, leave; of the crawl's the first stays; a broken picture costs itself; a rerun asks no model."""
    data = write_data(tmp_path / "data")
    for i in range(8, 16):  # all that is held out
        (data / f"clean/images/n{i}.jpg").write_bytes(encoded(photo("n9" if i < 13 else "n15")))
    crawl = {
        "leak": encoded(photo("n15"), 60),
        "mirror": encoded(ImageOps.mirror(photo("n9")), 60),
        "a": encoded(photo("a")),
        "copy": encoded(photo("a"), 80),
        "broken": encoded(photo("a"))[:400],
    }
    add_web(data, crawl)
    cfg = near(meaning=meaning(encoder, web="drop"))
    metrics = run(data, tmp_path, near_copies=cfg)
    aside = {r["key"]: (r["reason"], r["detail"].partition(":")[0]) for r in quarantine(tmp_path) if r["key"].removeprefix("web-") in crawl}
    assert aside == {
        "web-leak": ("heldout_near_copy_by_meaning", "a near copy of test-n13"),
        "web-mirror": ("heldout_near_copy_by_meaning", "a near copy of the mirror image of val-n8"),
        "web-copy": ("near_copy_by_meaning", "a near copy of web-a"),
        "web-broken": ("truncated", aside["web-broken"][1]),
    }
    assert metrics["rejected_heldout_near_copy_by_meaning"] == 2 and metrics["missing_embedding"] == 0
    assert metrics["rejected_near_copy_by_meaning"] == sum(r["reason"] == "near_copy_by_meaning" for r in quarantine(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert read_manifest(tmp_path / "shards")["embedded_by"] == load_embedder(cfg.meaning).identity
    assert "web-a" in {key for key, _ in pairs(tmp_path / "g0")}
    monkeypatch.setattr(Embedder, "vectors", lambda self, prepared: np.ones((len(prepared), 1)))  # all that it makes now is alike
    assert run(data, tmp_path, near_copies=cfg)["rejected_near_copy_by_meaning"] == metrics["rejected_near_copy_by_meaning"]


def test_another_content_of_the_folder_is_another_encoder(tmp_path, encoder):
    """What the first made is not taken for its own; nor is what another precision made."""
    shard = staged(tmp_path / "0", CHAIN)
    torch.manual_seed(1)
    other = save(tmp_path / "dinov2", transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=1)))
    opened = [Embeddings.open(meaning(folder), tmp_path / "kept") for folder in (encoder, other, encoder)]
    files = [found.of(shard) for found in opened]
    assert files[0] == files[2] != files[1]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 2


def test_meaning_alone_wants_no_hashes(encoder):
    assert not near(meaning=meaning(encoder)).look and NearCopiesConfig(**near().model_dump()).meaning is None
