"""A vocabulary of one's own texts, when no tokenizer is named."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from blip_core.tokenizer.tokenizer import Special, Tokenizer
from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer

Kind = Literal["uncased", "accents", "cased", "bytes"]
_NORMAL = {"uncased": (True, True), "accents": (True, False), "cased": (False, False)}  # lower case, and accents stripped
_FEWEST_BYTES = 256 + len(BERT_TOKENS)


def build_tokenizer(texts: Iterable[str], kind: Kind, size: int) -> Tokenizer:
    """One of at most `size` entries, [DEC] and [ENC] not counted. Equal texts, in whatever order, make equal vocabularies.

    uncased, accents, cased: WordPiece of the most frequent words. bytes: byte-level BPE (Radford et al. 2019), which has no [UNK] and
    learns parts of words, so that it suits scripts without spaces."""
    if kind == "bytes":
        return _bytes_tokenizer(texts, size)
    lowercase, strip_accents = _NORMAL[kind]
    return bert_tokenizer(build_vocab(texts, size, kind=kind), lowercase=lowercase, strip_accents=strip_accents)


def build_vocab(texts: Iterable[str], size: int, *, kind: Kind = "uncased") -> list[str]:
    """BERT's five tokens, the characters as word pieces, then the most frequent words: at most `size` entries.

    Ties are ordered by the word. Words that find no place are spelt by pieces.
    """
    lowercase, strip_accents = _NORMAL[kind]
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(w for text in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters: Counter[str] = Counter()
    for word, count in words.items():
        characters.update(dict.fromkeys(word, count))
    alphabet = [c for c, _ in _by_frequency(characters)][: max(0, (size - len(BERT_TOKENS)) // 4)]
    inside = [c for c in alphabet if normalizer.normalize_str(c) == c]  # Chinese characters get spaces around them, so none is inside
    entries = dict.fromkeys([*BERT_TOKENS, *alphabet, *(f"##{c}" for c in inside)])
    entries.update(dict.fromkeys(w for w, count in _by_frequency(words) if count > 1))
    return list(entries)[:size]


def _bytes_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    if size < _FEWEST_BYTES:
        raise ValueError(f"a vocabulary over bytes has {_FEWEST_BYTES} entries at least, and ingest.vocab_size is {size}")
    pieces = tokenizers.Tokenizer(BPE())
    pieces.normalizer, pieces.pre_tokenizer = normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, min_frequency=2, special_tokens=list(BERT_TOKENS), initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return Tokenizer(pieces, Special("[PAD]", "[CLS]", "[SEP]", unk=None))


def _by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
