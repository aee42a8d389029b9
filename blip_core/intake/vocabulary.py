"""The vocabulary that all models of a chain share: the one that is named, or one of the texts; and whether it fits the texts."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blip_core.config.intake import IngestConfig
from blip_core.files.atomic import new_file
from blip_core.tables.captions import kept, read_table, table_paths
from blip_core.tokenizer.build import build_tokenizer
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LOOKED_AT = 1000  # texts of a table, evenly over it, that the vocabulary is tried on
TELLING = 0.01  # share of the texts that lose accents from which on it is said
_EXAMPLES = 3


@dataclass
class Fit:
    """What a vocabulary makes of texts."""

    texts: int = 0
    tokens: int = 0
    unknown: Counter[str] = field(default_factory=Counter)  # what became [UNK]
    with_unknown: list[str] = field(default_factory=list)
    stripped: int = 0  # texts that lose accents
    with_stripped: tuple[str, str] | None = None  # such a text, and what is left of it

    @property
    def unknown_share(self) -> float:
        return self.unknown.total() / max(1, self.tokens)

    def add(self, tokenizer: Tokenizer, text: str) -> None:
        tokens, unknown = tokenizer.unknown(text)
        self.texts, self.tokens = self.texts + 1, self.tokens + tokens
        self.unknown.update(unknown)
        if unknown and len(self.with_unknown) < _EXAMPLES:
            self.with_unknown.append(text)
        if not text.isascii() and _accents(seen := tokenizer.seen(text)) < _accents(text):
            self.stripped += 1
            self.with_stripped = self.with_stripped or (text, " ".join(seen.split()))


def write_vocabulary(generation: Path, out: Path, cfg: IngestConfig) -> dict[str, float]:
    """Write `out`, a tokenizer.json, by rename; metrics of it. ValueError where it doesn't fit the texts of the generation.

    One is built of them alone: a word that only the held-out texts use must not have an entry."""
    if cfg.vocab is None:
        tokenizer, name = build_tokenizer(_texts(generation), cfg.vocab_kind, cfg.vocab_size), "the vocabulary that was built"
    else:
        tokenizer, name = load_tokenizer(cfg.vocab), str(cfg.vocab)
    fit = Fit()
    for text in _texts(generation, most=LOOKED_AT):
        fit.add(tokenizer, text)
    _check(fit, name, cfg)
    if fit.with_stripped and fit.stripped >= TELLING * fit.texts:
        before, after = fit.with_stripped
        remedy = "ingest.vocab_kind: accents, cased or bytes keeps them" if cfg.vocab is None else "name one that keeps them"
        share = fit.stripped / fit.texts
        log.warning("%s drops the accents of %.1f %% of the texts, as %r, read as %r; %s", name, 100 * share, before, after, remedy)
    with new_file(out) as temporary:
        tokenizer.save(temporary)
    return {"vocabulary": tokenizer.size, "unknown_share": round(fit.unknown_share, 6)}


def _texts(generation: Path, *, most: int | None = None) -> Iterator[str]:
    for path in table_paths(generation):
        texts = kept(read_table(path, ["text", "reason"]))["text"].to_pylist()
        yield from texts if most is None else texts[:: -(-len(texts) // most) or 1]


def _check(fit: Fit, name: str, cfg: IngestConfig) -> None:
    if fit.unknown_share <= cfg.max_unknown:
        return
    words = ", ".join(repr(word) for word, _ in fit.unknown.most_common(2 * _EXAMPLES))
    remedy = (
        "Set ingest.vocab_kind: bytes, which lacks nothing, or a larger ingest.vocab_size"
        if cfg.vocab is None
        else "Name the tokenizer of a model in the texts' language in ingest.vocab, or null to build one of the texts"
    )
    raise ValueError(
        f"{name}: {fit.unknown_share:.1%} of the tokens of {fit.texts:,} texts are unknown to it, more than ingest.max_unknown = "
        f"{cfg.max_unknown:g}: most often {words}; as in {_quoted(fit.with_unknown)}. {remedy}"
    )


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(repr(text if len(text) <= 80 else f"{text[:77]}...") for text in texts)


def _accents(text: str) -> int:
    return sum(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", text))
