"""The texts of the built-in sample world: human captions, web texts with known faults, and the checker that says which are true.

Start at `human_captions`, `web_text` and `is_true`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from blip_core.config.sample import WebKind
from blip_core.sample.scenes import COLOURS, SHAPES, Scene, draw_scene

T = TypeVar("T")
TRUE_KINDS = ("clean", "terse")  # of web texts
NUM_HUMAN_CAPTIONS = 5

PREFIXES = ("", "", "there is", "a photo of")
JOINERS = ("and", "next to", "with", "near", "beside")
BACKGROUND_PHRASES = {
    "grass": ("on grass", "on the grass", "on a lawn"),
    "sand": ("on sand", "on the sand", "at the beach"),
    "sky": ("in the sky", "up in the sky"),
    "night": ("at night", "in the dark"),
    "snow": ("in the snow", "on snow"),
}
BACKGROUND_WORDS = {
    "grass": "grass",
    "lawn": "grass",
    "sand": "sand",
    "beach": "sand",
    "sky": "sky",
    "night": "night",
    "dark": "night",
    "snow": "snow",
}
FOREIGN_COLOURS = ("black", "white", "grey", "gray", "brown", "pink", "gold", "silver", "violet", "cyan")  # nothing here has them
BOILERPLATE = (
    "click here to enlarge",
    "free shipping on all orders",
    "image not available",
    "img {n} jpg",
    "dsc {n}",
    "photo {n} of {n}",
    "home page",
    "buy now best price",
    "click to see more",
    "all rights reserved",
    "stock photo {n}",
    "sign up for our newsletter",
    "product view {n}",
    "untitled",
    "share on social media",
    "loading please wait",
)
BOILERPLATE_NUMBERS = (1, 2, 3, 4, 5, 12, 24, 36, 100, 2023)
GENERAL = (
    "a thing",
    "an object",
    "a nice picture",
    "something {place}",
    "a toy {place}",
    "two things",
    "some objects {place}",
    "a cute toy",
    "a view {place}",
)


@dataclass(frozen=True)
class Claims:
    """What a text says: (shape, its colours) for each thing it names, and the backgrounds it names."""

    things: tuple[tuple[str, frozenset[str]], ...]
    backgrounds: frozenset[str]


def claims(text: str) -> Claims:
    """Read a text in any word order. A colour belongs to the thing of its own phrase (phrases end at "and", "with", a comma ..):
    the next one, else the one before; in a phrase without a thing, to the next phrase's. Unknown words claim nothing."""
    things: list[tuple[str, set[str]]] = []
    backgrounds: set[str] = set()
    waiting: set[str] = set()  # colours whose thing has not come yet
    for phrase in re.split(r"[,;.]|\b(?:and|with|near|beside|by|next)\b", text.lower()):
        num_before = len(things)
        for word in re.findall(r"[a-z]+", phrase):
            if word in SHAPES:
                things.append((word, waiting))
                waiting = set()
            elif word in COLOURS or word in FOREIGN_COLOURS:
                waiting = waiting | {word}
            elif word in BACKGROUND_WORDS:
                backgrounds.add(BACKGROUND_WORDS[word])
        if waiting and len(things) > num_before:
            things[-1][1].update(waiting)
            waiting = set()
    if waiting and things:
        things[-1][1].update(waiting)
    return Claims(tuple((shape, frozenset(colours)) for shape, colours in things), frozenset(backgrounds))


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


def human_captions(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Five different true captions."""
    captions: list[str] = []
    while len(captions) < NUM_HUMAN_CAPTIONS:
        caption = _human(rng, _human_mentions(rng, scene), scene.background)
        if caption not in captions:
            captions.append(caption)
    return captions


def web_text(rng: np.random.Generator, scene: Scene, kinds: Mapping[WebKind, float]) -> tuple[str, str]:
    """(kind, text): what a crawl has for the picture, true for TRUE_KINDS only. `kinds`: their shares."""
    kind = _pick_kind(rng, kinds)
    return kind, text_of_kind(rng, scene, kind)


def text_of_kind(rng: np.random.Generator, scene: Scene, kind: str) -> str:
    return _WRITERS[kind](rng, scene)


@dataclass(frozen=True)
class _Mention:
    shape: str
    colour: str | None

    def words(self) -> str:
        return f"{self.colour} {self.shape}" if self.colour else self.shape

    def with_article(self) -> str:
        words = self.words()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


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


def _human(rng: np.random.Generator, mentions: list[_Mention], background: str) -> str:
    things = f" {_pick(rng, JOINERS)} ".join(mention.with_article() for mention in mentions)
    place = _pick(rng, BACKGROUND_PHRASES[background]) if rng.random() < 0.6 else ""
    return _sentence(_pick(rng, PREFIXES), things, place)


def _terse(rng: np.random.Generator, mentions: list[_Mention], background: str) -> str:
    first = mentions[0].with_article() if rng.random() < 0.5 else mentions[0].words()
    things = f" {_pick(rng, ('and', 'with'))} ".join([first] + [mention.words() for mention in mentions[1:]])
    place = BACKGROUND_PHRASES[background][0] if rng.random() < 0.35 else ""
    return _sentence(things, place)


def _sentence(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _write_clean(rng: np.random.Generator, scene: Scene) -> str:
    return _human(rng, _human_mentions(rng, scene), scene.background)


def _write_terse(rng: np.random.Generator, scene: Scene) -> str:
    return _terse(rng, _terse_mentions(rng, scene), scene.background)


def _write_mismatch(rng: np.random.Generator, scene: Scene) -> str:
    """The text of another picture, of which nothing says that it is wrong but the picture."""
    while True:
        text = _pick(rng, (_write_clean, _write_terse))(rng, draw_scene(rng))
        if not is_true(scene, text):
            return text


def _write_partial(rng: np.random.Generator, scene: Scene) -> str:
    """Right but for one colour or one shape."""
    human = rng.random() < 0.5
    mentions = (_human_mentions if human else _terse_mentions)(rng, scene)
    at = int(rng.integers(len(mentions)))
    mentions[at] = _corrupted(rng, mentions[at], scene)
    return (_human if human else _terse)(rng, mentions, scene.background)


def _corrupted(rng: np.random.Generator, mention: _Mention, scene: Scene) -> _Mention:
    if mention.colour and rng.random() < 0.5:
        return replace(mention, colour=_pick(rng, [colour for colour in COLOURS if colour != mention.colour]))
    shown = [thing.shape for thing in scene.things]
    return replace(mention, shape=_pick(rng, [shape for shape in SHAPES if shape not in shown]))


def _write_boilerplate(rng: np.random.Generator, scene: Scene) -> str:
    return re.sub(r"\{n\}", lambda _: str(_pick(rng, BOILERPLATE_NUMBERS)), _pick(rng, BOILERPLATE))


def _write_general(rng: np.random.Generator, scene: Scene) -> str:
    return _pick(rng, GENERAL).format(place=_pick(rng, BACKGROUND_PHRASES[scene.background]))


_WRITERS = {
    "clean": _write_clean,
    "terse": _write_terse,
    "mismatch": _write_mismatch,
    "boilerplate": _write_boilerplate,
    "partial": _write_partial,
    "general": _write_general,
}
