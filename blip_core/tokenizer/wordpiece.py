"""BERT's tokenizer, WordPiece, from the entries of a vocab.txt. The library `tokenizers` does the splitting, exactly as BERT."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from blip_core.tokenizer.tokenizer import Special, Tokenizer

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert_tokenizer(
    vocab: Sequence[str], *, lowercase: bool = True, strip_accents: bool | None = None, handle_chinese_chars: bool = True
) -> Tokenizer:
    """`vocab`: the content of a vocab.txt. `strip_accents`: None where lower case is; bert-base-uncased is so."""
    missing = [t for t in BERT_TOKENS if t not in vocab]
    if missing:
        raise ValueError(
            f"vocabulary of {len(vocab)} entries lacks {', '.join(missing)}; expected a vocab.txt of BERT, one token a line. Other "
            "tokenizers come as a folder of transformers or a tokenizer.json"
        )
    if len(set(vocab)) < len(vocab):
        twice = next(t for i, t in enumerate(vocab) if t in vocab[:i])
        raise ValueError(f"vocabulary of {len(vocab)} entries has {twice!r} twice; expected a vocab.txt of BERT, one token a line")
    pieces = tokenizers.Tokenizer(WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    pieces.normalizer = BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=handle_chinese_chars, clean_text=True
    )
    pieces.pre_tokenizer, pieces.decoder = BertPreTokenizer(), WordPieceDecoder()
    pieces.add_special_tokens(list(BERT_TOKENS))
    return Tokenizer(pieces, Special("[PAD]", "[CLS]", "[SEP]", "[UNK]"))


def save_vocab(vocab: Sequence[str], path: Path) -> None:
    """Write vocab.txt, one token a line."""
    path.write_text("".join(f"{t}\n" for t in vocab), encoding="utf-8")
