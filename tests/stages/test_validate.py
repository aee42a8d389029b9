"""The contract of g0 and the held-out splits: each fault fails the check that is named for it, and leaves no gate file."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_core.capfilt.controls import plant
from blip_core.config.intake import ValidateConfig
from blip_core.stages.validate import validate
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.gates import require_gate
from blip_core.tables.heldout import heldout_halves
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.tables.shards import ShardWriter
from tests.support.small import small_params

LIMITS = {"min_images": 4, "min_heldout_images": 2, "max_empty": 0.1, "max_duplicate": 0.5}
NUM_IMAGES = {"web": 8, "train": 4, "val": 2, "test": 2}
JPEG = b"\xff\xd8"  # how the bytes of one begin: no stage of these tests decodes a picture


def texts(part: str, count: int) -> list[dict]:
    """Two human texts or one crawled per image; the picture of key web-3 is of identity pic-web-3."""
    sources = {"web": ["web"]}.get(part, ["human", "human"])
    return [
        {"key": f"{part}-{i}", "image_id": f"pic-{part}-{i}", "text": f"text {n} of {i}", "source": s, "candidate": n, "reason": "kept"}
        for i in range(count)
        for n, s in enumerate(sources)
    ]


class World:
    """g0, held-out splits and shards on disk, from rows that a test may spoil first."""

    def __init__(self, root: Path):
        self.root = root
        self.rows = {part: texts(part, n) for part, n in NUM_IMAGES.items()}
        self.images = {part: [(f"{part}-{i}", f"pic-{part}-{i}") for i in range(n)] for part, n in NUM_IMAGES.items()}
        self.gate, self.metrics, self.docs = root / "gates" / "g0.json", root / "metrics.json", root / "docs" / "validate"
        self.decision = root / "decisions" / "g0.json"

    def write(self, per_shard: int = 100) -> "World":
        for folder, parts in (("g0", ("web", "train")), ("heldout", ("val", "test"))):
            for part in parts:
                shard = {key: i // per_shard for i, (key, _) in enumerate(self.images[part])}
                for n in {*shard.values(), 0}:
                    own = [r for r in self.rows[part] if shard.get(r["key"], 0) == n]
                    write_table(caption_table(own), self.root / folder / f"{part}-{n:05d}.parquet")
            write_manifest(self.root / folder)
        for part, images in self.images.items():
            with ShardWriter(self.root / "shards", part, num_images=per_shard) as writer:
                for key, image_id in images:
                    writer.add(key, JPEG + image_id.encode(), image_id=image_id, width=8, height=8)
        write_manifest(self.root / "shards")
        return self

    def run(self, *, min_controls: int = 1, **changes) -> dict:
        cfg, params = ValidateConfig(**(LIMITS | changes)), small_params()
        outs = (self.gate, self.decision, self.metrics, self.docs)
        sections = {"gate_cfg": params.gate.model_copy(update={"min_controls": min_controls}), "score_cfg": params.score}
        validate(self.root / "g0", self.root / "heldout", self.root / "shards", *outs, cfg=cfg, **sections)
        return json.loads(self.gate.read_text())

    def failure(self, **changes) -> str:
        """The message of a run that must fail, without a gate file, with metrics."""
        self.gate.parent.mkdir(exist_ok=True)
        self.gate.write_text('{"passed": true}')  # of an earlier, good run
        with pytest.raises(ValueError) as e:
            self.run(**changes)
        assert not self.gate.exists()
        assert json.loads(self.metrics.read_text())["checks_failed"] > 0
        return str(e.value)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def failed(message: str) -> set[str]:
    return set(re.findall(r"^  (\w+): ", message, re.M))


def test_a_good_generation_passes_and_the_gate_file_names_it(world):
    found = world.write().run()
    assert found["passed"] is True and found["generation"] == content_hash(world.root / "g0")
    assert all(c["passed"] is True and {"name", "observed", "limit"} <= set(c) for c in found["checks"])
    names = {c["name"] for c in found["checks"]}
    assert {"images_web", "key_source_candidate", "heldout_in_training", "duplicate_share_web", "texts_rows"} <= names
    metrics = json.loads(world.metrics.read_text())
    assert (metrics["images_web"], metrics["images_human"], metrics["checks_failed"]) == (8, 4, 0)
    assert (world.docs / "index.html").exists()
    require_gate(world.gate, world.root / "g0")


def test_a_generation_altered_after_its_gate_does_not_pass_for_it(world):
    world.write().run()
    path = world.root / "g0" / "web-00000.parquet"
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # same size: only the content tells
    path.write_bytes(data)
    with pytest.raises(ValueError, match="passed generation .* but .* now is"):
        require_gate(world.gate, world.root / "g0")
    assert "altered since the manifest was written" in world.failure()


def test_too_few_controls_are_told_before_anything_trains(world):
    """As many true pairs as score will plant."""
    world.write()
    planted = plant(heldout_halves(world.root / "heldout")[1], per_image=small_params().score.controls_per_image, seed=0)
    num_true = planted["truth"].to_pylist().count(True)
    assert num_true > 0 and world.run(min_controls=num_true)["passed"]
    said = world.failure(min_controls=num_true + 1)
    assert failed(said) == {"controls_true"} and f"at least {num_true + 1}" in said and "gate.min_controls" in said


def spoil(part: str, place: int, **changes):
    return lambda world: world.rows[part][place].update(changes)


FAULTS = {
    "text_known": spoil("web", 2, text=None),
    "image_id_form": spoil("web", 2, image_id=None),
    "key_form": spoil("web", 2, key="web-2.jpg"),
    "key_source_candidate": lambda w: w.rows["web"].append(dict(w.rows["web"][0], text="another")),
    "place": spoil("train", 0, source="web"),
    "reason": spoil("web", 0, reason="below_threshold"),
    "empty_share": lambda w: [r.update(text="---") for r in w.rows["web"]],
    "images_web": lambda w: [w.rows["web"].__delitem__(slice(3, None)), w.images["web"].__delitem__(slice(3, None))],
    "images_human": lambda w: [w.rows["train"].__delitem__(slice(4, None)), w.images["train"].__delitem__(slice(2, None))],
    "images_test": lambda w: [w.rows["test"].__delitem__(slice(2, None)), w.images["test"].__delitem__(slice(1, None))],
    "images_without_text": lambda w: w.rows["web"].pop(),
    "texts_without_image": lambda w: w.images["web"].pop(),
    "keys_repeated": lambda w: w.images["train"].append(("web-0", "pic-web-0")),
    "heldout_in_training": lambda w: [r.update(image_id="pic-train-0") for r in w.rows["test"][:2]],
    "duplicate_share_web": lambda w: [r.update(image_id="same") for r in w.rows["web"][:5]],
    "candidate_range": spoil("web", 0, candidate=None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_its_check(world, name):
    FAULTS[name](world)
    assert name in failed(world.write().failure())


ACROSS = [
    lambda w: None,
    lambda w: [r.update(image_id="same") for r in w.rows["web"][::3]],
    lambda w: w.images["train"].append(("web-7", "pic-web-7")),
    lambda w: [r.update(image_id="pic-web-7") for r in w.rows["test"][:2]],
    lambda w: w.rows["train"][7].update(key="train-0", candidate=0),
    lambda w: [r.update(text="---", source="robot") for r in w.rows["web"][::2]],
]


@pytest.mark.parametrize("spoil", ACROSS)
def test_what_is_found_does_not_depend_on_the_cut_into_shards(tmp_path, spoil):
    """Counts and metrics are those of a single shard, also where two rows clash that stand in different ones."""
    found = []
    for per_shard in (100, 1):
        world = World(tmp_path / str(per_shard))
        spoil(world)
        world.write(per_shard)
        try:
            told = [(c["name"], c["observed"]) for c in world.run()["checks"]]
        except ValueError as e:
            told = re.findall(r"^  (\w+): ([\d.]+), expected", str(e), re.M)
        found.append((told, json.loads(world.metrics.read_text())))
    assert found[0] == found[1] and found[0][0]


def test_a_held_out_picture_under_another_name_is_counted(world):
    """Equal bytes of different identity are reported, not refused: real collections hold a few and nobody can take them out."""
    world.images["web"][0] = ("web-0", "pic-web-0")
    world.write()
    with ShardWriter(world.root / "shards", "test", num_images=100) as writer:
        for key, image_id in world.images["test"]:
            writer.add(key, JPEG + (b"pic-web-0" if key == "test-0" else b"other"), image_id=image_id, width=8, height=8)
    write_manifest(world.root / "shards")
    world.run()
    assert json.loads(world.metrics.read_text())["heldout_copies_in_training"] == 1


def test_a_text_that_a_screen_dropped_passes_but_does_not_count(world):
    for row in world.rows["web"][:5]:
        row.update(reason="boilerplate", boilerplate=True)
    world.write()
    assert failed(world.failure()) == {"images_web"}
    world.run(min_images=3)


def test_limits_of_the_configuration_decide(world):
    for row in world.rows["web"][:2]:
        row["image_id"] = "same"
    world.images["web"][:2] = [("web-0", "same"), ("web-1", "same")]
    world.write()
    world.run(max_duplicate=0.25)
    assert json.loads(world.metrics.read_text())["duplicate_share_web"] == 0.25
    assert failed(world.failure(max_duplicate=0.24)) == {"duplicate_share_web"}
    assert failed(world.failure(min_images=9)) == {"images_web", "images_human"}


def test_an_empty_generation_fails(world):
    world.rows.update(web=[], train=[])
    message = world.write().failure()
    assert {"images_web", "images_human", "images_without_text"} <= failed(message)
    world.rows.update(val=[], test=[])
    assert "texts_rows" in failed(world.write().failure())


def test_the_message_says_what_was_found_what_is_allowed_and_where_to_look(world):
    world.rows["web"][2]["source"] = "robot"
    lines = world.write().failure(min_heldout_images=3).splitlines()
    assert lines[0].startswith(f"{world.root / 'g0'} does not keep its contract: 4 of ")
    assert "  images_val: 2, expected at least 3 (held-out images (val) with a kept text)" in lines
    place = "in web-00000.parquet, row 2, key web-2"
    assert f"  source: 1, expected 0 rows (rows whose source is none of web, human, synthetic, fused; e.g. robot {place})" in lines
    assert any(line.startswith("  place: 1, expected 0 rows") and line.endswith(f"('generation/web', 'robot') {place})") for line in lines)
    assert "section validate of params.yaml" in lines[-2]
    assert lines[-1] == f"Data Docs: {world.docs / 'index.html'}"
    assert "held-out images (val) with a kept text" in (world.docs / "index.html").read_text()


def test_a_column_of_another_type_fails_and_is_named(world):
    world.write()
    path = world.root / "heldout" / "test-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("itm"), "itm", pa.nulls(table.num_rows, pa.float32())), path)
    write_manifest(world.root / "heldout")
    message = world.failure()
    assert "heldout/test-00000.parquet: column itm is float, expected double" in message
    assert "column itm is float, expected double" in (world.docs / "index.html").read_text(), "not the page of an earlier run"


def test_an_unfinished_generation_leaves_no_gate_file(world):
    world.write().run()
    (world.root / "g0" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest, so .*g0 is unfinished"):
        world.run()
    assert not world.gate.exists()
