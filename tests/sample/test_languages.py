"""The sample world in Spanish and Chinese: grammar, accents, and texts that are as true as the English ones."""

import re
import tarfile
import unicodedata

import numpy as np
import pytest

from blip_core.sample.languages import ENGLISH, LANGUAGES, SPANISH
from blip_core.sample.scene_texts import TRUE_KINDS, claims, human_captions, is_true, web_text
from blip_core.sample.scenes import BACKGROUNDS, COLOURS, SHAPES, draw_scene
from blip_core.sample.write import write_sample
from tests.support.small import sample_config

WEB_KINDS = sample_config().web_kinds


@pytest.mark.parametrize(
    ("shape", "colour", "said"),
    [
        ("ball", "red", "una pelota roja"),
        ("tree", "red", "un árbol rojo"),
        ("heart", "purple", "un corazón morado"),
        ("moon", "yellow", "una luna amarilla"),
        ("fish", "orange", "un pez naranja"),
        ("flower", "blue", "una flor azul"),
        ("cross", None, "una cruz"),
    ],
)
def test_spanish_agrees_in_gender(shape, colour, said):
    assert SPANISH.phrase(shape, colour, True) == said and SPANISH.phrase(shape, colour, False) == said.split(" ", 1)[1]


@pytest.mark.parametrize(
    ("text", "things", "backgrounds"),
    [
        ("una pelota roja junto a un árbol verde en la playa", (("ball", {"red"}), ("tree", {"green"})), {"sand"}),
        ("Una pelota y un arbol verde", (("ball", set()), ("tree", {"green"})), set()),
        ("corazón negro de noche", (("heart", {"negro"}),), {"night"}),
        ("一个红色的球旁边是一棵绿色的树在海滩上", (("ball", {"red"}), ("tree", {"green"})), {"sand"}),
        ("绿色星星和风筝", (("star", {"green"}), ("kite", set())), set()),
        ("黑色的船", (("boat", {"黑色"}),), set()),
    ],
)
def test_claims_are_read_in_every_language(text, things, backgrounds):
    found = claims(text)
    assert [(shape, set(colours)) for shape, colours in found.things] == [(shape, colours) for shape, colours in things]
    assert found.backgrounds == backgrounds


@pytest.mark.parametrize("name", ["es", "zh"])
def test_texts_are_as_true_as_the_english_ones_of_the_same_draws(name):
    language = LANGUAGES[name]
    for number in range(800):
        rng, same = (np.random.Generator(np.random.PCG64([7, number])) for _ in range(2))
        scene = draw_scene(rng)
        kind, text = web_text(rng, scene, WEB_KINDS, language)
        english_kind, english = web_text(same, draw_scene(same), WEB_KINDS)
        assert kind == english_kind and is_true(scene, text) == (kind in TRUE_KINDS), (scene, kind, text)
        assert claims(text) == claims(english) or kind == "general", (text, english)
        captions = human_captions(rng, scene, language)
        assert len(set(captions)) == 5 and all(is_true(scene, caption) for caption in captions), (scene, captions)
        assert not set(re.findall("[a-z]+", " ".join(captions))) & {*SHAPES, *COLOURS, "the", "on"}


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_a_language_has_a_word_for_everything(language):
    assert set(language.shapes.values()) == set(SHAPES) and set(language.colours.values()) == {*COLOURS, ""}
    assert set(language.places) == set(language.backgrounds.values()) == set(BACKGROUNDS)
    for field in ("prefixes", "joiners", "terse_joiners", "boilerplate", "general"):
        assert len(getattr(language, field)) == len(getattr(ENGLISH, field)), field
    for background, phrases in language.places.items():
        assert len(phrases) == len(ENGLISH.places[background])
        assert all(claims(phrase).backgrounds == {background} and not claims(phrase).things for phrase in phrases)
    for text in (*language.boilerplate, *language.general):
        assert not claims(text).things and unicodedata.is_normalized("NFC", text)


def test_the_files_hold_the_language(tmp_path):
    write_sample(tmp_path / "data", sample_config(seed=5, language="zh", num_web=12, num_train=4, num_val=2, num_test=2))
    with tarfile.open(tmp_path / "data/web/00000.tar") as tar:
        texts = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    assert any(re.search(r"[\u4e00-\u9fff]", text) for text in texts)
