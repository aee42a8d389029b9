"""A generation as a notebook sees it: every row, the kept ones, counts, pictures, and what is no generation."""

import numpy as np
import pyarrow as pa
import pytest

import blip_core
from blip_core.pictures.images import decode_rgb
from blip_core.tables.captions import SCHEMA, read_tables
from blip_core.tables.manifest import write_manifest
from blip_core.tables.stopped import write_stopped
from tests.support.archives import jpeg
from tests.support.reviews import write_generation, write_shards


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """g1 of twenty crawled pictures in two shards, and their shards."""
    root = tmp_path_factory.mktemp("artifacts")
    write_generation(root / "generations/g1", 20)
    rows = read_tables(root / "generations/g1").to_pylist()
    for shard in ("web-00000", "web-00001"):
        write_shards(root / shard, [r for r in rows if r["shard"] == shard], prefix="web")
    (root / "shards").mkdir()
    for shard in ("web-00000", "web-00001"):
        for suffix in ("tar", "index.parquet"):
            (root / shard / f"web-00000.{suffix}").rename(root / f"shards/{shard}.{suffix}")
    write_manifest(root / "shards")
    return root


@pytest.fixture
def generation(artifacts):
    return blip_core.open_generation(artifacts / "generations/g1")


def test_rows_are_those_of_the_tables(generation):
    whole = read_tables(generation.folder)
    assert pa.concat_tables(generation.tables()).equals(whole) and whole.column_names == [*SCHEMA.names, "shard"]
    assert generation.to_pandas(["text", "shard"]).to_dict("list") == whole.select(["text", "shard"]).to_pydict()
    assert generation.manifest["rule"]["score"] == "match"


def test_kept_is_a_view_of_what_training_may_see(generation):
    expected = [row["text"] for row in read_tables(generation.folder).to_pylist() if row["reason"] == "kept"]
    assert list(generation.kept().to_pandas(["text"])["text"]) == expected
    assert list(generation.kept().to_pandas(["text"]).columns) == ["text"]
    assert 0 < len(expected) < len(generation.to_pandas())


def test_counts_add_up(generation):
    counts, table = generation.counts(), generation.to_pandas()
    assert counts["human"] == {"kept": 2} and set(counts["synthetic"]) == {"kept", "below_threshold"}
    for source, reasons in counts.items():
        for reason, number in reasons.items():
            assert number == len(table[(table["source"] == source) & (table["reason"] == reason)])
    assert sum(n for reasons in counts.values() for n in reasons.values()) == len(table)
    assert all(set(reasons) == {"kept"} for reasons in generation.kept().counts().values())


def test_a_picture_is_found_in_its_shard_and_its_texts_with_it(generation):
    """The pictures have a colour each, so that a wrong one shows."""
    for key in ("web-000000003", "web-000000004"):
        assert np.array_equal(np.asarray(generation.picture(key)), decode_rgb(jpeg(key)))
        assert [row["text"].split()[-1] for row in generation.texts(key)] == [key[-1]] * 3
        assert all(row["reason"] == "kept" for row in generation.kept().texts(key))
    dropped = next(key for key in generation.to_pandas()["key"] if not generation.kept().texts(key))
    assert generation.kept().picture(dropped).size == (40, 36)
    with pytest.raises(ValueError, match="holds no picture 'web-3'; did you mean web-000000003?"):
        generation.picture("web-3")


def test_the_rule_is_told_in_words(ingested):
    g0 = blip_core.open_generation(ingested / "generations/g0")
    with pytest.raises(ValueError, match="names no rule"):
        g0.explain(g0.to_pandas(["key"])["key"][0])


def test_the_heldout_set_opens_too(ingested):
    heldout = blip_core.open_generation(ingested / "heldout")
    key = heldout.to_pandas(["key"])["key"][0]
    assert heldout.shards == ingested / "shards" and heldout.picture(key).mode == "RGB"


def test_shards_that_lie_elsewhere_are_named(artifacts, tmp_path):
    write_generation(tmp_path / "deep/below/g1", 4)
    alone = blip_core.open_generation(tmp_path / "deep/below/g1")
    with pytest.raises(ValueError, match="name it: open_generation"):
        alone.picture("web-000000001")
    found = blip_core.open_generation(alone.folder, shards=artifacts / "shards")
    assert found.picture("web-000000001").size == (40, 36)


def test_what_is_no_generation_is_told(tmp_path):
    with pytest.raises(ValueError, match="g9: no such folder; expected a generation"):
        blip_core.open_generation(tmp_path / "g9")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="no manifest, so .*unfinished is unfinished"):
        blip_core.open_generation(tmp_path / "unfinished")
    write_stopped("on val no gain of g1 over g0", tmp_path / "g2")
    with pytest.raises(ValueError, match="the rounds stopped before it: on val no gain of g1 over g0"):
        blip_core.open_generation(tmp_path / "g2")
    write_generation(tmp_path / "g3", 4)
    (tmp_path / "g3/web-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"web-00000.parquet: expected \d+ bytes by the manifest, got None"):
        blip_core.open_generation(tmp_path / "g3")


def test_a_column_that_is_not_there_is_told(generation):
    with pytest.raises(ValueError, match="no column caption; there are key, image_id, text"):
        generation.to_pandas(["caption"])
