"""Tokenizers of others from disk: as they say, with [DEC] and [ENC], and with a clear word on what is missing."""

import json
import pickle
from functools import partial

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from blip_core.tokenizer.build import build_tokenizer
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.wordpiece import bert_tokenizer, save_vocab

SPANISH = ["El niño pequeño juega en la montaña", "Una niña con un árbol, ¿qué más?", "El año pasado en España"] * 3
CHINESE = ["一只红色的猫坐在草地上", "草地上有一只猫和一个球", "红色的iPhone在桌子上"] * 3
TEXTS = SPANISH + CHINESE
END = "<|endoftext|>"
CASED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "El", "el", "niño", "nino", "a", "##s"]
LETTERS = [c for i in range(33, 0x250) for c in (chr(i), f"##{chr(i)}") if c not in CASED]
XLM = ["<s>", "<pad>", "</s>", "<unk>"]


def unigram(folder, *, special=XLM, **config):
    """SentencePiece as XLM-RoBERTa has it."""
    found = tokenizers.Tokenizer(models.Unigram())
    found.normalizer, found.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    found.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    if {"<s>", "</s>"} <= set(special):
        ends = [(token, found.token_to_id(token)) for token in ("<s>", "</s>")]
        found.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return write(found, folder, **config)


def byte_level(folder, *, special=(END,), **config):
    """As GPT-2 has it."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    return write(found, folder, **config)


def write(found, folder, **config):
    folder.mkdir(exist_ok=True)
    found.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def vocab_folder(folder, vocab=CASED, **config):
    folder.mkdir(exist_ok=True)
    save_vocab(vocab, folder / "vocab.txt")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def pieces(tokenizer, text):
    return [tokenizer.vocab[i] for i in tokenizer.encode(text, max_tokens=99)[1:-1]]


def again(tokenizer, folder):
    tokenizer.save(folder / "again.json")
    return load_tokenizer(folder / "again.json")


MAKERS = {
    "sentencepiece": (partial(unigram, pad_token="<pad>", bos_token="<s>", eos_token="</s>"), ("<pad>", "<s>", "</s>")),
    "no config": (unigram, ("<pad>", "<s>", "</s>")),
    "byte bpe": (partial(byte_level, special=(END, "<pad>"), bos_token=END, eos_token=END, pad_token="<pad>"), ("<pad>", END, END)),
    "cased wordpiece": (partial(vocab_folder, vocab=[*CASED, *LETTERS]), ("[PAD]", "[CLS]", "[SEP]")),
}


@pytest.mark.parametrize(("make", "ends"), MAKERS.values(), ids=MAKERS)
def test_case_and_accents_come_back_as_they_were(make, ends, tmp_path):
    tokenizer = load_tokenizer(make(tmp_path / "folder"))
    special = tokenizer.special
    assert (special.pad, special.cls, special.sep) == ends
    assert (tokenizer.dec, tokenizer.enc) == (tokenizer.size - 2, tokenizer.size - 1) == (len(tokenizer.vocab), len(tokenizer.vocab) + 1)
    text = "El niño juega en la montaña de España"
    for found in (tokenizer, again(tokenizer, tmp_path)):
        ids = found.encode(text, max_tokens=99)
        assert ids[0] == tokenizer.cls and ids[-1] == tokenizer.sep and found.decode([found.dec, *ids[1:], found.pad]) == text
        assert found.encode_prompt("El niño ") == [found.dec, *ids[1:][: len(found.encode_prompt("El niño")) - 1]], (
            "a prompt begins its text"
        )


@pytest.mark.parametrize("make", [unigram, lambda f: byte_level(f, special=XLM), lambda f: vocab_folder(f, [*CASED, *"<s>/"])])
def test_a_special_token_that_a_text_spells_out_is_plain_text(make, tmp_path):
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(make(tmp_path / "folder"))))
    for word in (tokenizer.special.sep, tokenizer.special.pad, "[DEC]", "[ENC]"):
        ids = tokenizer.encode(f"El {word} niño", max_tokens=99)[1:-1]
        assert not {tokenizer.sep, tokenizer.cls, tokenizer.pad, tokenizer.dec, tokenizer.enc} & set(ids)


def test_case_and_accents_of_a_vocab_txt_are_those_of_its_config_or_its_entries(tmp_path):
    assert pieces(load_tokenizer(vocab_folder(tmp_path / "lone")), "El niño") == ["El", "niño"], "it has both"
    lower = [entry for entry in CASED if entry not in ("El", "niño")]
    assert pieces(load_tokenizer(vocab_folder(tmp_path / "lower", lower)), "El niño") == ["el", "nino"]
    told = vocab_folder(tmp_path / "told", do_lower_case=True, strip_accents=False)
    assert pieces(load_tokenizer(told), "El niño") == ["el", "niño"]
    assert pieces(again(load_tokenizer(told), tmp_path), "El niño") == ["el", "niño"]


def test_chinese_comes_back_without_spaces(tmp_path):
    built = build_tokenizer(["一只红猫，很大。", "两只 Nike 鞋"] * 2, "cased", 200)
    assert "##猫" not in built.vocab and "猫" in built.vocab
    for tokenizer in (built, load_tokenizer(unigram(tmp_path / "xlm"))):
        assert tokenizer.decode(tokenizer.encode("一只红猫", max_tokens=40)) == "一只红猫"
    assert built.decode(built.encode("一只红猫，很大。", max_tokens=40)) == "一只红猫，很大。"
    assert built.decode(built.encode("两只 Nike 鞋", max_tokens=40)) == "两只 Nike 鞋"
    words = load_tokenizer(byte_level(tmp_path / "bytes", special=XLM)).words("一只 Nike", max_tokens=40)
    assert "".join(word for word, _ in words) == "一只Nike" and words[-1][0] == "Nike", "a map is of words"


def test_white_space_is_no_word(tmp_path):
    found = load_tokenizer(byte_level(tmp_path / "bytes", special=XLM))
    text = "El  niño\u2028y\u00a0"
    words, ids = found.words(text, max_tokens=40), found.encode(text, max_tokens=40)
    assert [word for word, _ in words] == ["El", "niño", "y"]
    assert [found.decode(ids[place] for place in places) for _, places in words] == ["El", "niño", "y"]


def test_what_a_folder_lacks_is_said_with_a_remedy(tmp_path):
    folder = byte_level(tmp_path / "gpt2", bos_token=END, eos_token=END)
    with pytest.raises(
        ValueError, match=r"gpt2: doesn't say the token that fills up a text \(pad_token\); its special tokens are <\|endoft"
    ) as e:
        load_tokenizer(folder)
    from transformers import PreTrainedTokenizerFast

    recipe = str(e.value).partition("add one: ")[2].replace("AutoTokenizer", "PreTrainedTokenizerFast")
    exec(recipe, {"folder": folder, "PreTrainedTokenizerFast": PreTrainedTokenizerFast})  # what the message recommends
    assert load_tokenizer(folder).special.pad == "[PAD]"
    with pytest.raises(ValueError, match=r"t5: doesn't say the token that begins a text \(cls_token or bos_token\)"):
        load_tokenizer(unigram(tmp_path / "t5", special=["<pad>", "</s>", "<unk>"]))
    with pytest.raises(ValueError, match=r"bert: vocabulary of 10 entries lacks \[SEP\]; expected a vocab.txt of BERT"):
        load_tokenizer(vocab_folder(tmp_path / "bert", [entry for entry in CASED if entry != "[SEP]"]))
    with pytest.raises(ValueError, match=r"named: names \[SEP\] as special tokens, which its vocabulary lacks"):
        load_tokenizer(unigram(tmp_path / "named", sep_token="[SEP]"))
    lossy = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3}, []))
    lossy.add_special_tokens(["<s>", "</s>", "<pad>"])
    with pytest.raises(ValueError, match="lossy: its BPE names no token for what the vocabulary lacks"):
        load_tokenizer(write(lossy, tmp_path / "lossy"))


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({}, "neither tokenizer.json nor vocab.txt"),
        ({"tokenizer.json": "{}"}, "not a tokenizer of the library"),
        ({"vocab.json": "{", "merges.txt": ""}, "no tokenizer.json, and transformers makes none of its files"),
        ({"vocab.txt": "a\na\n"}, r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ({"vocab.txt": "\n".join([*CASED, "a"])}, "has 'a' twice"),
        ({"vocab.txt": "caf\udce9"}, r"no text in UTF-8 \(.* at byte 3\); expected a tokenizer.json, or a vocab.txt of BERT"),
    ],
)
def test_a_folder_that_holds_no_tokenizer(files, fault, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=fault):
        load_tokenizer(tmp_path)


def test_files_of_gpt2_without_a_tokenizer_json(tmp_path):
    """vocab.json and merges.txt, of which transformers makes one."""
    found = load_tokenizer(byte_level(tmp_path / "whole", special=XLM))
    about = json.loads((tmp_path / "whole/tokenizer.json").read_text())
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(about["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in about["model"]["merges"]))
    config = {"tokenizer_class": "RobertaTokenizer", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    parts = load_tokenizer(folder)
    assert parts.encode("El niño, 一只猫", max_tokens=40) == found.encode("El niño, 一只猫", max_tokens=40)


# one's own


@pytest.mark.parametrize(
    ("kind", "back"),
    [("uncased", "el nino de espana"), ("accents", "el niño de españa"), ("cased", "El niño de España"), ("bytes", "El niño de España")],
)
def test_a_vocabulary_of_ones_own(kind, back, tmp_path):
    texts = ["El niño de España", "una montaña"] * 3 + CHINESE
    tokenizer = build_tokenizer(texts, kind, 500)
    assert tokenizer.size <= 502
    other = build_tokenizer(texts[::-1], kind, 500)
    assert tokenizer.vocab == other.vocab, "whatever the order of the texts"
    for found in (tokenizer, again(tokenizer, tmp_path)):
        assert found.decode(found.encode("El niño de España", max_tokens=40)) == back
    assert tokenizer.unknown("一只猫 🦄 кот")[1] == ([] if kind == "bytes" else ["🦄", "кот"])


def test_a_vocabulary_over_bytes_has_room_for_them():
    with pytest.raises(ValueError, match="261 entries at least, and ingest.vocab_size is 200"):
        build_tokenizer(SPANISH, "bytes", 200)


def test_uncased_is_as_it_ever_was(tokenizer, tmp_path):
    assert again(tokenizer, tmp_path).vocab == tokenizer.vocab == bert_tokenizer(tokenizer.vocab).vocab
