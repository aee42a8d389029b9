"""The network for a sentence about two pictures: how it begins, what it reads, and the authors' names."""

import pytest
import torch
import torch.nn.functional as F

from blip_core.compute.padding import tokenize
from blip_core.model.nlvr import Nlvr, nlvr_of
from blip_core.tokenizer.wordpiece import save_vocab
from blip_core.weights.checkpoint import special_tokens
from blip_core.weights.names import nlvr_layout
from blip_core.weights.nlvr import load_nlvr
from blip_core.weights.pretrained import theirs
from tests.support.peers import randomize

SENTENCES = ["a red ball", "there is a green star on grass"]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_both_attentions_begin_as_the_pretrained_one(model):
    new = nlvr_of(model).eval()
    for i, block in enumerate(new.med.blocks):
        twin, pretrained = block.cross_attention, model.med.blocks[i].cross_attention.state_dict()
        for side in (twin.left.state_dict(), twin.right.state_dict()):
            assert side.keys() == {k for k in pretrained if not k.startswith("norm.")}
            assert all(torch.equal(side[k], pretrained[k]) for k in side)
        assert torch.equal(twin.norm.weight, pretrained["norm.weight"])
    assert [block.cross_attention.merge is not None for block in new.med.blocks] == [False, True]


def test_before_training_the_lower_half_sees_one_picture_twice_as_the_pretrained_model_sees_it(model, tokenizer):
    new = nlvr_of(model).eval()
    x = torch.randn(5, model.cfg.text.width, generator=torch.Generator().manual_seed(1))
    from blip_core.model.packing import Packing

    image, texts = model.image_tokens(pixels(1)[0, :1]), Packing(torch.ones(1, 5, dtype=torch.bool))
    old, twin = model.med.blocks[0].cross_attention, new.med.blocks[0].cross_attention
    got = twin(x, texts, twin.left.keys_values(image), twin.right.keys_values(image))
    torch.testing.assert_close(got, old(x, texts, old.keys_values(image)))


def test_the_sides_differ_and_the_padding_does_not_count(model, tokenizer):
    new = nlvr_of(model).eval()
    ids, mask = tokenize(tokenizer, SENTENCES, max_tokens=20)
    together = new.logits(pixels(2), ids, mask)
    assert not torch.allclose(together, new.logits(pixels(2).flip(1), ids, mask), atol=1e-4)
    alone = new.logits(pixels(2)[:1], *tokenize(tokenizer, SENTENCES[:1], max_tokens=20))
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=1e-4)


def test_the_authors_checkpoint_comes_in_and_computes_as_their_code(model_cfg, tokenizer, tmp_path):
    """Their joining of the two pictures, written out by their names for one layer of the upper half."""
    values = model_cfg.model_dump()
    values["vision"] |= {"width": 64, "heads": 1}
    values["text"] |= {"width": 64, "heads": 1, "norm_eps": 1e-12}
    cfg = type(model_cfg)(**values)
    state = theirs(randomize(Nlvr(cfg, special_tokens(tokenizer)), 3), nlvr_layout(vision_depth=2, text_depth=2).required)
    own = "text_encoder.encoder.layer.1.crossattention."
    assert {f"{own}self0.query.weight", f"{own}self1.value.bias", f"{own}output.dense1.weight", f"{own}output.merge_layer.bias"} <= set(
        state
    )
    assert "cls_head.2.weight" in state and "text_encoder.encoder.layer.0.crossattention.output.merge_layer.bias" not in state
    torch.save({"model": state}, tmp_path / "nlvr.pth")
    save_vocab(tokenizer.vocab, tmp_path / "vocab.txt")
    loaded, _ = load_nlvr(tmp_path / "nlvr.pth")

    def linear(x, name):
        return F.linear(x, state[f"{own}{name}.weight"], state[f"{own}{name}.bias"])

    x, images = torch.randn(4, 64), torch.randn(2, 1, 5, 64)
    found = []
    for n, image in enumerate(images):
        q, k, v = linear(x, f"self{n}.query"), linear(image[0], f"self{n}.key"), linear(image[0], f"self{n}.value")
        found.append(linear((q @ k.T / 8).softmax(-1) @ v, f"output.dense{n}"))
    joined = linear(torch.cat(found, -1), "output.merge_layer")
    expected = F.layer_norm(x + joined, (64,), state[f"{own}output.LayerNorm.weight"], state[f"{own}output.LayerNorm.bias"], 1e-12)
    from blip_core.model.packing import Packing

    twin = loaded.med.blocks[1].cross_attention
    got = twin(x, Packing(torch.ones(1, 4, dtype=torch.bool)), twin.left.keys_values(images[0]), twin.right.keys_values(images[1]))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
