"""A person asks what happened to an image, and is told."""

import pyarrow as pa
import pytest

from blip_core.explain.history import hint, history
from blip_core.intake.units import QUARANTINE_SCHEMA, quarantine_row
from blip_core.metadata.folder import ASIDE
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import write_manifest


@pytest.fixture
def artifacts(tmp_path):
    web = {"key": "web-1", "image_id": "i", "text": "cheap flights", "source": "web", "candidate": 0, "reason": "kept"}
    made = {"key": "web-1", "image_id": "i", "text": "a red boat", "source": "synthetic", "candidate": 0, "round": "r1", "model": "c0ffee"}
    web |= {"boilerplate": True, "file_name": False, "language": "en"}
    made |= {"sampler": "nucleus p=0.9", "seed": 7, "filter": "f117e5", "reason": "kept", "match": 0.9312, "itm": 0.8, "itc": 0.41}
    dropped = {**web, "reason": "below_threshold", "match": 0.02, "itm": 0.01, "itc": -0.2, "filter": "f117e5"}
    for name, rows in (("g0", [web]), ("g1", [dropped, made])):
        write_table(caption_table(rows), tmp_path / "generations" / name / "web-00000.parquet")
        write_manifest(tmp_path / "generations" / name)
    return tmp_path


def test_each_text_is_told_with_scores_and_fate(artifacts):
    told = history("web-1", artifacts)
    assert told.index("g0:") < told.index("g1:")
    assert "kept: 'cheap flights', web; screens: boilerplate, en\n" in told
    assert "below_threshold: 'cheap flights', web; match 0.020, itm 0.010, itc -0.200 by filter f117e5; screens: boilerplate, en" in told
    assert "kept: 'a red boat', synthetic r1#0 (nucleus p=0.9, captioner c0ffee, seed 7); match 0.931" in told


def test_what_its_source_says_is_told(artifacts):
    row = {"key": "web-1", "url": "http://a/1.jpg", "licence": None, "punsafe": float("nan"), "exif": "x" * 300, "by\x1b[2J": "me\x07\n"}
    write_table(pa.Table.from_pylist([row]), artifacts / "metadata/web-00000.parquet")
    write_table(pa.Table.from_pylist([{**row, "key": "web-2", "url": "http://a/2.jpg"}]), artifacts / "metadata" / ASIDE)
    write_manifest(artifacts / "metadata")
    told = history("web-1", artifacts)
    assert f"its source says:\n  url: http://a/1.jpg\n  punsafe: NaN\n  exif: {'x' * 200}… (300 characters)" in told
    assert "\n  by [2J: me" in told and told.replace("\n", "").isprintable()
    assert "licence" not in told and "url: http://a/2.jpg" in history("web-2", artifacts)


def test_a_held_out_image_has_its_texts(artifacts):
    row = {"key": "val-7", "image_id": "v", "text": "a dog", "source": "human", "candidate": 0, "reason": "kept"}
    write_table(caption_table([row]), artifacts / "heldout/val-00000.parquet")
    write_manifest(artifacts / "heldout")
    assert history("val-7", artifacts) == "heldout:\n  kept: 'a dog', human"
    with pytest.raises(ValueError, match=r"did you mean val-7\?"):
        history("val-0007", artifacts)


def test_what_was_set_aside_is_of_this_image(artifacts):
    """Where splits are dealt, an unusable row of the clean set has none, so that its key may be the number of a web picture too."""
    rows = [quarantine_row("clean", "1", "clean/a.json:1", "too_small", ""), quarantine_row("web", "web-7", "web/0.tar", "truncated", "")]
    write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA), artifacts / "quarantine.parquet")
    assert "set aside" not in history("web-1", artifacts)
    assert history("train-1", artifacts) == "set aside at ingest: too_small (no detail), from clean/a.json:1"
    assert history("web-7", artifacts) == "set aside at ingest: truncated (no detail), from web/0.tar"


def test_an_unknown_key_and_an_empty_folder_are_said_plainly(artifacts, tmp_path):
    with pytest.raises(ValueError, match="'web-2' is in no generation, not held out and not in quarantine; the nearest are web-1"):
        history("web-2", artifacts)
    for wrong in ("1", "web-0001", "WEB-1"):
        with pytest.raises(ValueError, match=r"; did you mean web-1\?"):
            history(wrong, artifacts)
    with pytest.raises(ValueError, match="keys read like web-1"):
        history("cat.jpg", artifacts)
    with pytest.raises(ValueError, match="holds no generation; run the chain"):
        history("web-1", tmp_path / "nowhere")


def test_near_keys_are_of_the_same_kind(tmp_path):
    """A web picture that was set aside leaves a gap; that a picture of train has its number is no help."""
    keys = {"train-00000": [3, 1], "web-00000": [1, 9, 5], "web-00001": [40, 30, 3000]}
    for name, numbers in keys.items():
        rows = [{"key": f"{name.split('-')[0]}-{n:09d}", "text": "a", "source": "web"} for n in numbers]
        write_table(caption_table(rows), tmp_path / f"{name}.parquet")
    tables = sorted(tmp_path.glob("*.parquet"))
    assert hint("web-3", tables) == "the nearest are web-000000001, web-000000005, web-000000009"
    assert hint("web-28", tables) == "the nearest are web-000000030, web-000000040, web-000000009"
    assert hint("web-30", tables) == hint("WEB-00030", tables) == "did you mean web-000000030?"
    assert hint("train-3", tables) == hint("3", tables) == "did you mean train-000000003?"
    assert hint("1", tables) == "did you mean train-000000001 or web-000000001?"
    assert hint("a picture", tables) == hint("cat-1", tables) == "keys read like train-000000003, train-000000001, web-000000001"
