"""Texts that say nothing of their picture: what each screen hits and what it leaves, over one table and over all."""

import json
import time

import pyarrow as pa
import pytest

from blip_core.config.screens import ScreensConfig, WebScreensConfig
from blip_core.selection.choice import Rule, choose
from blip_core.tables.captions import SCREENS, caption_table, read_table, read_tables, write_table
from blip_core.tables.counting import Walk
from blip_core.tables.manifest import read_manifest
from blip_core.texts.screens import (
    common,
    completion,
    decide,
    fill,
    has_markup,
    hits,
    is_file_name,
    known_languages,
    language,
    loops,
    mark_common,
    normalised,
    screened,
    tally,
)
from blip_core.tokenizer.folders import load_tokenizer
from tests.stages.test_assemble import SCREENS_OFF, assemble, row, seal
from tests.stages.test_assemble import config as rule
from tests.stages.test_gate import NUM_IMAGES, World, write_shards
from tests.stages.test_ingest import CFG, run
from tests.support.archives import karpathy_image, sample, tar_bytes, write_karpathy


def config(**changes) -> WebScreensConfig:
    values = {**dict.fromkeys(SCREENS, "off"), "languages": None, "min_confidence": 0.5, "max_images": 2, "max_share": 1.0, "max_repeat": 3}
    return WebScreensConfig(**values | changes)


def table(texts: list[str], *, source: str = "web", keys: list[str] | None = None) -> pa.Table:
    keys = keys or [f"web-{i}" for i in range(len(texts))]
    return caption_table([{"key": k, "text": t, "source": source, "reason": "kept"} for k, t in zip(keys, texts, strict=True)])


def column(texts: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.string())])


# what a text says alone

FILE_NAMES = """IMG_1234.jpg|IMG_1234|img 3 jpg|DSC00012|DSC_0012|_DSC0012|_MG_4711|DSCN0012|MVI_0001.MOV|P1010023|100_0123|IMG-1234 copy
Screenshot 2021-03-04 at 10.11.12 AM|Screen Shot 2014-01-01 at 1.02.03 PM.png|screenshot-2021-03-04|WhatsApp Image 2020-01-02 at 12.34.56
微信图片_20200101|截图1|image001|image (2)|photo 12 of 24|untitled-3|fig 2|logo.png|my holiday.JPG|foo.jpg?w=300|step④：高压锅蒸煮.jpg
1920x1080|2019-05-04|20190312_143355|12|$9.99|>|3f2a9c71e0b4|550e8400-e29b-41d4-a716-446655440000|71kZ8xQ9L._AC_SL1500_
(null)|<none>|#N/A|n.a|\\N|Unknown|not available|no description available"""
NO_FILE_NAMES = """a red ball|Screenshot of an appointment slot in Google calendar|photo of 2 dogs|image of 3 dogs|scan of a brain
video game|Nan bread|none of them|missing cat|unknown soldier
F-16 over the sea|COVID-19|A320|BMW 320|Boeing 747|GTX1080|R2D2|iPhone14Pro|H1N1 virus|12 Angry Men|2 dogs
figure skating 2010|page boy|apple-strudel-1|baked-pasta-with-broccoli|水煮牛肉-预览图-6|白灼菜心|3D printed car
a 1080p60fps monitor|Slide at the park 3|default"""


@pytest.mark.parametrize("text", FILE_NAMES.replace("\n", "|").split("|"))
def test_file_names_numbers_and_ids(text):
    assert is_file_name(text)


@pytest.mark.parametrize("text", NO_FILE_NAMES.replace("\n", "|").split("|"))
def test_words_with_numbers_are_no_file_names(text):
    assert not is_file_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "<b>red</b> ball",
        "a <br/> b",
        '<img src="x',
        "<a href=x>",
        "AT&amp;T",
        "&#39;s",
        "&nbsp;",
        "see http://x.org",
        "WWW.x.com",
        "a@b.de",
        # reST
        "see `the manual`_ for more",
        "`Python <python.org>`__",
        "call ``numpy.dot(a, b)`` here",
        "as :doc:`install` says",
        "the class :py:class:`list`",
        ".. image:: a.png",
        # wikis
        "the [[Eiffel Tower]] at night",
        "[[File:Cat.jpg|thumb|A cat]]",
        "the ''Mona Lisa'' in Paris",
        "'''L'été''' by Arcimboldo",
        "{{cite web}}",
        "== History ==",
        # LaTeX
        r"half of it, \frac{1}{2}",
        r"\textbf{Figure 1.} A cell",
        r"the angle $\alpha$ of the beam",
        r"for $n \to \infty$ it ends",
        r"the area \(\pi r^2\)",
        "proof of $a^2+b^2=c^2$",
        # Markdown and forums
        "![a cat](cat.png)",
        "[the museum](https://x.org) at night",
        "a **red** ball",
        "## Our holidays",
        "[b]cheap[/b] shoes",
    ],
)
def test_markup(text):
    assert has_markup(text)


