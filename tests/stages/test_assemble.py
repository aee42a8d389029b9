"""The rule on tables whose texts say what must become of them, and the stage on folders."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest

import blip_core.stages.assemble as stage
from blip_core.config.selection import AssembleConfig
from blip_core.files.content import sha256_file
from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
from blip_core.selection.choice import Rule, choose
from blip_core.tables.captions import SCHEMA, SCREENS, caption_table, read_table, read_tables, write_table
from blip_core.tables.manifest import content_hash, read_manifest, write_manifest

NONE = pa.array([], pa.string())
SCREENS_OFF = {**dict.fromkeys(SCREENS, "off"), "languages": None, "min_confidence": 0.5}


def config(**changes) -> AssembleConfig:
    rule = {"score": "match", "threshold": {"web": 0.5, "synthetic": 0.5}, "sources": ("web", "synthetic")}
    shared = {"screens": SCREENS_OFF, "max_repeat": 3, "max_share": 0.3, "votes": 1, "keep_best": None}
    return AssembleConfig(**rule | shared | changes)


def as_it_stands(folder: Path) -> Path:
    """A calibration that takes the ITM head at its word."""
    out = folder / "calibration.json"
    curve = {"precision": [0.5, 1.0], "recall": [1.0, 0.4], "threshold": [0.1, 0.9]}
    found = Calibrated("f", "tuned", Calibration(itm_logit=1.0, itc=0.0, bias=0.0), 0.75)
    write_calibrations([found], out, facts={"f": {"curve": curve}})
    return out


def assemble(generation: Path, scores: Path, out: Path, out_metrics: Path, *, cfg: AssembleConfig) -> None:
    stage.assemble(generation, scores, as_it_stands(scores.parent), out, out_metrics, cfg=cfg)


def row(key: str, text: str, source: str, score: float | None = 0.9, *, candidate: int = 0, reason: str = "") -> dict:
    scores = {} if source == "human" else {"itm": score, "itc": score, "match": score, "filter": "f"}
    fresh = {"round": "r1", "model": "m", "sampler": "beam 3", "seed": 0} if source == "synthetic" else {}
    identity = {"key": key, "image_id": f"id-{key}", "source": source, "candidate": candidate}
    return {**identity, "text": text, "reason": reason, **scores, **fresh}


def reasons(rows: list[dict], cfg: AssembleConfig | None = None, common: pa.Array = NONE) -> list[str]:
    return choose(caption_table(rows), overused=common, rule=Rule(cfg or config()))["reason"].to_pylist()


def seal(folder: Path, tables: dict[str, list[dict] | pa.Table], **facts) -> Path:
    for name, rows in tables.items():
        write_table(rows if isinstance(rows, pa.Table) else caption_table(rows), folder / f"{name}.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, **facts)
    return folder


def as_applied(cfg: AssembleConfig | None = None) -> dict:
    """The rule as a manifest keeps it, of the filter of `row`."""
    cfg = cfg or config()
    return Rule(cfg, {"f": Calibrated("f", "tuned", Calibration(itm_logit=1.0, itc=0.0, bias=0.0), 0.75)}).described()


def small_world(tmp_path: Path) -> tuple[Path, Path]:
    """g0 and scores of four crawled images in two shards and one human image; texts tell what becomes of them."""
    base = {
        "web-00000": [row("web-1", "kept one", "web", reason="kept"), row("web-2", "low two", "web", reason="kept")],
        "web-00001": [row("web-3", "low three", "web", reason="kept"), row("web-4", "kept four", "web", reason="kept")],
        "train-00000": [
            row("train-1", "a human text", "human", reason="kept"),
            row("train-1", "another", "human", candidate=1, reason="kept"),
        ],
    }
    scored = {
        "web-00000": [
            row("web-1", "kept one", "web", 0.8),
            row("web-1", "KEPT, one!", "synthetic", 0.7),
            row("web-2", "low two", "web", 0.1),
            row("web-2", "kept anew", "synthetic", 0.9),
        ],
        "web-00001": [
            row("web-3", "low three", "web", 0.2),
            row("web-3", "dog dog dog", "synthetic", 0.9),
            row("web-4", "kept four", "web", 0.5),
            row("web-4", "low synthetic", "synthetic", 0.49),
        ],
        "controls": [row("val-1", "a control is no candidate", "human")],
    }
    return seal(tmp_path / "g0", base), seal(tmp_path / "scores", scored)


def test_each_reason():
    rows = [
        row("web-1", "fine", "web", 0.5),
        row("web-1", "low", "web", 0.49, candidate=1),
        row("web-1", "fine too", "synthetic", 0.6),
        row("web-2", "a dog a dog a dog", "synthetic", 0.9),
        row("web-2", "", "synthetic", 0.9, candidate=1),
        row("web-2", "common", "synthetic", 0.9, candidate=2),
        row("web-2", "common", "web", 0.9),
        row("web-2", "a dog next to a", "synthetic", 0.9, candidate=3) | {"truncated": True},
    ]
    expected = ["kept", "below_threshold", "kept", "loop", "empty", "overused", "kept", "truncated"]
    assert reasons(rows, common=pa.array(["common"])) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I’m sorry, but I can’t assist with this request.",
        "Sorry, I cannot describe people in images.",
        "I apologize for the confusion, but I am unable to view it",
        "Unfortunately, we are not able to identify the person.",
        "As an AI language model, I do not see pictures.",
        "I don't have access to the image.",
        "Je suis désolé, je ne peux pas.",
        "Lo siento, no puedo ayudar con eso.",
        "抱歉,我无法描述这张图片。",
    ],
)
def test_a_refusal_is_no_caption(text):
    assert reasons([row("web-1", text, "synthetic")]) == ["refusal"]
    assert reasons([row("web-1", text, "web")]) == ["kept"]


@pytest.mark.parametrize(
    "text", ["a sorry man who cannot swim", "a sign that says I can't", "unfortunate dog", "Aida as an actress", "i canned beans"]
)
def test_a_caption_with_such_words_is_no_refusal(text):
    assert reasons([row("web-1", text, "synthetic")]) == ["kept"]


def test_a_text_cut_off_while_its_captioner_thought_is_truncated():
    assert reasons([row("web-1", "", "synthetic") | {"truncated": True}]) == ["truncated"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("dog dog dog", "loop"),
        ("a dog, dog, Dog!", "loop"),
        ("red car red car red car", "loop"),
        ("a cat on a mat, a cat on a mat, a cat on a mat", "kept"),  # five words
        ("cat on a mat cat on a mat cat on a mat", "loop"),
        ("dog dog", "kept"),
        ("red red redder", "kept"),
        ("a dog and a dog and a cat", "kept"),
        ("... !", "marks"),
        ("!!!!!!!!", "marks"),
        (" ", "empty"),
        ("", "empty"),
        ("猫", "kept"),
    ],
)
def test_repetition_is_of_one_to_four_whole_words(text, reason):
    assert reasons([row("web-1", text, "synthetic")]) == [reason]
    assert reasons([row("web-1", text, "web")]) == ["kept"]  # a web text is judged by the filter alone


def test_the_better_of_equal_texts_stays_and_only_within_an_image():
    rows = [
        row("web-1", "a cat", "web", 0.6),
        row("web-1", "A  cat.", "synthetic", 0.9),
        row("web-1", "a cat", "synthetic", 0.7, candidate=1),
        row("web-2", "a cat", "web", 0.6),
    ]
    assert reasons(rows) == ["duplicate", "kept", "duplicate", "kept"]
    rows[1]["match"] = 0.6  # a tie: the web text stands first
    rows[2]["match"] = 0.6
    assert reasons(rows) == ["kept", "duplicate", "duplicate", "kept"]


def test_a_text_that_is_out_itself_makes_no_duplicate():
    rows = [row("web-1", "a cat", "web", 0.6), row("web-1", "a cat", "synthetic", 0.65)]
    assert reasons(rows, config(threshold={"web": 0.5, "synthetic": 0.7})) == ["kept", "below_threshold"]
    assert reasons(rows, config(sources=("web",))) == ["kept", "source_off"]


def test_the_decision_does_not_depend_on_the_order_of_rows():
    texts = [("a cat" if i % 3 else f"text {i}", ("web", "synthetic")[i % 2], (i * 7 % 10) / 10) for i in range(60)]
    rows = [row(f"web-{i % 5}", *text, candidate=i) for i, text in enumerate(texts)]
    forward = dict(zip([(r["key"], r["candidate"]) for r in rows], reasons(rows), strict=True))
    backward = dict(zip([(r["key"], r["candidate"]) for r in rows[::-1]], reasons(rows[::-1]), strict=True))
    assert forward == backward and set(forward.values()) == {"kept", "duplicate", "below_threshold"}


def test_the_score_column_is_the_configured_one():
    one = row("web-1", "a cat", "web", 0.1) | {"itc": 0.7}
    assert reasons([one]) == ["below_threshold"]
    assert reasons([one], config(score="itc")) == ["kept"]


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_candidate_without_a_score_stops_the_stage_and_is_named(score):
    table = caption_table([row("web-1", "a cat", "web"), row("web-2", "a dog", "synthetic", score)])
    message = r"web-7\.parquet: key 'web-2': text 'a dog' has match (None|nan|inf) by filter 'f', expected a number \(1 such rows\)"
    with pytest.raises(ValueError, match=message):
        choose(table, overused=NONE, rule=Rule(config()), where="web-7.parquet")


def test_a_source_that_is_off_needs_no_threshold():
    rows = [row("web-1", "a cat", "web"), row("web-1", "a dog", "synthetic", 0.1)]
    assert reasons(rows, config(threshold={"web": 0.5}, sources=("web",))) == ["kept", "source_off"]


def test_the_stage_writes_every_candidate_with_its_reason_and_human_texts_as_they_were(tmp_path):
    base, scores = small_world(tmp_path)
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(max_share=1.0))
    assert sorted(read_manifest(tmp_path / "g1")["files"]) == ["train-00000.parquet", "web-00000.parquet", "web-00001.parquet"]
    assert read_table(tmp_path / "g1" / "train-00000.parquet").equals(read_table(base / "train-00000.parquet"))
    for stem in ("web-00000", "web-00001"):
        made, scored = (read_table(folder / f"{stem}.parquet") for folder in (tmp_path / "g1", scores))
        assert made.schema.equals(SCHEMA) and made.drop_columns(["reason", "match"]).equals(scored.drop_columns(["reason", "match"]))
        for found in made.to_pylist():
            assert found["match"] == pytest.approx(found["itm"], abs=1e-9)
            expected = "below_threshold" if "low" in found["text"] else "kept"
            expected = {"KEPT, one!": "duplicate", "dog dog dog": "loop"}.get(found["text"], expected)
            assert found["reason"] == expected, found


def test_metrics_and_manifest_say_what_was_done(tmp_path):
    base, scores = small_world(tmp_path)
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(max_share=1.0))
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics == {
        "images": 4,
        "texts_human": 2,
        "candidates_fused": 0,
        "kept_fused": 0,
        "candidates_web": 4,
        "kept_web": 2,
        "noise_web": 0.5,
        "candidates_synthetic": 4,
        "kept_synthetic": 1,
        "noise_synthetic": 0.25,
        "reason_kept": 3,
        "reason_below_threshold": 3,
        **{"reason_empty": 0, "reason_marks": 0, "reason_refusal": 0, "reason_loop": 1, "reason_truncated": 0, "reason_overused": 0},
        "reason_duplicate": 1,
        "reason_outranked": 0,
        "reason_missing_text": 0,
        "reason_source_off": 0,
        "texts_kept": 3,
        **{f"reason_{screen}": 0 for screen in SCREENS},
        "coverage": 0.75,
        "distinct_share_synthetic": 1.0,
        "degenerate_share_synthetic": 0.25,
    }
    manifest = read_manifest(tmp_path / "g1")
    assert manifest["parents"] == {
        "generation": content_hash(base),
        "scores": content_hash(scores),
        "calibration": sha256_file(tmp_path / "calibration.json"),
    }
    assert manifest["counts"]["texts_kept"] == 3 and manifest["rule"]["threshold"] == {"web": 0.5, "synthetic": 0.5}


def test_a_text_for_too_many_images_is_overused_across_shards(tmp_path):
    texts = {f"web-{i:02d}": "everywhere" if i % 2 else f"only here {i}" for i in range(20)}
    shards = {"web-00000": list(texts)[:7], "web-00001": list(texts)[7:]}
    base = seal(tmp_path / "g0", {s: [row(k, "x", "web", reason="kept") for k in keys] for s, keys in shards.items()})
    candidates = {s: [r for k in keys for r in (row(k, "x", "web"), row(k, texts[k], "synthetic"))] for s, keys in shards.items()}
    scores = seal(tmp_path / "scores", candidates)
    for share, expected in ((0.49, {"overused"}), (0.5, {"kept"})):  # it stands at half of the images
        assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(max_share=share))
        found = read_tables(tmp_path / "g1").to_pylist()
        assert {r["reason"] for r in found if r["text"] == "everywhere"} == expected
        assert {r["reason"] for r in found if r["text"] != "everywhere"} == {"kept"}


def test_a_text_of_one_image_is_never_overused(tmp_path):
    base = seal(tmp_path / "g0", {"web-00000": [row("web-1", "x", "web", reason="kept")]})
    scores = seal(tmp_path / "scores", {"web-00000": [row("web-1", "y", "synthetic"), row("web-1", "y", "synthetic", candidate=1)]})
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(max_share=0.0))
    assert read_tables(tmp_path / "g1")["reason"].to_pylist() == ["kept", "duplicate"]


def test_running_again_gives_the_same_bytes_and_no_table_of_an_earlier_run_stays(tmp_path):
    base, scores = small_world(tmp_path)
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
    before = content_hash(tmp_path / "g1"), (tmp_path / "m.json").read_bytes()
    write_table(caption_table([row("web-9", "stale", "web")]), tmp_path / "g1" / "web-00009.parquet")
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
    assert (content_hash(tmp_path / "g1"), (tmp_path / "m.json").read_bytes()) == before


def test_nothing_kept_has_no_share_of_nothing(tmp_path):
    base, scores = small_world(tmp_path)
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(threshold={"web": 1.0, "synthetic": 1.0}))
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["coverage"] == 0 and metrics["texts_kept"] == 0 and "distinct_share_synthetic" not in metrics


def test_a_lost_shard_or_image_is_an_error_that_names_it(tmp_path):
    base, scores = small_world(tmp_path)
    (scores / "web-00001.parquet").unlink()
    write_manifest(scores)
    message = r"scores/web-00001\.parquet: 2 images of .*g0/web-00001\.parquet are not in it \(e\.g\. web-3, web-4\)"
    with pytest.raises(ValueError, match=message):
        assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
    assert not (tmp_path / "g1").exists()


def test_unfinished_or_foreign_inputs_are_refused(tmp_path):
    base, scores = small_world(tmp_path)
    with pytest.raises(ValueError, match="a generation is never edited"):
        assemble(base, scores, base, tmp_path / "m.json", cfg=config())
    write_table(caption_table([row(k, "?", "robot") for k in ("web-1", "web-2")]), scores / "web-00000.parquet")
    write_manifest(scores)
    with pytest.raises(ValueError, match=r"web-00000\.parquet: key 'web-1': source is 'robot', expected one of"):
        assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
    (scores / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest, so .* is unfinished"):
        assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())


def test_a_run_that_stops_midway_leaves_no_sealed_generation(tmp_path):
    base, scores = small_world(tmp_path)
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
    table = read_table(scores / "web-00001.parquet").to_pylist()
    seal(scores, {"web-00001": [{**r, "itm": None} for r in table]})
    with pytest.raises(ValueError, match="key 'web-3'"):
        assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
    with pytest.raises(ValueError, match="unfinished"):
        read_manifest(tmp_path / "g1")


def test_thirty_thousand_candidates_take_seconds():
    words = ["a red ball", "two dogs on grass", "a photo of a house by a lake", "blue car"]
    rows = [row(f"web-{i // 2}", f"{words[i % 4]} {i % 997}", ("web", "synthetic")[i % 2], (i % 100) / 100) for i in range(30_000)]
    table = caption_table(rows)
    start = time.process_time()
    made = choose(table, overused=NONE, rule=Rule(config()))
    assert time.process_time() - start < 5
    assert made.num_rows == 30_000 and made["reason"].to_pylist().count("kept") == 15_000


def opinion(score: float | None, name: str = "g") -> dict:
    return {"filter": name, "itm": score, "itc": score, "match": score}


@pytest.mark.parametrize("votes, stay", [(1, "abc"), (2, "ab"), (3, "a")])
def test_so_many_filters_must_accept_a_text(votes, stay):
    """a: all three, b: two, c: the second alone, d: none."""
    scores = {"a": (0.9, 0.8, 0.7), "b": (0.4, 0.8, 0.7), "c": (0.4, 0.5, 0.1), "d": (0.4, 0.3, 0.1)}
    rows = [row("web-1", t, "web", s[0]) | {"opinions": [opinion(s[1]), opinion(s[2], "h")]} for t, s in scores.items()]
    assert "".join(t for t, r in zip(scores, reasons(rows, config(votes=votes)), strict=True) if r == "kept") == stay


def test_a_filter_without_the_score_that_decides_is_named():
    """CLIP has no ITM head."""
    rows = [row("web-1", "a cat", "web") | {"opinions": [opinion(0.9) | {"itm": None, "filter": "clip"}]}]
    assert reasons(rows) == ["kept"]
    with pytest.raises(ValueError, match="has itm None by filter 'clip'.*another assemble.score where the filter has none"):
        reasons(rows, config(score="itm"))


def test_of_those_that_pass_only_the_best_of_an_image_stay():
    """The rank counts what was kept: neither duplicates nor rejected ones take a place; equal scores: web first, then the older."""
    rows = [
        row("web-1", "first", "web", 0.95),
        row("web-1", "First!", "synthetic", 0.94),
        row("web-1", "low", "synthetic", 0.4, candidate=1),
        row("web-1", "second", "synthetic", 0.8, candidate=2),
        row("web-1", "third", "synthetic", 0.8, candidate=3),
        row("web-2", "other", "web", 0.6),
    ]
    assert reasons(rows, config(keep_best=2)) == ["kept", "duplicate", "below_threshold", "kept", "outranked", "kept"]
    best = config(keep_best=1, threshold={"web": 0.0, "synthetic": 0.0})  # BLIP-2's way: no threshold, the best by score
    assert reasons(rows, best) == ["kept", "duplicate", "outranked", "outranked", "outranked", "kept"]


def test_several_filters_rank_by_their_mean():
    rows = [
        row("web-1", "a", "web", 0.9) | {"opinions": [opinion(0.5)]},
        row("web-1", "b", "synthetic", 0.8) | {"opinions": [opinion(0.7)]},
    ]
    assert reasons(rows, config(keep_best=1)) == ["outranked", "kept"]


def test_a_calibrated_threshold_is_the_filters_own_and_stands_as_a_number_in_the_manifest(tmp_path):
    base, scores = small_world(tmp_path)
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(threshold={"web": "calibrated", "synthetic": 0.8}))
    kept = {r["text"] for r in read_tables(tmp_path / "g1").to_pylist() if r["reason"] == "kept" and r["source"] != "human"}
    assert kept == {"kept one", "kept anew"}  # the filter's threshold is 0.75
    assert read_manifest(tmp_path / "g1")["rule"]["threshold"] == {"web": 0.75, "synthetic": 0.8}
    with pytest.raises(ValueError, match="'web' it is calibrated, but filter 'f' was not calibrated"):
        reasons([row("web-1", "a", "web")], config(threshold={"web": "calibrated", "synthetic": 0.5}))
    with pytest.raises(ValueError, match="expected score: match"):
        config(score="itm", threshold={"web": "calibrated", "synthetic": 0.5})


def test_scores_of_a_filter_that_was_not_calibrated_are_refused(tmp_path):
    base, scores = small_world(tmp_path)
    seal(scores, {"web-00000": [r | {"filter": "other"} for r in read_table(scores / "web-00000.parquet").to_pylist()]})
    with pytest.raises(ValueError, match=r"web-00000\.parquet: scored by filter 'other', but calibrated are \['f'\]"):
        assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config())
