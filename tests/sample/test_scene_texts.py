"""The sample world's texts are what their kind says, and the checker tells true from false."""

from collections import Counter

import numpy as np
import pytest

from blip_core.sample.languages import ENGLISH
from blip_core.sample.scene_texts import TRUE_KINDS, claims, human_captions, is_true, web_text
from blip_core.sample.scenes import BACKGROUNDS, COLOURS, Scene, Thing, draw_scene
from tests.support.small import sample_config

WEB_KINDS = sample_config().web_kinds


def thing(shape: str, colour: str) -> Thing:
    return Thing(shape, colour, side=22, left=1, top=1, shade=100)


RED_BALL_BLUE_STAR = Scene("grass", 100, (thing("ball", "red"), thing("star", "blue")))


def generators(num: int):
    return (np.random.Generator(np.random.PCG64([11, number])) for number in range(num))


@pytest.mark.parametrize(
    "text",
    [
        "a red ball and a blue star on grass",
        "on the grass a blue star next to a red ball",
        "there is a star",
        "red ball",
        "A Red Ball.",
        "ball red and star blue",
        "a ball and a blue star",
        "the star is blue",
        "a lawn with a red ball",
        "a red ball on top of a blue star",
    ],
)
def test_true_texts(text):
    assert is_true(RED_BALL_BLUE_STAR, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "xq zvb 17",
        "click here to enlarge",
        "a thing on grass",
        "on the grass",
        "a red",
        "a blue ball",
        "a blue ball and a red star",
        "a ball red and blue",
        "a red and blue ball",
        "a black ball",
        "a red ball in the snow",
        "a red ball on grass at night",
        "a red ball and a blue star and a green tree",
        "a tree",
        "a red ball and a red ball",
        "a red balloon",
    ],
)
def test_false_texts(text):
    assert not is_true(RED_BALL_BLUE_STAR, text)


def test_claims_bind_colours_to_their_own_thing():
    assert claims("a photo of an orange fish near a green car at night").things == (("fish", {"orange"}), ("car", {"green"}))
    assert claims("a fish and a green car").things == (("fish", frozenset()), ("car", {"green"}))
    assert claims("a fish at the beach, in the dark").backgrounds == {"sand", "night"}


def test_human_captions_are_five_different_and_true():
    for rng in generators(500):
        scene = draw_scene(rng)
        captions = human_captions(rng, scene)
        assert len(set(captions)) == 5
        assert all(is_true(scene, caption) for caption in captions), (scene, captions)


def test_human_captions_say_what_they_should_as_often_as_they_should():
    captions, two = [], []
    for rng in generators(2000):
        scene = draw_scene(rng)
        said = human_captions(rng, scene)
        captions += said
        two += said if len(scene.things) == 2 else []
    coloured = [bool(colours) for caption in captions for _, colours in claims(caption).things]
    assert np.mean(coloured) == pytest.approx(0.95, abs=0.02)
    assert np.mean([bool(claims(caption).backgrounds) for caption in captions]) == pytest.approx(0.6, abs=0.06)
    assert np.mean([len(claims(caption).things) == 1 for caption in two]) == pytest.approx(0.15, abs=0.03)


def test_web_texts_are_true_for_the_true_kinds_only_and_have_their_shares():
    kinds = Counter()
    num = 8000
    for rng in generators(num):
        scene = draw_scene(rng)
        kind, text = web_text(rng, scene, WEB_KINDS)
        kinds[kind] += 1
        assert is_true(scene, text) == (kind in TRUE_KINDS), (scene, kind, text)
    assert sum(WEB_KINDS.values()) == pytest.approx(1)
    for kind, share in WEB_KINDS.items():
        assert kinds[kind] / num == pytest.approx(share, abs=4 * (share * (1 - share) / num) ** 0.5)


def test_a_partial_text_is_wrong_in_one_claim():
    for rng in generators(3000):
        scene = draw_scene(rng)
        kind, text = web_text(rng, scene, WEB_KINDS)
        if kind == "partial":
            shown = {thing.shape: thing.colour for thing in scene.things}
            wrong = [shape not in shown or not colours <= {shown[shape]} for shape, colours in claims(text).things]
            assert sum(wrong) == 1 and claims(text).backgrounds <= {scene.background}, (scene, text)


def test_texts_other_than_claims_name_no_colour_shape_or_background_by_accident():
    """Boilerplate and general texts are false because they name no shape, not by luck of the scene."""
    for rng in generators(3000):
        kind, text = web_text(rng, draw_scene(rng), WEB_KINDS)
        if kind in ("boilerplate", "general"):
            assert not claims(text).things
        if kind == "boilerplate":
            assert not claims(text).backgrounds and not set(text.split()) & set(COLOURS)


def test_every_background_phrase_is_understood():
    assert set(ENGLISH.places) == set(BACKGROUNDS) == set(ENGLISH.backgrounds.values())
    for background, phrases in ENGLISH.places.items():
        assert all(claims(phrase).backgrounds == {background} for phrase in phrases)