@pytest.mark.parametrize(
    "text",
    [
        *["photos of <PERSON> on the beach", "a < b > c", "I <3 you", "R&B; soul", "AT&T", "cloud.gov", "x@y", "@home", "<i love it>"],
        *["shoes from $5 to $10", "US$5 or A$7, not $ 9", r"\$5 off, \$10 at most", "$$$", "$9.99^ and up", "ke$ha and A$AP rocky"],
        *["5'' x 7'' print", "a frame of 8''x10''", "the '80s and the '90s", "rock 'n' roll", "``Hello'', he said", "``a'' and ``b''"],
        *["the `real' thing", "it`s a cat", "at 10:30: a dog", "[live] at Wembley [HD]", "a = b", "=) nice", "wow ... :: so", r"C:\new"],
        *[
            "Q&A;",
            r"¯\_(ツ)_/¯",
            r"and\or",
            "{red} ball",
            "f**k and s**t",
            "#dogs of Rome",
            "4** and 5** hotels",
            "a cat [1] (left)",
            "a_b_c",
            "2^10 grains",
            "$1_000",
        ],
    ],
)
def test_signs_that_are_no_markup(text):
    assert not has_markup(text)


def test_loops_are_of_one_to_four_words():
    texts = ["the the the", "a cat a cat a cat", "on a red car on a red car on a red car", "the the", "very very good", "Dog, dog. DOG", ""]
    assert loops(normalised(column(texts)), 3).to_pylist() == ["the the the", "a cat a cat a cat", texts[2], "dog dog dog"]
    assert loops(normalised(column(texts)), 2).to_pylist()[-2:] == ["very very good", "dog dog dog"]


def test_loops_in_scripts_without_spaces():
    looping = ["一只猫一只猫一只猫", "红红红红红红", "แมวแมวแมวดำ", "赤い、赤い、赤い"]
    fine = ["哈哈哈", "一只红色的猫和一只红色的狗", "两只猫一只猫", "20242024 年"]
    assert loops(normalised(column(looping + fine)), 3).to_pylist() == normalised(column(looping)).to_pylist()


def test_normalised_keeps_letters_of_all_scripts_and_their_marks():
    texts = column(["A Dog's  life!", "  Größe—№5 ", "हिन्दी", "!?"])
    assert normalised(texts).to_pylist() == ["a dog s life", "größe 5", "हिन्दी", ""]


def test_languages_of_whole_sentences_and_none_where_it_cannot_be_told():
    texts = {
        "en": "a man with a red helmet on a small moped on a dirt road",
        "de": "zwei Hunde spielen am Strand mit einem roten Ball",
        "fr": "deux chiens jouent sur la plage avec un ballon rouge",
        "zh": "两只狗在海滩上玩红色的球",
        "ja": "ビーチで遊ぶ二匹の犬",
        "ru": "мужчина в красном шлеме стоит на дороге рядом с собакой",
        "und": "Ravioli",
    }
    assert {language(text, 0.5) for text in ("", "42", "A", "dsc 12")} == {"und"}
    assert {code: language(text, 0.5) for code, text in texts.items()} == {code: code for code in texts}
    assert {"en", "zh"} <= known_languages() and "yue" not in known_languages()


def test_languages_of_real_alt_texts(shared):
    """Every Chinese text, and the English ones of four words and more, of real web pictures."""
    from blip_core.intake.formats import recognise

    folder = shared / "real/web_alt"
    module = recognise(folder)
    texts = [t for unit in module.units(folder) for item in module.read(unit) for t in getattr(item, "texts", ()) if t.strip()]
    chinese = [t for t in texts if any("一" <= c <= "鿿" for c in t)]
    english = [t for t in texts if t.isascii() and len(t.split()) >= 4]
    assert len(chinese) > 170 and len(english) > 150
    for code, own in (("zh", chinese), ("en", english)):
        tags = [language(t, 0.5) for t in own]
        assert tags.count(code) >= 0.9 * len(own)
        assert len(own) - tags.count(code) - tags.count("und") <= 2


