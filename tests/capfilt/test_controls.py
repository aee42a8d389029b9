"""Planted pairs are what they claim to be, in the sample world where truth can be asked."""

import pytest

from blip_core.capfilt import controls
from blip_core.capfilt.controls import KINDS, Substitutes, plant
from blip_core.sample.scene_texts import is_true
from blip_core.sample.truth import load_truth
from blip_core.stages.score import crawl_texts
from blip_core.tables.captions import read_tables
from blip_core.tables.heldout import Picture, heldout_halves


@pytest.fixture(scope="module")
def halves(ingested):
    return heldout_halves(ingested / "heldout")


def test_the_halves_share_no_picture(halves):
    first, second = ({p.image_id for p in half} for half in halves)
    assert first and second and not first & second
    assert all(p.shard.startswith("val-") for half in halves for p in half)


def test_controls_are_true_and_false_as_they_say(halves, ingested):
    """A text of another picture may fit by chance, which few do; a perturbed one never did here; true ones always fit."""
    truth, both = load_truth(ingested.parent / "data"), halves[0] + halves[1]
    crawl = crawl_texts(ingested / "generations/g0", count=3 * len(both), seed=0)
    rows = plant(both, per_image=3, seed=0, crawl=crawl).to_pylist()
    fits = {kind: [is_true(truth[r["key"]].scene, r["text"]) for r in rows if r["kind"] == kind] for kind in KINDS}
    assert all(len(f) >= 100 for f in fits.values())
    assert all(fits["true"]) and not any(fits["perturbed"])
    assert all(sum(fits[kind]) / len(fits[kind]) < 0.05 for kind in ("mismatched", "crawled"))
    assert all(r["truth"] == (r["kind"] == "true") for r in rows)


def test_more_perturbed_texts_than_captions_and_none_twice(halves):
    rows = [r for r in plant(halves[0], per_image=12, seed=0).to_pylist() if r["kind"] == "perturbed"]
    by_picture = {p.key: [r["text"] for r in rows if r["key"] == p.key] for p in halves[0]}
    assert sum(len(texts) > 5 for texts in by_picture.values()) > len(by_picture) / 2
    assert all(len(texts) == len(set(texts)) <= 12 for texts in by_picture.values())


def test_texts_of_the_crawl_are_drawn_once_and_by_seed(ingested):
    generation = ingested / "generations/g0"
    web = [r["text"] for r in read_tables(generation).to_pylist() if r["source"] == "web" and r["text"]]  # one picture has none
    all_texts, few = crawl_texts(generation, count=10_000, seed=0), crawl_texts(generation, count=20, seed=0)
    assert sorted(all_texts) == sorted(web) and few == all_texts[:20] and few != crawl_texts(generation, count=20, seed=1)


def test_without_texts_of_the_crawl_none_are_planted(halves):
    assert {r["kind"] for r in plant(halves[0], per_image=2, seed=0).to_pylist()} == set(KINDS) - {"crawled"}


def test_perturbing_changes_one_describing_word(halves):
    substitutes = Substitutes.learn(halves[0] + halves[1])
    assert {"red", "ball"} <= substitutes.describing and not {"and", "with", "a"} & substitutes.describing
    originals = {p.key: p.texts for p in halves[0]}
    for row in plant(halves[0], per_image=2, seed=1).to_pylist():
        if row["kind"] == "perturbed":
            distances = [
                sum(a != b for a, b in zip(row["text"].split(), t.split(), strict=True))
                for t in originals[row["key"]]
                if len(t.split()) == len(row["text"].split())
            ]
            assert 1 in distances


def test_planting_is_repeatable_and_moves_with_the_seed(halves):
    assert plant(halves[0], per_image=2, seed=0).equals(plant(halves[0], per_image=2, seed=0))
    assert not plant(halves[0], per_image=2, seed=0).equals(plant(halves[0], per_image=2, seed=1))


def test_mismatched_texts_are_of_pictures_near_by_where_there_are_many(halves, monkeypatch):
    """By key, so that no picture needs a look at all the others; where there are few, all of them are near."""
    items = halves[0]
    owners = {text: {i for i, p in enumerate(items) if text in p.texts} for p in items for text in p.texts}
    assert len(items) < controls._NEIGHBOURS
    monkeypatch.setattr(controls, "_NEIGHBOURS", 10)
    places, rows = {p.key: i for i, p in enumerate(items)}, plant(items, per_image=3, seed=0).to_pylist()
    distances = [min(abs(places[r["key"]] - i) for i in owners[r["text"]]) for r in rows if r["kind"] == "mismatched"]
    assert len(distances) == 3 * len(items) and 0 < min(distances) and max(distances) <= 10
    assert len(set(distances)) > 4


@pytest.mark.parametrize(
    ("own", "other", "perturbed"),
    [
        (["A Red ball", "A Red ball here"], ["A blue ball", "A blue ball here"], {"A Blue ball", "A Blue ball here"}),
        (["一个红色的球", "一个红色的球在草地上"], ["一个蓝色的球", "一个蓝色的球在草地上"], {"一个蓝色的球", "一个蓝色的球在草地上"}),
    ],
    ids=["case is kept", "characters are words"],
)
def test_perturbing_goes_by_the_script(own, other, perturbed):
    pictures = [Picture(key=f"k{i}", image_id=f"k{i}", shard="val-00000", texts=texts) for i, texts in enumerate([own, other] * 2)]
    rows = plant(pictures, per_image=2, seed=0).to_pylist()
    assert {r["text"] for r in rows if r["kind"] == "perturbed" and r["key"] == "k0"} == perturbed
