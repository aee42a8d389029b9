"""Planted pairs whose truth is known, made of held-out clean pairs: they calibrate the filter, and scored blind among the
crawl's texts they tell how much noise it lets pass.

true        a caption of the picture itself
mismatched  a caption of another picture
crawled     a text of the crawl, which belongs to some other picture: mismatches as they are worded there, and its boilerplate. One that
            fits by chance makes the noise seem to pass more often, which errs to the safe side
perturbed   a caption of the picture with one describing word replaced by one that fits the sentence
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.files.content import hash64
from blip_core.tables.captions import SCHEMA
from blip_core.tables.heldout import Picture
from blip_core.texts import scripts

KINDS = ("true", "mismatched", "crawled", "perturbed")
_WORD = re.compile(rf"[{scripts.PYTHON}]|[^\s{scripts.PYTHON}]+")
_TRIES = 4  # to find one more perturbed text
_NEIGHBOURS = 4096  # pictures around one, by key, among which a mismatched text is sought: to shuffle all for each would be quadratic


def plant(items: list[Picture], *, per_image: int, seed: int, crawl: Sequence[str] = ()) -> pa.Table:
    """`per_image` pairs of each kind for each picture, as rows of SCHEMA with `shard`, `truth` and `kind`.

    `crawl`: texts of the crawl, as many as pairs of the kind crawled are wanted; without any there are none of this kind.
    A picture with fewer captions gives fewer true pairs; one for which no replacement is known gives no perturbed pair.
    """
    substitutes = Substitutes.learn(items)
    rows = []
    for i, picture in enumerate(items):
        draw = np.random.default_rng([seed, hash64(picture.image_id) & 0xFFFFFFFF])
        own = [picture.texts[j] for j in draw.permutation(len(picture.texts))[:per_image]]
        false = {
            "mismatched": _other_texts(items, i, per_image, draw),
            "crawled": [t for t in crawl[i * per_image : (i + 1) * per_image] if t not in picture.texts],
            "perturbed": _perturbed(substitutes, own, picture, per_image, draw),
        }
        for kind, texts in {"true": own, **false}.items():
            rows += [_row(picture, text, kind, n) for n, text in enumerate(texts)]
    columns = {name: [r.get(name) for r in rows] for name in [*SCHEMA.names, "shard", "truth", "kind"]}
    extra = [pa.field("shard", pa.string()), pa.field("truth", pa.bool_()), pa.field("kind", pa.string())]
    return pa.table(columns, schema=pa.schema([*SCHEMA, *extra]))


def _row(picture: Picture, text: str, kind: str, number: int) -> dict[str, Any]:
    names = {"source": "human", "round": "", "candidate": number, "model": "", "sampler": "", "filter": "", "reason": ""}
    return {
        "key": picture.key,
        "image_id": picture.image_id,
        "text": text,
        **names,
        "shard": picture.shard,
        "truth": kind == "true",
        "kind": kind,
    }


def _other_texts(items: list[Picture], own: int, count: int, draw: np.random.Generator) -> list[str]:
    """Captions of other pictures that are none of this picture's own."""
    texts: list[str] = []
    start = max(0, min(own - _NEIGHBOURS // 2, len(items) - _NEIGHBOURS))
    for other in start + draw.permutation(min(len(items), _NEIGHBOURS)):
        if len(texts) == count:
            break
        text = items[other].texts[int(draw.integers(len(items[other].texts)))]
        if other != own and text not in items[own].texts:
            texts.append(text)
    return texts


def _perturbed(substitutes: "Substitutes", own: list[str], picture: Picture, count: int, draw: np.random.Generator) -> list[str]:
    """So many different ones, the captions taking turns; fewer where they can't be found."""
    found: dict[str, None] = {}
    for turn in range(_TRIES * count):
        text = substitutes.perturb(own[turn % len(own)], picture, draw)
        if text is not None:
            found[text] = None
        if len(found) == count:
            break
    return list(found)


class Substitutes:
    """Which words can stand for which, learnt from captions alone: words met between the same neighbours.

    Only describing words are exchanged: those that recur in the captions of a picture once one of them has the word (names of
    things and colours do, "with" and "near" do not) and that most pictures do without ("a" they do not).
    """

    def __init__(self, fitting: dict[tuple[str, str], set[str]], describing: set[str]):
        self.fitting, self.describing = fitting, describing  # by the neighbours, the describing words that were met between them

    @classmethod
    def learn(cls, items: list[Picture]) -> "Substitutes":
        met: dict[tuple[str, str], set[str]] = defaultdict(set)
        shares: dict[str, list[float]] = defaultdict(list)
        for picture in items:
            words = [_words(t) for t in picture.texts]
            for word in {w for text in words for w in text}:
                shares[word].append(sum(word in text for text in words) / len(words))
            for text in words:
                for left, word, right in zip(["<", *text], text, [*text[1:], ">"], strict=False):
                    met[left, right].add(word)
        describing = {w for w, s in shares.items() if np.mean(s) >= 0.5 and 1 < len(s) <= len(items) / 2}
        return cls({between: words & describing for between, words in met.items()}, describing)

    def perturb(self, text: str, picture: Picture, draw: np.random.Generator) -> str | None:
        """The text, its capitals as they are, with one word replaced by a describing word that no caption of the picture has; None when
        there is none."""
        words, spans = _words(text), [found.span() for found in _WORD.finditer(text)]
        own = {w for t in picture.texts for w in _words(t)}
        for place in draw.permutation(len(words)):
            context = (words[place - 1] if place else "<", words[place + 1] if place + 1 < len(words) else ">")
            if words[place] in self.describing:
                fitting = sorted(self.fitting.get(context, set()) - own)
                if fitting:
                    chosen, (start, end) = fitting[int(draw.integers(len(fitting)))], spans[place]
                    return text[:start] + (chosen.capitalize() if text[start].isupper() else chosen) + text[end:]
        return None


def _words(text: str) -> list[str]:
    """Without case; in scripts without spaces each character is one."""
    return [found.lower() for found in _WORD.findall(text)]