def test_hostile_texts_cost_no_time():
    texts = ["a" * 1000, "1a" * 500, "IMG" + "_" * 990, "IMG " + "at " * 330, "x " * 500, "<a " * 300, "&a" * 500, "a@" * 500]
    texts += ["1" * 999 + "a", "w." * 400 + "@", "photo " + "1 of " * 199 + "!a", "<" * 1000, "http" * 250]
    texts += ["`" * 1000, "`a " * 333, ":a" * 500, "[[a" * 333, "''a " * 250, "{{a" * 333, r"$\a" * 333, "$" + r"\a" * 499, r"\(a" * 333]
    texts += ["$^" * 500, "." * 1000, "\n .. a" * 150, "=" * 1000, "= a" * 333, "'" * 1000]
    start = time.process_time()
    for text in texts:
        is_file_name(text), has_markup(text), loops(normalised(column([text])), 3)
    assert time.process_time() - start < 1


# columns and decisions

MIXED = [
    "a red ball",
    "IMG_1234.jpg",
    "see http://x.org",
    "ball ball ball",
    "ein roter Ball liegt auf der grünen Wiese",
    "http://x.org/1.jpg",
]


def test_off_leaves_the_columns_empty_and_mark_drops_nothing():
    assert fill(table(MIXED), config(), max_repeat=3).equals(table(MIXED))
    cfg = config(**dict.fromkeys(SCREENS, "mark"))
    marked = decide(fill(table(MIXED), cfg, max_repeat=3), cfg)
    assert marked["file_name"].to_pylist() == [False, True, False, False, False, True]
    assert marked["markup"].to_pylist() == [False, False, True, False, False, True]
    assert marked["repeats"].to_pylist() == [False, False, False, True, False, False]
    assert marked["language"].to_pylist()[4] == "de" and marked["boilerplate"].null_count == 6
    assert set(marked["reason"].to_pylist()) == {"kept"} and marked.schema.equals(table([]).schema)


def test_drop_gives_the_first_screen_for_a_reason_and_keeps_the_row():
    cfg = config(file_name="drop", markup="drop", repeats="mark", language="drop", languages=["en"])
    made = decide(fill(table(MIXED), cfg, max_repeat=3), cfg)
    assert made["reason"].to_pylist() == ["kept", "file_name", "markup", "kept", "language", "file_name"]
    assert made["text"].to_pylist() == MIXED
    assert screened(made).to_pylist() == [False, True, True, False, True, True]
    assert tally(made, cfg) == {
        **{"marked_file_name": 2, "marked_markup": 2, "marked_repeats": 1, "marked_language": 1},
        **{"dropped_file_name": 2, "dropped_markup": 1, "dropped_repeats": 0, "dropped_language": 1},
    }


def test_human_texts_and_decided_ones_are_left_alone():
    cfg = config(file_name="drop")
    assert decide(fill(table(["IMG_1.jpg"], source="human"), cfg, max_repeat=3), cfg)["reason"].to_pylist() == ["kept"]
    other = table(["IMG_1.jpg"])
    other = other.set_column(other.schema.get_field_index("reason"), "reason", pa.array(["below_threshold"]))
    assert decide(fill(other, cfg, max_repeat=3), cfg)["reason"].to_pylist() == ["below_threshold"]


def test_the_text_is_judged_as_it_was_found():
    """The paper's rule makes words of a file name and of an entity."""
    cfg = config(file_name="mark", markup="mark")
    made = fill(table(["logo png", "at&amp t"]), cfg, max_repeat=3, raw=["logo.png", "AT&amp;T"])
    assert made["file_name"].to_pylist() == [True, False] and made["markup"].to_pylist() == [False, True]
    assert made["text"].to_pylist() == ["logo png", "at&amp t"]


def test_a_text_whose_language_is_uncertain_stays():
    cfg = config(language="drop", languages=["en"])
    made = decide(fill(table(["Ravioli"]), cfg, max_repeat=3), cfg)
    assert (made["language"].to_pylist(), made["reason"].to_pylist()) == (["und"], ["kept"])


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="language is drop, but languages names none"):
        config(language="drop")
    assert config(file_name=False).file_name == "off"  # as YAML reads a bare off
    with pytest.raises(ValueError, match="languages"):
        config(language="drop", languages=["english"])
    with pytest.raises(ValueError, match="mark"):
        ScreensConfig(**config().model_dump(include=set(ScreensConfig.model_fields)) | {"file_name": "no"})


