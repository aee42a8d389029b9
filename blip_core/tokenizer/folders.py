"""A tokenizer from disk: a folder of transformers or of ours, a tokenizer.json, a vocab.txt of BERT. No code in a folder is run.

Which tokens pad, begin and end a text is the tokenizer's own word: tokenizer_config.json and special_tokens_map.json beside it, then what
tokenizer.json itself puts around a text. Only a lone tokenizer.json that says neither is asked for BERT's and SentencePiece's names.
"""

import json
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from blip_core.files.content import read_json
from blip_core.tokenizer.tokenizer import Special, Tokenizer
from blip_core.tokenizer.wordpiece import bert_tokenizer

log = logging.getLogger(__name__)

TOKENIZER, VOCAB = "tokenizer.json", "vocab.txt"
_DECLARED = ("tokenizer_config.json", "special_tokens_map.json")
_SLOW = ("vocab.json", "merges.txt", "*.model")  # what transformers makes a tokenizer.json of
# a role, what transformers calls it, and the names that are asked for at last
_ROLES = {
    "pad": (("pad_token",), ("[PAD]", "<pad>")),
    "cls": (("cls_token", "bos_token"), ("[CLS]", "<s>", "<bos>")),
    "sep": (("sep_token", "eos_token"), ("[SEP]", "</s>", "<eos>")),
}
_DOES = {"pad": "fills up a text", "cls": "begins a text", "sep": "ends a text"}


def load_tokenizer(path: Path) -> Tokenizer:
    """That of a folder or file. ValueError names the file, what is missing in it, and what to do."""
    try:
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise ValueError("no such file; expected a folder with a tokenizer, a tokenizer.json, or a vocab.txt of BERT, one token a line")
        return _of_json(path) if path.suffix == ".json" else _of_vocab(path)
    except UnicodeDecodeError as e:
        expected = "a tokenizer.json, or a vocab.txt of BERT, one token a line; a model of SentencePiece is named by its folder"
        raise ValueError(f"{path}: no text in UTF-8 ({e.reason} at byte {e.start}); expected {expected}") from None
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def _of_folder(folder: Path) -> Tokenizer:
    if (folder / TOKENIZER).exists():
        return _of_json(folder / TOKENIZER)
    if (folder / VOCAB).exists():
        return _of_vocab(folder / VOCAB)
    if any(found for pattern in _SLOW for found in folder.glob(pattern)):
        return _by_transformers(folder)
    raise ValueError("neither tokenizer.json nor vocab.txt; save the tokenizer (or processor) into it too, or name its own folder")


def _of_json(path: Path) -> Tokenizer:
    text = path.read_text(encoding="utf-8")
    try:
        pieces = tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # noqa: BLE001  # the library raises nothing narrower
        raise ValueError(f"not a tokenizer of the library `tokenizers` ({e}); save it anew by transformers' save_pretrained") from None
    return Tokenizer(pieces, _special(json.loads(text), _config(path.parent)))


def _of_vocab(path: Path) -> Tokenizer:
    vocab = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # an entry may be U+2028, where str.splitlines would part it
    config = _config(path.parent)
    if "do_lower_case" in config:
        lowercase, strip_accents = config["do_lower_case"], config.get("strip_accents")
    else:
        lowercase, strip_accents = not _has_capitals(vocab), not _has_accents(vocab)
        log.info("%s: nothing beside it says so; by its entries it is %s", path, _in_words(lowercase, strip_accents))
    chinese = config.get("tokenize_chinese_chars", True)
    return bert_tokenizer(vocab, lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese)


def _has_capitals(vocab: Sequence[str]) -> bool:
    return any(entry != entry.lower() for entry in vocab if not entry.startswith("["))


