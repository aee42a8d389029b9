"""BERT WordPiece with BLIP's two further tokens: [DEC] begins a caption, [ENC] stands first in an image-text pair.

The library `tokenizers` does the splitting, exactly as bert-base-uncased. In vocab.txt the five tokens of BERT are listed;
[DEC] and [ENC] follow behind its last entry, as in the public checkpoints (30522 and 30523 there).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLE_TOKENS = ("[DEC]", "[ENC]")


class Tokenizer:
    """Text to ids and back. `vocab` is the content of vocab.txt, [DEC] and [ENC] not in it."""

    def __init__(self, vocab: Sequence[str]):
        missing = [t for t in BERT_TOKENS if t not in vocab]
        if missing:
            raise ValueError(f"vocabulary of {len(vocab)} entries lacks {missing}; expected a vocab.txt of BERT")
        self.vocab = list(vocab)
        ids = {token: i for i, token in enumerate([*vocab, *ROLE_TOKENS])}
        if len(ids) != len(vocab) + len(ROLE_TOKENS):
            raise ValueError(f"vocabulary of {len(vocab)} entries has duplicates or holds one of {ROLE_TOKENS}")
        self.pad, self.cls, self.sep, self.dec, self.enc = (ids[t] for t in ("[PAD]", "[CLS]", "[SEP]", "[DEC]", "[ENC]"))
        self.mask = ids["[MASK]"]
        self.size = len(ids)
        # no token is declared special: a "[SEP]" within a crawled text is five plain characters, not the end of it
        self._pieces = tokenizers.Tokenizer(WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
        self._pieces.normalizer, self._pieces.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
        self._pieces.decoder = WordPieceDecoder()
        self._special = {self.pad, self.cls, self.sep, self.dec, self.enc, self.mask, ids["[UNK]"]}

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read vocab.txt, one token a line."""
        if not path.exists():
            raise ValueError(f"{path}: no such vocabulary; expected a vocab.txt of BERT, one token a line")
        return cls(path.read_text(encoding="utf-8").splitlines())

    def save(self, path: Path) -> None:
        save_vocab(self.vocab, path)

    def encode(self, text: str, *, max_tokens: int) -> list[int]:
        """[CLS] text [SEP], cut to max_tokens with both ends kept."""
        pieces = self._pieces.encode(text, add_special_tokens=False).ids[: max_tokens - 2]
        return [self.cls, *pieces, self.sep]

    def words(self, text: str, *, max_tokens: int) -> list[tuple[str, list[int]]]:
        """The words of a text as they stand in it, each with the places of its pieces in `encode`; what is cut off is left out."""
        pieces = self._pieces.encode(text, add_special_tokens=False)
        found: dict[int | None, list[tuple[int, tuple[int, int]]]] = {}
        for place, (word, span) in enumerate(zip(pieces.word_ids, pieces.offsets, strict=True)):
            if place < max_tokens - 2:
                found.setdefault(word, []).append((place + 1, span))
        return [(text[own[0][1][0] : own[-1][1][1]], [place for place, _ in own]) for own in found.values()]

    def encode_prompt(self, prompt: str) -> list[int]:
        """[DEC] prompt, open at the end: what a caption continues."""
        return [self.dec, *self._pieces.encode(prompt, add_special_tokens=False).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first [SEP], special tokens left out."""
        words = []
        for i in ids:
            if i == self.sep:
                break
            if i not in self._special:
                words.append(int(i))
        return self._pieces.decode(words)


def build_vocab(texts: Iterable[str], size: int) -> list[str]:
    """BERT's five tokens, the characters as word pieces, then the most frequent words: at most `size` entries.

    Ties are ordered by the word, so equal texts make equal vocabularies. Words that find no place are spelt by pieces.
    """
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = Counter(w for text in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters: Counter[str] = Counter()
    for word, count in words.items():
        characters.update(dict.fromkeys(word, count))
    alphabet = [c for c, _ in _by_frequency(characters)][: max(0, (size - len(BERT_TOKENS)) // 4)]
    entries = dict.fromkeys([*BERT_TOKENS, *alphabet, *(f"##{c}" for c in alphabet)])
    entries.update(dict.fromkeys(w for w, count in _by_frequency(words) if count > 1))
    return list(entries)[:size]


def save_vocab(vocab: Sequence[str], path: Path) -> None:
    """Write vocab.txt, one token a line."""
    path.write_text("".join(f"{t}\n" for t in vocab), encoding="utf-8")


def _by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