# boilerplate


def parts(*shards: list[str]) -> Walk:
    tables = [table(texts, keys=[f"web-{n}-{i}" for i in range(len(texts))]) for n, texts in enumerate(shards)]
    return Walk(lambda: iter(tables))


def test_boilerplate_is_counted_over_all_tables_and_marked_in_each():
    walk = parts(["Buy now!", "a cat", "a dog"], ["buy  NOW", "a cat", "a bird"], ["(buy now)", "...", "???"])
    texts = common(walk, max_images=2, max_share=1.0)
    assert texts.to_pylist() == ["buy now"]
    assert [mark_common(t, texts)["boilerplate"].to_pylist() for t in walk] == [[True, False, False]] * 3
    assert common(walk, max_images=1, max_share=1.0).to_pylist() == ["", "a cat", "buy now"]


def test_a_share_of_the_images_is_a_limit_too_and_one_image_is_none():
    walk = parts(["a cat", "a cat", "a dog", "a fish"])
    assert common(walk, max_images=None, max_share=0.5).to_pylist() == []
    assert common(walk, max_images=None, max_share=0.4).to_pylist() == ["a cat"]
    assert common(walk, max_images=3, max_share=0.4).to_pylist() == ["a cat"]
    assert common(parts(["a cat", "a dog"]), max_images=None, max_share=0.0).to_pylist() == []


def test_a_picture_without_a_text_has_no_boilerplate_where_signs_alone_are():
    rows = [{"key": f"web-{i}", "text": text, "reason": "kept"} for i, text in enumerate(("...", "-", "!"))]
    signs = caption_table([*rows, {"key": "web-3", "text": "", "reason": "missing_text"}])
    done = completion(Walk(lambda: iter([signs])), config(boilerplate="mark"))(signs)
    assert done["boilerplate"].to_pylist() == [True, True, True, False]
    assert tally(done, config(boilerplate="mark")) == {"marked_boilerplate": 3, "dropped_boilerplate": 0}


def test_a_text_counts_once_for_an_image():
    same = table(["a cat", "A cat!", "a cat.", "a dog"], keys=["web-1", "web-1", "web-1", "web-2"])
    assert common(Walk(lambda: iter([same])), max_images=1, max_share=1.0).to_pylist() == []


def test_completion_marks_and_decides():
    cfg = config(boilerplate="drop", file_name="drop", max_images=1)
    walk = Walk(lambda: iter([fill(table(["a cat", "IMG_1.jpg", "IMG_1.jpg", "a dog"]), cfg, max_repeat=3)]))
    (made,) = map(completion(walk, cfg), walk)
    assert made["reason"].to_pylist() == ["kept", "boilerplate", "boilerplate", "kept"]
    assert {name: sum(hit.to_pylist()) for name, hit in hits(made, cfg).items()} == dict.fromkeys(SCREENS, 0) | {
        "boilerplate": 2,
        "file_name": 2,
    }
    assert completion(Walk(lambda: iter([])), cfg)(table([])).num_rows == 0


def test_the_sample_world_has_boilerplate_and_the_demo_marks_it(ingested):
    """The default marks and drops nothing: there the filter is to learn what noise is."""
    metrics = json.loads((ingested / "metrics/ingest.json").read_text())
    assert {metrics[f"dropped_{name}"] for name in SCREENS[:-1]} == {0}
    assert metrics["marked_file_name"] > 0 and "marked_language" not in metrics


# through the round


