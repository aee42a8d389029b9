"""Batches are a pure function of rows, seed and step: the same for any number of workers and processes, exact after a resume."""

import multiprocessing

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch

from blip_core.compute.pixels import load_pixels, normalize, read_picture, read_resized, resize
from blip_core.config.training import AugmentConfig, RandAugmentConfig
from blip_core.files.content import hash64
from blip_core.tables.manifest import write_manifest
from blip_core.tables.shards import ShardImages, ShardWriter
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.training.augment import NUM_DRAWS, augment, crop_box
from blip_core.training.batches import Batches, Rows, batch_shares, pick


def rows(**sizes: int) -> Rows:
    names = [f"{source}-{i}" for source, size in sizes.items() for i in range(size)]
    source = np.array([n.split("-")[0] for n in names])
    by_source = {s: np.flatnonzero(source == s) for s in sizes}
    return Rows(*3 * [pa.array(names)], np.array([hash64(n) for n in names]), by_source)


def test_each_row_comes_once_per_pass_and_shares_are_kept():
    table, shares = rows(web=30, human=12), {"web": 0.75, "human": 0.25}
    batches = [pick(table, shares, step=s, batch_size=8, seed=0) for s in range(10)]
    for batch in batches:
        assert sum(i < 30 for i in batch) == 6 and len(batch) == 8
    web = [i for batch in batches for i in sorted(batch) if i < 30]
    assert sorted(web[:30]) == list(range(30)) and sorted(web[30:]) == list(range(30))
    human = [i for batch in batches[:6] for i in batch if i >= 30]
    assert sorted(human) == list(range(30, 42))


def test_picking_depends_on_seed_and_step_alone():
    table, shares = rows(web=30, human=12), {"web": 0.75, "human": 0.25}
    assert np.array_equal(pick(table, shares, step=7, batch_size=8, seed=3), pick(table, shares, step=7, batch_size=8, seed=3))
    assert not np.array_equal(pick(table, shares, step=7, batch_size=8, seed=3), pick(table, shares, step=7, batch_size=8, seed=4))


@pytest.mark.parametrize(
    "sources,expected",
    [
        (("human", "web", "synthetic"), {"human": 0.4, "web": 0.36, "synthetic": 0.24}),
        (("human", "web"), {"human": 0.4, "web": 0.6}),
        (("human",), {"human": 1.0}),
        (("web", "synthetic"), {"web": 0.6, "synthetic": 0.4}),
    ],
)
def test_a_missing_source_leaves_its_share(sources, expected):
    assert batch_shares(rows(**dict.fromkeys(sources, 3)), human=0.4, synthetic=0.4) == pytest.approx(expected)


@pytest.fixture(scope="module")
def batches(ingested, params):
    table = Rows.of(ingested / "generations/g0", ["human", "web"])
    tokenizer = load_tokenizer(ingested / "tokenizer.json")
    shares = batch_shares(table, human=0.4, synthetic=0.4)
    return Batches(
        table, ShardImages(ingested / "shards"), tokenizer, shares=shares, cfg=params.pretrain.optim, image_size=48, prompt="", seed=0
    )


def test_text_and_image_of_a_pair_belong_together(batches, ingested):
    """Each batch row's image id and text are found together in a row of the generation."""
    table, batch = batches.rows, batches[3]
    pairs = {(int(i), hash64(t)) for i, t in zip(table.image_id, table.text.to_pylist(), strict=True)}
    assert all((int(i), int(t)) in pairs for i, t in zip(batch.image_ids, batch.text_ids, strict=True))


def test_two_processes_share_out_the_global_batch(batches):
    whole = batches[2]
    parts = []
    for rank in (0, 1):
        batches.rank, batches.world_size = rank, 2
        parts.append(batches[2])
    batches.rank, batches.world_size = 0, 1
    assert torch.equal(torch.cat([p.pixels for p in parts]), whole.pixels)
    assert torch.equal(torch.cat([p.image_ids for p in parts]), whole.image_ids)


def test_micro_batches_hold_the_step_and_meet_the_same_pairs_on_any_number_of_processes(batches):
    """Step 2 in four micro-batches: on one process, and shared out among two."""
    whole, cfg = batches[2], batches.cfg
    batches.cfg = cfg.model_copy(update={"accumulate": 4})
    parts = [batches[8 + i] for i in range(4)]
    shared = []
    for i in range(4):
        for rank in (0, 1):
            batches.rank, batches.world_size = rank, 2
            shared.append((i, batches[8 + i]))
    batches.cfg, batches.rank, batches.world_size = cfg, 0, 1
    assert torch.equal(torch.cat([p.pixels for p in parts]), whole.pixels) and sum((p.keys for p in parts), ()) == whole.keys
    assert [(p.step, p.part, p.parts, p.progress) for p in parts] == [(2, i, 4, whole.progress) for i in range(4)]
    for i, part in enumerate(parts):
        assert part.keys == sum((p.keys for place, p in shared if place == i), ())


