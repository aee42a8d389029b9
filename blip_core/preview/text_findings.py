"""What the screens would say of texts, counted as they go by: for `inspect`."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from blip_core.config.screens import WebScreensConfig
from blip_core.texts.screens import UNKNOWN, by_text, language, loops, normalised

_SHOWN = 4  # texts as examples of what a screen hits
_BATCH = 1000
_LANGUAGES = 8
WIDE = 72


@dataclass
class TextFindings:
    """What the screens say of the texts, all of them on. Repeated texts are counted by hash; `shown` has those that came twice."""

    cfg: WebScreensConfig
    max_repeat: int
    total: int = 0
    words: Counter[int] = field(default_factory=Counter)  # how many texts have so many words
    languages: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, None]] = field(default_factory=dict)
    images: Counter[int] = field(default_factory=Counter)  # hash of a normalised text -> at how many images it stands
    shown: dict[int, str] = field(default_factory=dict)
    batch: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.each = by_text(self.cfg)

    def add(self, texts: list[str]) -> None:
        """The texts of one image, as they were found."""
        self.total += len(texts)
        self.batch.append(texts)
        for text in texts:
            self.words[len(text.split())] += 1
            self.languages[language(text, self.cfg.min_confidence)] += 1
            for name, hit in self.each.items():
                if hit(text):
                    self._hit(name, text)
        if len(self.batch) == _BATCH:
            self.flush()

    def flush(self) -> None:
        """What is quicker for many texts at once."""
        words = normalised(pa.chunked_array([pa.array([t for texts in self.batch for t in texts], pa.string())]))
        looping, own = set(loops(words, self.max_repeat).to_pylist()), iter(words.to_pylist())
        for texts in self.batch:
            said = [(next(own), text) for text in texts]
            for word, text in said:
                if word in looping:
                    self._hit("repeats", text)
            for word, text in dict(said).items():
                digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
                self.images[digest] += 1
                if self.images[digest] == 2:
                    self.shown[digest] = text
        self.batch = []

    def boilerplate(self, limit: float) -> tuple[int, list[tuple[str, int]]]:
        """How many images have a text that stands at more than `limit` of them, and the most frequent texts."""
        repeated = sorted(((self.images[d], text) for d, text in self.shown.items()), key=lambda r: (-r[0], r[1]))
        return sum(n for n, _ in repeated if n > limit), [(text, n) for n, text in repeated[:_SHOWN]]

    def _hit(self, name: str, text: str) -> None:
        self.hits[name] += 1
        if len(own := self.examples.setdefault(name, {})) < _SHOWN:
            own[text] = None


def screen_lines(told: TextFindings, screens: WebScreensConfig, *, images: int, part: float | None) -> list[str]:
    """What the screens would hit at so many images, whether they are on or not. `part`: of the whole, where these are a sample; a limit in
    images is of the whole, and a sample holds its share of them."""
    languages = [f"{code} {n}" for code, n in told.languages.most_common(_LANGUAGES)]
    languages += [f"{len(told.languages) - _LANGUAGES} more"] * (len(told.languages) > _LANGUAGES)
    limit = int(max(1, min(screens.max_share * images, (screens.max_images or math.inf) * (part or 1))))
    count, frequent = told.boilerplate(limit)
    often = f"; most often {', '.join(f'{short(text, 40)!r} {n}' for text, n in frequent)}" if frequent else ""
    lines = [
        f"languages    {', '.join(languages)} ({UNKNOWN}: too short to tell)",
        "screens      would hit of a crawl's texts, where ingest.screens turns them on:",
        f"  {count:6d}  boilerplate: at more than {limit} of the {images} images{' looked at' if part else ''}{often}",
    ]
    for name in (*told.each, "repeats"):
        examples = f": {', '.join(repr(short(text, 40)) for text in told.examples.get(name, ()))}" if told.hits[name] else ""
        lines.append(f"  {told.hits[name]:6d}  {name}{examples}")
    if screens.languages:
        away = sum(n for code, n in told.languages.items() if code not in (*screens.languages, UNKNOWN))
        lines.append(f"  {away:6d}  language: in another than {', '.join(screens.languages)}")
    return lines


def short(text: str, most: int = WIDE) -> str:
    """On one line, and printable: names and texts come from an unknown hand."""
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * most].encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= most else text[: most - 1] + "…"
