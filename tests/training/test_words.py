"""Token embeddings that begin with the texts' own co-occurrence: what goes together is near, what no text has stays random."""

import numpy as np
import pytest
import torch

from blip_core.config.training import InitFromConfig
from blip_core.files.content import write_json
from blip_core.stages.pretrain import pretrain
from blip_core.tables.manifest import content_hash
from blip_core.training.words import begin_with_words, word_vectors
from blip_core.weights.checkpoint import load_model, new_model


def test_tokens_of_the_same_texts_are_near_and_others_are_not():
    # 1 and 2 stand together, 3 and 4 do, 0 stands everywhere, 5 nowhere
    texts = [[0, 1, 2], [0, 3, 4], [0, 2, 1, 1], [0, 4]] * 3
    found = word_vectors(texts, 6, 2)
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    assert unit[1] @ unit[2] > 0.99 and unit[3] @ unit[4] > 0.99
    assert abs(unit[1] @ unit[3]) < 0.01
    assert not found[[0, 5]].any(), "what every text has tells none apart, and of what none has nothing is known"


def test_a_model_begins_with_them_and_keeps_the_rest(model_cfg, tokenizer):
    texts = ["a red ball", "a blue box", "a green star", "the grass", "photo of grass"] * 6
    random, model = (new_model(model_cfg, tokenizer, seed=0) for _ in range(2))
    begin_with_words(model, texts, tokenizer, max_tokens=8)
    before, after = random.med.tokens.weight, model.med.tokens.weight
    said = {i for t in texts for i in tokenizer.encode(t, max_tokens=8)} - {tokenizer.cls, tokenizer.sep}
    assert {i for i in range(tokenizer.size) if not torch.equal(before[i], after[i])} == said
    lengths = after[sorted(said)].norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, model_cfg.init.token * model_cfg.text.width**0.5))


def test_too_few_texts_for_so_many_singular_vectors_are_refused():
    with pytest.raises(ValueError, match="init_from.words: 2 texts and 30 tokens have fewer than 16 singular vectors"):
        word_vectors([[1, 2], [2, 3]], 30, 16)


def test_pretrain_begins_with_them_where_it_is_told_to(ingested, params, tmp_path):
    g0, gate = ingested / "generations/g0", tmp_path / "gate.json"
    write_json({"passed": True, "generation": content_hash(g0)}, gate)
    optim = params.pretrain.optim.model_copy(update={"steps": 1, "lr": 1e-9, "min_lr": 0.0, "batch_size": 4})
    cfg = params.pretrain.model_copy(update={"init_from": InitFromConfig(vit=None, bert=None, words=True), "optim": optim})
    outs = (tmp_path / "model", tmp_path / "history.csv", tmp_path / "metrics.json")
    options = {"cfg": cfg, "model_cfg": params.model, "seed": 0, "work": tmp_path / "work"}
    pretrain(g0, "human,web", ingested / "shards", gate, ingested / "tokenizer.json", *outs, **options)
    model, tokenizer = load_model(outs[0])
    length = model.med.tokens.weight[tokenizer.encode("red ball", max_tokens=8)[1:-1]].norm(dim=1)
    assert length.tolist() == pytest.approx([params.model.init.token * params.model.text.width**0.5] * 2, rel=1e-4)


def test_words_and_bert_are_not_both_begun_with(tmp_path):
    with pytest.raises(ValueError, match="words is true and bert names"):
        InitFromConfig(vit=None, bert=tmp_path, words=True)