def _has_accents(vocab: Sequence[str]) -> bool:
    return any(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", "".join(vocab)))


def _in_words(lowercase: bool, strip_accents: bool) -> str:
    return f"{'in lower case' if lowercase else 'with capitals'}, {'without' if strip_accents else 'with'} accents"


def _by_transformers(folder: Path) -> Tokenizer:
    """vocab.json with merges.txt, or a model of SentencePiece."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        about = found.backend_tokenizer.to_str()
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise ValueError(
            f"no tokenizer.json, and transformers makes none of its files ({reason}); where transformers and sentencepiece are installed, "
            "write one by AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        ) from None
    return Tokenizer(tokenizers.Tokenizer.from_str(about), _special(json.loads(about), {**_config(folder), **found.special_tokens_map}))


def _config(folder: Path) -> dict[str, Any]:
    """What lies beside a tokenizer; the later file wins, as in transformers."""
    found: dict[str, Any] = {}
    for name in _DECLARED:
        if (folder / name).exists():
            content = read_json(folder / name)
            found |= {key: value for key, value in content.items() if value is not None} if isinstance(content, dict) else {}
    return found


def _special(about: dict[str, Any], config: dict[str, Any]) -> Special:
    """Of a tokenizer.json and what lies beside it."""
    around, padding = _around(about.get("post_processor")), about.get("padding") or {}
    own = {"pad": padding.get("pad_token"), **around}
    added = [token["content"] for token in about.get("added_tokens") or [] if token.get("special")]
    found: dict[str, str] = {}
    for role, ((key, *other_keys), names) in _ROLES.items():
        candidates = [config.get(key), own.get(role), *(config.get(k) for k in other_keys), *(name for name in names if name in added)]
        if name := next(filter(None, candidates), None):
            found[role] = _content(name)
    if lacking := [role for role in _ROLES if role not in found]:
        raise ValueError(_lacks(lacking, added))
    return Special(found["pad"], found["cls"], found["sep"], _unknown(about))


def _lacks(roles: Sequence[str], added: Sequence[str]) -> str:
    what = " and ".join(f"the token that {_DOES[role]} ({' or '.join(_ROLES[role][0])})" for role in roles)
    new = ", ".join(f"'{_ROLES[role][0][0]}': '[{role.upper()}]'" for role in roles)
    return (
        f"doesn't say {what}; its special tokens are {', '.join(added) or 'none'}. Name it in tokenizer_config.json, or add one: "
        f"t = AutoTokenizer.from_pretrained(folder); t.add_special_tokens({{{new}}}); t.save_pretrained(folder)"
    )


def _unknown(about: dict[str, Any]) -> str | None:
    """None where every text can be spelt, by bytes."""
    model = about["model"]
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    if found := model.get("unk_token"):
        return str(found)
    if model.get("byte_fallback") or "ByteLevel" in set(_types(about.get("pre_tokenizer"))):
        return None
    raise ValueError(
        f"its {model.get('type')} names no token for what the vocabulary lacks, so such parts of a text would be lost; set unk_token in "
        "the model of its tokenizer.json"
    )


def _around(post: dict[str, Any] | None) -> dict[str, str]:
    """What a post-processor puts before (cls) and behind (sep) a text."""
    if not post:
        return {}
    if post["type"] == "Sequence":
        return {role: name for inner in post["processors"] for role, name in _around(inner).items()}
    if post["type"] != "TemplateProcessing":  # BERT's and RoBERTa's: [name, id]
        return {role: post[role][0] for role in ("cls", "sep") if role in post}
    single = post["single"]
    middle = next((i for i, part in enumerate(single) if "Sequence" in part), len(single))
    before, behind = ([part["SpecialToken"]["id"] for part in parts] for parts in (single[:middle], single[middle + 1 :]))
    return ({"cls": before[0]} if before else {}) | ({"sep": behind[-1]} if behind else {})


def _types(part: dict[str, Any] | None) -> Iterator[str]:
    """Of a pre-tokenizer and those it is made of."""
    if part:
        yield part["type"]
        for inner in part.get("pretokenizers", []):
            yield from _types(inner)


def _content(token: str | dict[str, Any]) -> str:
    """transformers writes a token as its name or as a mapping."""
    return token if isinstance(token, str) else str(token["content"])
