"""What a round did to the texts, on tables whose words are counted by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from blip_core.config.selection import DescribeConfig
from blip_core.explain import describe as module
from blip_core.explain.describe import describe_round, distinct
from blip_core.explain.words import words_of
from blip_core.stages.describe import describe
from tests.stages.test_assemble import as_applied, row, seal
from tests.stages.test_gate import World

CFG = DescribeConfig(rare_images=1, sample_words=1000, examples=3)


def words(text: str) -> list[str]:
    return words_of(pa.array([text]))["word"].to_pylist()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A dog's 1,000 toys, 3.5 kg.", ["a", "dog's", "1,000", "toys", "3.5", "kg"]),
        ("the girls’ ball 'here'", ["the", "girls", "ball", "here"]),
        ("5.. 6,7,8 a.b,c", ["5", "6,7,8", "a", "b", "c"]),
        ("no...5, 1...2 and 3.,.4", ["no", "5", "1", "2", "and", "3", "4"]),
        ("IMG_1234.jpg", ["img", "1234", "jpg"]),
        ("一只猫 on 草", ["一", "只", "猫", "on", "草"]),
        ("コーヒーの cup", ["コ", "ー", "ヒ", "ー", "の", "cup"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("кот и собака", ["кот", "и", "собака"]),
        ("Ça, l'été", ["ça", "l'été"]),
        ("", []),
        (" - ... !", []),
    ],
)
def test_words_in_any_script(text, expected):
    assert words(text) == expected


def names(text: str) -> list[str]:
    table = words_of(pa.array([text]))
    return table["word"].filter(table["name"]).to_pylist()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Anna and Bob walk in Rome", ["bob", "rome"]),
        ("Look there! Anna walks. Then Bob", ["bob"]),
        ("He said: “Anna walks” to Bob", ["bob"]),
        ("Red Shoes for Sale in Rome", []),  # every word is written so
        ("ALL IN CAPITALS HERE", []),
        ("anna walks in rome", []),
        ("一只猫", []),
        ("Собака видит Анну", ["анну"]),
        ("两部iPhone手机和nike鞋", ["iphone", "nike"]),  # in a script without case what is of another is a name
        ("كلب في Berlin", ["berlin"]),
        ("重 5 kg 的猫", []),
        ("a photo of 北京 in Spring", ["spring"]),
    ],
)
def test_names_are_told_by_case_where_it_says_something(text, expected):
    assert names(text) == expected


def test_rows_of_several_texts_and_chunks():
    table = words_of(pa.chunked_array([pa.array(["a b", ""]), pa.array([], pa.string()), pa.array(["C d"])]))
    assert table.select(["row", "word"]).to_pylist() == [{"row": r, "word": w} for r, w in ((0, "a"), (0, "b"), (2, "c"), (2, "d"))]


def synthetic(key: str, text: str, reason: str = "kept", **origin) -> dict:
    return scored(key, text, "synthetic", reason) | {"sampler": "nucleus p=0.9", "model": "abc"} | origin


def web(key: str, text: str, reason: str = "kept") -> dict:
    return scored(key, text, "web", reason)


def scored(key: str, text: str, source: str, reason: str) -> dict:
    """At a threshold of 0.5."""
    return row(key, text, source, 0.1 if reason == "below_threshold" else 0.9, reason=reason)


@pytest.fixture
def round_of(tmp_path):
    """Two shards of the crawl and one of the clean set, before and after a round."""
    one = ["we saw Anna near Rome in 2019", "they met Anna again with 12 dogs"]
    two = ["here comes the slender zebu", "the Anna is here"]
    human = row("train-1", "a dog", "human", reason="kept")
    base = seal(
        tmp_path / "g0",
        {
            "web-00000": [web(f"web-{i}", t) for i, t in enumerate(one)],
            "web-00001": [web(f"web-{i + 2}", t) for i, t in enumerate(two)],
            "train-00000": [human],
        },
    )
    after = {
        "web-00000": [
            web("web-0", one[0]),
            web("web-1", one[1], "below_threshold"),
            synthetic("web-0", "anna in a purple hat"),
            synthetic("web-1", "a dog", "degenerate"),
        ],
        "web-00001": [
            web("web-2", two[0], "below_threshold"),
            web("web-3", two[1], "duplicate"),
            synthetic("web-2", "a dog is here"),
            synthetic("web-3", "a dog is here"),
        ],
        "train-00000": [human],
    }
    return base, seal(tmp_path / "g1", after, rule=as_applied())


def test_noise_by_source_sampler_and_captioner(round_of):
    found = {r["source"]: r for r in describe_round(*round_of, CFG)["noise"]}
    assert found["web"]["noise"] == 2 / 4 and found["web"]["reasons"] == {"kept": 1, "below_threshold": 2, "duplicate": 1}
    assert found["synthetic"]["sampler"] == "nucleus p=0.9" and found["synthetic"]["model"] == "abc"
    assert found["synthetic"]["noise"] == 0 and found["synthetic"]["kept"] == 3 and "human" not in found


def test_texts_that_the_filter_did_not_score_are_no_part_of_the_noise_ratio(tmp_path):
    unscored = web("web-3", "d", "markup") | dict.fromkeys(("match", "itm", "itc")) | {"filter": ""}
    bare = unscored | {"key": "web-4", "text": "", "reason": "missing_text"}  # a picture without a text
    rows = [web("web-0", "a", "below_threshold"), web("web-1", "b"), unscored, bare]
    base = seal(tmp_path / "g0", {"web-00000": [web("web-0", "a")]})
    (found,) = describe_round(base, seal(tmp_path / "g1", {"web-00000": rows}, rule=as_applied()), CFG)["noise"]
    assert (found["texts"], found["judged"], found["noise"]) == (3, 2, 0.5)


def test_the_noise_ratio_is_one_number_of_assemble_gate_and_describe(tmp_path):
    """Of texts whose reason is another one too: a caption that was cut off below the threshold counts, and one above it."""
    world = World(tmp_path)
    world.rule = world.rule.model_copy(update={"threshold": {"web": 0.5, "synthetic": "calibrated"}})
    for candidate in [c for c in world.candidates if c["source"] == "synthetic"][:12]:  # three of which score 0.1
        candidate["truncated"] = True
    world.assemble().run(max_residual_noise=1)
    said = [json.loads(path.read_text()) for path in (tmp_path / "assemble.json", world.metrics)]
    described = {r["source"]: r for r in describe_round(tmp_path / "g0", world.generation, CFG)["noise"]}
    assert described["synthetic"]["reasons"]["below_threshold"] == 37 and described["synthetic"]["reasons"]["truncated"] == 12
    for source, expected in (("web", 0.55), ("synthetic", 0.2)):
        assert [numbers[f"noise_{source}"] for numbers in said] + [described[source]["noise"]] == [expected] * 3


def test_retention(round_of):
    """Anna stood at three images, Rome at one; both are left in web-0, whose synthetic text also says anna."""
    found = describe_round(*round_of, CFG)["retention"]
    assert found["names"] | {"most_lost": None} == {
        "words": 2,
        "occurrences": 4,
        "kept": 1.0,
        "kept_weighted": 1.0,
        "kept_at_image": 2 / 4,
        "at_image_by": {"web": 2 / 4, "synthetic": 1 / 4, "fused": 0.0},
        "in_synthetic": 1 / 2,
        "lost": 0,
        "most_lost": None,
    }
    assert found["numbers"]["kept"] == 1 / 2 and found["numbers"]["most_lost"] == [["12", 1]]
    assert found["rare"]["most_lost"] == [["again", 1], ["comes", 1], ["dogs", 1]] and "zebu" not in str(found["names"])
    assert found["rare"]["words"] == 14  # 17 words and two numbers; anna, here and the stand at more than one image
    assert found["added_by_synthetic"] == {"words": 4, "most": [["a", 3], ["dog", 2], ["hat", 1]]}


def test_a_captioner_that_writes_small_does_not_lose_names(round_of):
    assert describe_round(*round_of, CFG)["retention"]["names"]["in_synthetic"] == 0.5


def test_texts_that_a_screen_dropped_had_no_knowledge(tmp_path):
    before = [web("web-0", "the dog"), {**web("web-1", "IMG 77", "file_name"), "itm": None, "filter": ""}]
    folders = seal(tmp_path / "g0", {"web-00000": before}), seal(tmp_path / "g1", {"web-00000": before}, rule=as_applied())
    found = describe_round(*folders, CFG)["retention"]
    assert found["numbers"] == {**found["numbers"], "words": 0, "kept": None, "kept_weighted": None, "kept_at_image": None}
    assert found["web_images"] == 1


def test_diversity(round_of):
    found = describe_round(*round_of, CFG)["diversity"]
    own = found["synthetic"]
    assert (own["texts"], own["distinct_texts"], own["duplicates"]) == (3, 2, pytest.approx(1 / 3))
    assert (own["most_common"], own["most_common_share"]) == ("a dog is here", pytest.approx(2 / 3))
    assert (own["words"], own["vocabulary"]) == (13, 8)
    assert own["length"] == {"mean": pytest.approx(13 / 3), "p5": 4, "p25": 4, "median": 4, "p75": 5, "p95": 5}
    assert found["sample_words"] == 2 and found["human"]["distinct_1"] == found["human"]["distinct_2"] == 1.0  # "a dog" has two


def test_distinct_n_is_of_pairs_within_a_text():
    assert distinct([["a", "b", "a"], ["b", "a"]], 5) == {"distinct_1": 2 / 5, "distinct_2": 2 / 3}
    assert distinct([["a", "b", "a"], ["b", "a"]], 4) == {"distinct_1": 2 / 4, "distinct_2": 2 / 2}
    assert distinct([["a"]], 1) == {"distinct_1": 1.0, "distinct_2": None}


def random_folders(root, cut: int):
    """The same candidates in shards of `cut` images."""
    rng, vocabulary = np.random.default_rng(3), [f"w{i}x" if i % 7 else f"{i}" for i in range(60)]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(1, 6))) for _ in range(160)]
    reasons = rng.choice(["kept", "below_threshold"], 160)
    before = [web(f"web-{i:03d}", texts[i]) for i in range(80)]
    after = [[web(f"web-{i:03d}", texts[i], reasons[i]), synthetic(f"web-{i:03d}", texts[i + 80], reasons[i + 80])] for i in range(80)]
    shards = range(0, 80, cut)
    old = seal(root / "g0", {f"web-{s:05d}": before[s : s + cut] for s in shards})
    new = {f"web-{s:05d}": [row for rows in after[s : s + cut] for row in rows] for s in shards}
    return old, seal(root / "g1", new, rule=as_applied())


def test_shards_make_no_difference(tmp_path, monkeypatch):
    cfg = CFG.model_copy(update={"sample_words": 40})
    whole = describe_round(*random_folders(tmp_path / "whole", 80), cfg)
    monkeypatch.setattr(module, "_FEW_ROWS", 3)
    parts = describe_round(*random_folders(tmp_path / "parts", 9), cfg)
    assert parts == whole and whole["diversity"]["sample_words"] == 40 and whole["retention"]["numbers"]["words"] > 3


def test_a_generation_without_kept_or_synthetic_texts(tmp_path):
    rows = [web("web-0", "the red dog", "below_threshold")]
    folders = (
        seal(tmp_path / "g0", {"web-00000": [web("web-0", "the red dog")]}),
        seal(tmp_path / "g1", {"web-00000": rows}, rule=as_applied()),
    )
    found = describe_round(*folders, CFG)
    assert found["diversity"] == {"sample_words": 0, **{source: {"texts": 0} for source in ("web", "synthetic", "fused", "human")}}
    assert found["retention"]["rare"]["kept"] == 0.0 and found["retention"]["added_by_synthetic"] == {"words": 0, "most": []}


def test_the_stage_writes_all_of_it_and_the_numbers(round_of, tmp_path):
    describe(*round_of, tmp_path / "all.json", tmp_path / "numbers.json", cfg=CFG)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["names_kept"] == 1.0 and numbers["distinct_1_web"] == 1.0 and all(isinstance(v, int | float) for v in numbers.values())
    assert json.loads((tmp_path / "all.json").read_text())["noise"]
    with pytest.raises(ValueError, match="compared with itself; --base names"):
        describe(round_of[0], round_of[0], tmp_path / "a", tmp_path / "b", cfg=CFG)
    with pytest.raises(ValueError, match="names no rule by which texts were chosen"):
        describe(round_of[1], round_of[0], tmp_path / "a", tmp_path / "b", cfg=CFG)