def test_a_dropped_text_passes_by_filter_rule_and_gate(tmp_path):
    """It is not scored, stands in the next generation with its reason, and counts in no noise ratio."""
    world = World(tmp_path)
    unscored = {"itm": None, "itc": None, "match": None, "filter": ""}
    gone = row("web-900", "IMG_1.jpg", "web", reason="file_name") | unscored | {"file_name": True}
    world.candidates.append(row("web-900", "a synthetic text", "synthetic", 0.9))
    web = [row(f"web-{i:03d}", f"web text {i}", "web", reason="kept") for i in range(NUM_IMAGES)]
    base = seal(tmp_path / "g0", {"web-00000": [gone, *web], "train-00000": [row("train-1", "a text", "human", reason="kept")]})
    seal(world.scores, {"web-00000": world.candidates, "controls": world.controls})
    write_shards(tmp_path / "shards", {"web": [r["key"] for r in [gone, *web]], "train": ["train-1"]})
    assemble(base, world.scores, world.generation, tmp_path / "m.json", cfg=world.rule)
    made = read_table(world.generation / "web-00000.parquet").to_pylist()
    assert [r for r in made if r["reason"] == "file_name"] == caption_table([gone]).to_pylist()
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["reason_file_name"], metrics["candidates_web"], metrics["noise_web"]) == (1, NUM_IMAGES + 1, 0.55)
    world.run()
    assert (world.facts()["noise_web"], world.facts()["texts_off_rule"]) == (0.55, 0)
    assemble(world.generation, world.scores, tmp_path / "g2", tmp_path / "m.json", cfg=world.rule)
    assert read_table(tmp_path / "g2/web-00000.parquet").to_pylist() == made, "nor does the next round score it"
    world.tamper("web-00000.parquet", lambda rows: rows[5].update(reason="file_name", itm=None, file_name=True))
    assert "texts_off_rule" in world.failure(), "a screen's reason is no way around the filter"


def test_what_is_dropped_is_not_scored(tmp_path):
    from blip_core.stages.score import candidates

    base = table(["IMG_1.jpg", "a ball"], keys=["web-1", "web-2"])
    cfg = config(file_name="drop")
    write_table(decide(fill(base, cfg, max_repeat=3), cfg), tmp_path / "g0.parquet")
    write_table(table(["one", "two"], source="synthetic", keys=["web-1", "web-2"]), tmp_path / "made.parquet")
    found = candidates(tmp_path / "g0.parquet", tmp_path / "made.parquet")
    assert found["text"].to_pylist() == ["one", "a ball", "two"]


def test_the_picture_of_a_dropped_text_is_captioned_all_the_same(tmp_path):
    from blip_core.stages.caption import crawl_images

    cfg = config(file_name="drop")
    write_table(decide(fill(table(["IMG_1.jpg", "a ball"]), cfg, max_repeat=3), cfg), tmp_path / "g0.parquet")
    assert [image.key for image in crawl_images(tmp_path / "g0.parquet")] == ["web-0", "web-1"]


def test_ingest_keeps_dropped_texts_out_of_the_vocabulary(tmp_path):
    """And of training; their rows, their pictures and the counts stay. The paper's rule would make words of the file name."""
    said = ["IMG_4711.jpg", "zzz shop", "zzz shop", "ZZZ  shop.", "a ball", "the ball"]
    web = tmp_path / "data/web"
    web.mkdir(parents=True)
    (web / "0.tar").write_bytes(tar_bytes([member for i, text in enumerate(said) for member in sample(str(i), text)]))
    write_karpathy(tmp_path / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(("train", "val", "test"))])
    screens = config(boilerplate="drop", file_name="drop", markup="mark")
    metrics = run(tmp_path / "data", tmp_path, screens=screens, texts=CFG.texts.model_copy(update={"rule": "paper"}))
    assert (metrics["texts_web"], metrics["dropped_boilerplate"], metrics["dropped_file_name"], metrics["marked_markup"]) == (6, 3, 1, 0)
    found = {r["text"]: r["reason"] for r in read_tables(tmp_path / "g0").to_pylist() if r["source"] == "web"}
    assert found == {"img_4711 jpg": "file_name", "zzz shop": "boilerplate", "a ball": "kept", "the ball": "kept"}
    vocab = load_tokenizer(tmp_path / "tokenizer.json").vocab
    assert "ball" in vocab and "zzz" not in vocab
    manifest = read_manifest(tmp_path / "g0")
    assert manifest["limits"]["rule"] == "paper" and manifest["screens"]["file_name"] == "drop"


def test_assemble_screens_synthetic_texts_and_drops_marked_web_ones():
    on = {**SCREENS_OFF, "file_name": "drop", "markup": "mark", "boilerplate": "mark"}
    rows = [row("web-1", "image 12", "web") | {"file_name": True}]
    rows += [row(f"web-{i}", text, "synthetic") for i, text in enumerate(("dsc 12", "&amp; a", "so common"), 1)]
    made = choose(caption_table(rows), overused=pa.array(["so common"]), rule=Rule(rule(screens=on)))
    assert made["reason"].to_pylist() == ["file_name", "file_name", "kept", "overused"]
    assert made["markup"].to_pylist() == [None, False, True, False]
    assert made["boilerplate"].to_pylist() == [None, False, False, True]