def test_workers_of_null_are_those_that_the_training_leaves(batches, monkeypatch):
    monkeypatch.setenv("BLIP_CORES", "3")
    monkeypatch.setattr(batches, "cfg", batches.cfg.model_copy(update={"threads": 1, "workers": None}))
    loader = batches.loader(0)
    next(loader)
    assert len(multiprocessing.active_children()) == 2


@pytest.mark.parametrize(("brightness", "randaugment"), [(0.0, RandAugmentConfig(operations=2, magnitude=5)), (0.1, None)])
def test_workers_change_nothing(batches, monkeypatch, brightness, randaugment):
    """Whether pixels travel as bytes or, once their brightness was changed, as floats. Read from the middle, as after a resume."""
    augmentation = AugmentConfig(crop=(0.5, 1.0), shift=1, brightness=brightness, flip=True, randaugment=randaugment)
    cfg = batches.cfg.model_copy(update={"augment": augmentation})
    monkeypatch.setattr(batches, "cfg", cfg)
    alone = [batches[place] for place in range(9, cfg.steps)]
    monkeypatch.setattr(batches, "cfg", cfg.model_copy(update={"workers": 2}))
    beside = list(batches.loader(9))
    assert len(alone) == len(beside) == cfg.steps - 9
    for a, b in zip(alone, beside, strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.ids, b.ids) and a.keys == b.keys
    assert batches.read(9).pixels.dtype == (torch.float32 if brightness else torch.uint8)


def test_a_view_is_that_of_its_own_picture(batches, monkeypatch):
    """Each row of a batch is the augmented picture of its key."""
    monkeypatch.setattr(
        batches,
        "cfg",
        batches.cfg.model_copy(update={"augment": AugmentConfig(crop=(1, 1), shift=0, brightness=0, flip=False, randaugment=None)}),
    )
    batch, shard_of = batches[1], dict(zip(batches.rows.key.to_pylist(), batches.rows.shard.to_pylist(), strict=True))
    pictures = [read_picture(batches.images, shard_of[key], key) for key in batch.keys]
    assert torch.equal(batch.pixels, load_pixels(pictures, 48))
    assert len({p.tobytes() for p in pictures}) == len(pictures)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    with ShardWriter(tmp_path, "web", num_images=2) as writer:
        writer.add("good", simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)), image_id="a", width=8, height=8)
        writer.add("bad", b"\xff\xd8 no JPEG", image_id="b", width=8, height=8)
        writer.add("bad-png", b"\x89PNG\r\n\x1a\n no PNG", image_id="c", width=8, height=8)
    write_manifest(tmp_path)
    images = ShardImages(tmp_path)
    assert read_resized(images, "web-00000", "good", 4).shape == (4, 4, 3)
    for key in ("bad", "bad-png"):
        with pytest.raises(ValueError, match=f"web-0000[01].tar: image '{key}' can't be decoded .*; ingest could"):
            read_picture(images, "web-00000" if key == "bad" else "web-00001", key)
    with pytest.raises(ValueError, match="no image 'none' among its 2"):
        read_picture(images, "web-00000", "none")


def test_no_augmentation_is_the_picture_itself():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cfg = AugmentConfig(crop=(1, 1), shift=0, brightness=0, flip=False, randaugment=None)
    assert torch.equal(augment(image, 32, cfg, np.full(NUM_DRAWS, 0.3)), torch.from_numpy(image).permute(2, 0, 1))


def test_crops_stay_inside_and_in_their_area():
    draws = np.random.default_rng(0).random((500, 4))
    for draw in draws:
        top, left, h, w = crop_box(60, 100, (0.2, 1.0), draw)
        assert 0 <= top <= 60 - h and 0 <= left <= 100 - w
        assert h * w <= 6000 and h * w >= 0.1 * 6000


def test_shift_moves_by_whole_pixels_within_bounds():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[4, 4] = 255
    cfg = AugmentConfig(crop=(1, 1), shift=2, brightness=0, flip=False, randaugment=None)
    places = {
        tuple((augment(image, 8, cfg, draw)[0] == 255).nonzero()[0].tolist()) for draw in np.random.default_rng(0).random((300, NUM_DRAWS))
    }
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_resize_follows_pillow():
    """Within one grey level of Pillow's bicubic, the resize that the public BLIP uses; of a part of a picture as well."""
    from PIL import Image

    whole = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for image in (whole, whole[3:40, 5:60]):
        ours = resize(image, 24).permute(1, 2, 0).numpy().astype(int)
        theirs = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(ours - theirs).max() <= 1


def test_pixels_resized_ahead_are_the_same():
    """A thread may resize while the model works: what it hands over is not resized again."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ahead = resize(image, 24).permute(1, 2, 0).numpy()
    assert torch.equal(load_pixels([ahead], 24), load_pixels([image], 24))


def test_pixels_are_normalised_as_clip_has_it():
    white = normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(
        white[0, :, 0, 0], (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    )


def test_unknown_sources_are_an_error(ingested):
    with pytest.raises(ValueError, match="no kept text of the sources"):
        Rows.of(ingested / "generations/g0", ["synthetic"])
