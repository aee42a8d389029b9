"""The texts of the built-in sample world: human captions, web texts with known faults, and the checker that says which are true.

Start at `human_captions`, `web_text` and `is_true`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from blip_core.config.sample import WebKind
from blip_core.sample.languages import ENGLISH, LANGUAGES, Language
from blip_core.sample.scenes import COLOURS, SHAPES, Scene, draw_scene

T = TypeVar("T")
TRUE_KINDS = ("clean", "terse")  # of web texts
NUM_HUMAN_CAPTIONS = 5

BOILERPLATE_NUMBERS = (1, 2, 3, 4, 5, 12, 24, 36, 100, 2023)


@dataclass(frozen=True)
class Claims:
    """What a text says: (shape, its colours) for each thing it names, and the backgrounds it names."""

    things: tuple[tuple[str, frozenset[str]], ...]
    backgrounds: frozenset[str]


def claims(text: str) -> Claims:
    """Read a text in any word order, in any language of languages.py, with accents or without. A colour belongs to the thing of its own
    phrase (phrases end at "and", "with", a comma ..): the next one, else the one before; in a phrase without a thing, to the next
    phrase's. Unknown words claim nothing."""
    things: list[tuple[str, set[str]]] = []
    backgrounds: set[str] = set()
    waiting: set[str] = set()  # colours whose thing has not come yet
    for phrase in _BREAK.split(_plain(text)):
        num_before = len(things)
        for word in _WORD.findall(phrase):
            if word in _SHAPES:
                things.append((_SHAPES[word], waiting))
                waiting = set()
            elif word in _COLOURS:
                waiting = waiting | {_COLOURS[word] or word}
            elif word in _BACKGROUNDS:
                backgrounds.add(_BACKGROUNDS[word])
        if waiting and len(things) > num_before:
            things[-1][1].update(waiting)
            waiting = set()
    if waiting and things:
        things[-1][1].update(waiting)
    return Claims(tuple((shape, frozenset(colours)) for shape, colours in things), frozenset(backgrounds))


def _plain(text: str) -> str:
    """In lower case, without accents: a vocabulary may have dropped them."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")


def _of_all(kind: str) -> dict[str, str]:
    return {_plain(word): name for language in LANGUAGES.values() for word, name in getattr(language, kind).items()}


_SHAPES, _COLOURS, _BACKGROUNDS = (_of_all(kind) for kind in ("shapes", "colours", "backgrounds"))
_UNSPACED = [re.escape(word) for word in [*_SHAPES, *_COLOURS, *_BACKGROUNDS] if not word.isascii()]
_WORD = re.compile("|".join(["[a-z]+", *sorted(_UNSPACED, key=len, reverse=True)]))
_ENDS = [rf"\b{word}\b" if word.isascii() else word for language in LANGUAGES.values() for word in language.breaks]
_BREAK = re.compile("|".join(["[,;.，。]", *_ENDS]))


def is_true(scene: Scene, text: str) -> bool:
    """Whether a text names a shape and everything it claims holds. Naming one of two things is enough; naming a thing twice
    claims two of them."""
    said = claims(text)
    colour_of = {thing.shape: thing.colour for thing in scene.things}
    shapes = [shape for shape, _ in said.things]
    return (
        len(shapes) > 0
        and len(set(shapes)) == len(shapes)
        and all(shape in colour_of and colours <= {colour_of[shape]} for shape, colours in said.things)
        and said.backgrounds <= {scene.background}
    )


def human_captions(rng: np.random.Generator, scene: Scene, language: Language = ENGLISH) -> list[str]:
    """Five different true captions."""
    captions: list[str] = []
    while len(captions) < NUM_HUMAN_CAPTIONS:
        caption = _human(rng, _human_mentions(rng, scene), scene.background, language)
        if caption not in captions:
            captions.append(caption)
    return captions


def web_text(rng: np.random.Generator, scene: Scene, kinds: Mapping[WebKind, float], language: Language = ENGLISH) -> tuple[str, str]:
    """(kind, text): what a crawl has for the picture, true for TRUE_KINDS only. `kinds`: their shares."""
    kind = _pick_kind(rng, kinds)
    return kind, text_of_kind(rng, scene, kind, language)


def text_of_kind(rng: np.random.Generator, scene: Scene, kind: str, language: Language = ENGLISH) -> str:
    return _WRITERS[kind](rng, scene, language)


@dataclass(frozen=True)
class _Mention:
    shape: str
    colour: str | None


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _pick_kind(rng: np.random.Generator, kinds: Mapping[WebKind, float]) -> str:
    rest = rng.random()
    for kind, share in kinds.items():
        rest -= share
        if rest < 0:
            return kind
    return kind


def _mentions(rng: np.random.Generator, scene: Scene, *, both: float, colour: float) -> list[_Mention]:
    """The scene's things in random order: with probability `both` all of them, else one; each with probability `colour` coloured."""
    things = list(scene.things)
    if len(things) == 2 and rng.random() < 0.5:
        things.reverse()
    if rng.random() >= both:
        things = things[:1]
    return [_Mention(thing.shape, thing.colour if rng.random() < colour else None) for thing in things]


