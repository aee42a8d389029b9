"""Text to ids and back, by any tokenizer of the library `tokenizers`, with BLIP's two further tokens: [DEC] begins a caption, [ENC]
stands first in an image-text pair. What the tokenizer lacks of the two follows behind its last entry, as in the public checkpoints (30522
and 30523 behind BERT's).

Case, accents and Unicode forms are as the tokenizer says. On disk it is one tokenizer.json, which names the special tokens as well.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

ROLE_TOKENS = ("[DEC]", "[ENC]")
# what BERT's tokenizer parts or spells by pieces though it is written without spaces: Han, kana, their punctuation, full-width signs
_CJK = "\u2e80-\u2fdf\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_PARTED = re.compile(rf"(?<=[{_CJK}]) (?=[{_CJK}])")
_UNSPACED = re.compile(rf"[{_CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # and Thai, Lao, Burmese, Khmer


@dataclass(frozen=True)
class Special:
    """Names of the tokens that pad, begin and end a text, and of the one for what the vocabulary lacks: null where it lacks nothing, as
    one over bytes."""

    pad: str
    cls: str
    sep: str
    unk: str | None


class Tokenizer:
    """`pad`, `cls`, `sep`, `dec`, `enc` and `unk` are ids, `size` is the number of entries, [DEC] and [ENC] among them."""

    def __init__(self, pieces: tokenizers.Tokenizer, special: Special):
        """ValueError unless the ids are 0 to their number less one: an embedding has a row for each."""
        self._pieces, self.special = pieces, special
        named = [special.pad, special.cls, special.sep, *([special.unk] if special.unk else [])]
        if missing := [token for token in named if pieces.token_to_id(token) is None]:
            raise ValueError(f"names {', '.join(missing)} as special tokens, which its vocabulary lacks; save the tokenizer anew")
        pieces.no_truncation()
        pieces.add_special_tokens([*named, *ROLE_TOKENS])
        pieces.encode_special_tokens = True  # a "[SEP]" within a crawled text is five plain characters, not the end of it
        ids = pieces.get_vocab(with_added_tokens=True)
        self.size = len(ids)
        if set(ids.values()) != set(range(self.size)):
            raise ValueError(f"the ids of its {self.size} entries are not 0 to {self.size - 1}; expected a tokenizer without gaps or twins")
        self.pad, self.cls, self.sep, self.dec, self.enc = (ids[t] for t in (special.pad, special.cls, special.sep, *ROLE_TOKENS))
        self.unk = ids[special.unk] if special.unk else None
        # both are read again from the file: nothing else in it says what pads, begins and ends a text
        pieces.enable_padding(pad_id=self.pad, pad_token=special.pad)
        pieces.post_processor = TemplateProcessing(
            single=[special.cls, "$A", special.sep], special_tokens=[(special.cls, self.cls), (special.sep, self.sep)]
        )
        self._hidden = {i for i, token in pieces.get_added_tokens_decoder().items() if token.special}
        self._forbidden = self._hidden - {self.unk}
        self._by_words = type(pieces.model).__name__ == "WordPiece"

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[tokenizers.Tokenizer, Special]]:
        """The library forgets `encode_special_tokens` on the way to another process."""
        return Tokenizer, (self._pieces, self.special)

    @cached_property
    def vocab(self) -> list[str]:
        """Its entries by id, [DEC] and [ENC] left out."""
        ids = self._pieces.get_vocab(with_added_tokens=True)
        return [token for token in sorted(ids, key=ids.__getitem__) if token not in ROLE_TOKENS]

    @property
    def mask(self) -> int | None:
        """The id of the token that hides a word; None where the vocabulary has none."""
        found = (self._pieces.token_to_id(name) for name in ("[MASK]", "<mask>"))
        return next((i for i in found if i is not None), None)

    def save(self, path: Path) -> None:
        """As a tokenizer.json."""
        path.write_text(self._pieces.to_str(pretty=True) + "\n", encoding="utf-8")

    def bert_options(self) -> dict[str, bool | None] | None:
        """What transformers' BertTokenizer wants to know to be the same; None where it can't be."""
        normal, parted = self._pieces.normalizer, self._pieces.pre_tokenizer
        if not (isinstance(normal, BertNormalizer) and isinstance(parted, BertPreTokenizer) and self._by_words and normal.clean_text):
            return None
        options = {"do_lower_case": normal.lowercase, "strip_accents": normal.strip_accents}
        return {**options, "tokenize_chinese_chars": normal.handle_chinese_chars}

    def encode(self, text: str, *, max_tokens: int) -> list[int]:
        """[CLS] text [SEP], cut to max_tokens with both ends kept."""
        return [self.cls, *self._ids(text)[: max_tokens - 2], self.sep]

    def encode_prompt(self, prompt: str) -> list[int]:
        """[DEC] prompt, open at the end: what a caption continues. A space at its end goes: many tokenizers give it to the next word."""
        return [self.dec, *self._ids(prompt.rstrip())]

    def _ids(self, text: str) -> list[int]:
        ids = self._pieces.encode(text, add_special_tokens=False).ids
        if self.unk is None or self._forbidden.isdisjoint(ids):
            return ids
        return [self.unk if i in self._forbidden else i for i in ids]  # a Unigram model finds "</s>" in a text that spells it out

    def words(self, text: str, *, max_tokens: int) -> list[tuple[str, list[int]]]:
        """The words of a text as they stand in it, each with the places of its pieces in `encode`; what is cut off is left out. In
        scripts without spaces each piece is a word. Pieces of white space alone, as of a second blank, are none."""
        pieces = self._pieces.encode(text, add_special_tokens=False)
        found: list[tuple[int, int, list[int]]] = []  # where a word begins and ends, and its places
        before = None
        for place, word, (start, end) in zip(range(1, max_tokens - 1), pieces.word_ids, pieces.offsets, strict=False):
            if not text[start:end].strip():
                continue
            own = None if _UNSPACED.search(text[start:end]) else word
            if found and (start < found[-1][1] or (own is not None and own == before)):  # bytes of one character overlap
                found[-1] = (found[-1][0], max(end, found[-1][1]), [*found[-1][2], place])
            else:
                found.append((start, end, [place]))
            before = own
        return [(text[start:end].strip(), places) for start, end, places in found]

    def unknown(self, text: str) -> tuple[int, list[str]]:
        """How many tokens a text has, and what it holds that the vocabulary lacks, a string for each [UNK]."""
        pieces = self._pieces.encode(text, add_special_tokens=False)
        return len(pieces.ids), [text[a:b] for i, (a, b) in zip(pieces.ids, pieces.offsets, strict=True) if i == self.unk]

    def seen(self, text: str) -> str:
        """A text as the vocabulary is asked for it: in lower case or without accents, if the tokenizer says so."""
        return self._pieces.normalizer.normalize_str(text) if self._pieces.normalizer else text

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first [SEP], special tokens left out."""
        words = []
        for i in ids:
            if i == self.sep:
                break
            if i not in self._hidden:
                words.append(int(i))
        text = self._pieces.decode(words)
        return (_PARTED.sub("", text) if self._by_words else text).strip()
