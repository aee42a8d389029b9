"""BERT WordPiece as transformers has it, with [DEC] and [ENC], and deaf to special tokens that a crawled text spells out."""

from blip_core.tokenizer.build import build_vocab
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.wordpiece import BERT_TOKENS, bert_tokenizer


def test_ids_equal_those_of_transformers(shared):
    from transformers import BertTokenizer

    path = shared / "oracles/bert_vocab/vocab.txt"
    ours, theirs = load_tokenizer(path), BertTokenizer.from_pretrained(path.parent)
    assert (ours.dec, ours.enc, ours.size) == (30522, 30523, 30524)
    for text in ("A dog's ball, 3.5 metres!", "Ünïcödé naïve café", "水煮牛肉 preview-6", "unaffable", "", "  a\tb\n", "x" * 200):
        assert ours.encode(text, max_tokens=512) == theirs(text)["input_ids"]


def test_a_spelt_special_token_is_plain_text(tokenizer):
    for word in (*BERT_TOKENS, "[DEC]", "[ENC]"):
        ids = tokenizer.encode(f"a {word} ball", max_tokens=40)
        assert not {tokenizer.sep, tokenizer.cls, tokenizer.pad, tokenizer.dec, tokenizer.enc} & set(ids[1:-1])


def test_encode_keeps_both_ends_when_it_cuts(tokenizer):
    ids = tokenizer.encode("a red ball and a blue star on grass", max_tokens=6)
    assert len(ids) == 6 and ids[0] == tokenizer.cls and ids[-1] == tokenizer.sep


def test_decode_gives_the_text_back_up_to_sep(tokenizer):
    ids = tokenizer.encode("there is a red ball", max_tokens=20)
    assert tokenizer.decode(ids) == "there is a red ball"
    assert tokenizer.decode([tokenizer.dec, *ids[1:], *ids]) == "there is a red ball"


def test_a_vocabulary_is_built_the_same_way_and_spells_what_it_lacks():
    texts = ["a red ball"] * 3 + ["a blue ball"] * 2 + ["rarity"]
    vocab = build_vocab(texts, 60)
    assert vocab == build_vocab(reversed(texts), 60) and len(vocab) <= 60 and vocab[:5] == list(BERT_TOKENS)
    tokenizer = bert_tokenizer(vocab)
    assert "rarity" not in vocab and tokenizer.decode(tokenizer.encode("rarity", max_tokens=20)) == "rarity"