def _human_mentions(rng: np.random.Generator, scene: Scene) -> list[_Mention]:
    return _mentions(rng, scene, both=0.85, colour=0.95)


def _terse_mentions(rng: np.random.Generator, scene: Scene) -> list[_Mention]:
    return _mentions(rng, scene, both=0.6, colour=0.85)


def _human(rng: np.random.Generator, mentions: list[_Mention], background: str, language: Language) -> str:
    joiner = f"{language.space}{_pick(rng, language.joiners)}{language.space}"
    things = joiner.join(language.phrase(m.shape, m.colour, True) for m in mentions)
    place = _pick(rng, language.places[background]) if rng.random() < 0.6 else ""
    return language.sentence(_pick(rng, language.prefixes), things, place)


def _terse(rng: np.random.Generator, mentions: list[_Mention], background: str, language: Language) -> str:
    article = rng.random() < 0.5
    joiner = f"{language.space}{_pick(rng, language.terse_joiners)}{language.space}"
    things = joiner.join(language.phrase(m.shape, m.colour, article and m is mentions[0]) for m in mentions)
    place = language.places[background][0] if rng.random() < 0.35 else ""
    return language.sentence(things, place)


def _write_clean(rng: np.random.Generator, scene: Scene, language: Language) -> str:
    return _human(rng, _human_mentions(rng, scene), scene.background, language)


def _write_terse(rng: np.random.Generator, scene: Scene, language: Language) -> str:
    return _terse(rng, _terse_mentions(rng, scene), scene.background, language)


def _write_mismatch(rng: np.random.Generator, scene: Scene, language: Language) -> str:
    """The text of another picture, of which nothing says that it is wrong but the picture."""
    while True:
        text = _pick(rng, (_write_clean, _write_terse))(rng, draw_scene(rng), language)
        if not is_true(scene, text):
            return text


def _write_partial(rng: np.random.Generator, scene: Scene, language: Language) -> str:
    """Right but for one colour or one shape."""
    human = rng.random() < 0.5
    mentions = (_human_mentions if human else _terse_mentions)(rng, scene)
    at = int(rng.integers(len(mentions)))
    mentions[at] = _corrupted(rng, mentions[at], scene)
    return (_human if human else _terse)(rng, mentions, scene.background, language)


def _corrupted(rng: np.random.Generator, mention: _Mention, scene: Scene) -> _Mention:
    if mention.colour and rng.random() < 0.5:
        return replace(mention, colour=_pick(rng, [colour for colour in COLOURS if colour != mention.colour]))
    shown = [thing.shape for thing in scene.things]
    return replace(mention, shape=_pick(rng, [shape for shape in SHAPES if shape not in shown]))


def _write_boilerplate(rng: np.random.Generator, scene: Scene, language: Language) -> str:
    return re.sub(r"\{n\}", lambda _: str(_pick(rng, BOILERPLATE_NUMBERS)), _pick(rng, language.boilerplate))


def _write_general(rng: np.random.Generator, scene: Scene, language: Language) -> str:
    return _pick(rng, language.general).format(place=_pick(rng, language.places[scene.background]))


_WRITERS = {
    "clean": _write_clean,
    "terse": _write_terse,
    "mismatch": _write_mismatch,
    "boilerplate": _write_boilerplate,
    "partial": _write_partial,
    "general": _write_general,
}
