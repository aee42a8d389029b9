"""Without the padding comes out what comes out with it, and less is worked on."""

from functools import partial

import pytest
import torch

from blip_core.model import med
from blip_core.model.packing import Packing
from blip_core.training.objectives import PretrainObjective
from blip_core.training.step import Batch

LENGTHS = [5, 2, 9, 3, 3, 7]


@pytest.fixture
def texts(tokenizer):
    """Six texts of unequal lengths: ids and mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, tokenizer.size, mask.shape, generator=generator)
    ids[:, 0] = tokenizer.cls
    return ids.masked_fill(~mask, tokenizer.pad), mask


@pytest.fixture
def padded(monkeypatch):
    """A switch: from its call on the padding stays in, as on other devices than a CPU."""
    return lambda: monkeypatch.setattr(med, "Packing", partial(Packing, keep_padding=True))


def pixels(num: int) -> torch.Tensor:
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(num))


def roles(model, ids, mask) -> dict[str, torch.Tensor]:
    """What every role makes of the texts, where a token stands."""
    images, other = (model.keys_values(model.image_tokens(pixels(num))) for num in (3, 1))
    return {
        "encode": model.med.encode(ids, mask)[mask],
        "ITC": model.text_features(ids, mask),
        "ground": model.med.ground(model.pair_ids(ids), mask, images)[mask],
        "ITM": model.match_logits(ids, mask, images),
        "ITM in groups": model.match_logits(ids, mask, images, other),
        "LM": model.caption_hidden(ids, images, mask)[mask],
    }


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_role_makes_the_same_with_and_without_padding(model, texts, padded, precision):
    close = {"atol": 1e-5, "rtol": 1e-4} if precision == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        ours = roles(model, *texts)
        padded()
        expected = roles(model, *texts)
    for role, there in expected.items():
        torch.testing.assert_close(ours[role], there, **close, msg=role)
    assert ours["ITC"].std(0).max() > 1e-3 and ours["ITM"].std(0).max() > 1e-3


def test_losses_and_gradients_of_a_step_are_the_same(model, texts, padded, params):
    ids, mask = texts
    own = torch.arange(6)
    batch = Batch(pixels=pixels(6), ids=ids, mask=mask, prompt_tokens=0, image_ids=own, text_ids=own, step=0, progress=0.5, seed=0)

    def step() -> tuple[dict, dict]:
        model.zero_grad()
        objective = PretrainObjective(model, params.pretrain.contrast, params.pretrain.language)
        losses = objective(model, batch)
        sum(losses.values()).backward()
        return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.train()
    losses, gradients = step()
    padded()
    expected, theirs = step()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients, theirs, atol=1e-5, rtol=1e-3)
    assert max(g.abs().max() for g in gradients.values()) > 1e-2


def test_padding_is_worked_on_nowhere_but_in_attention(model, texts, padded):
    ids, mask = texts
    seen = []
    for block in model.med.blocks:
        for layer in (block.encoder_attention.out, block.cross_attention.query, block.mlp[0]):
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    images = model.keys_values(model.image_tokens(pixels(3)))
    model.med.ground(ids, mask, images)
    assert set(seen) == {sum(LENGTHS)}
    seen.clear()
    padded()
    model.med.ground(ids, mask, images)
    assert set(seen) == {mask.numel()}


def test_what_is_packed_comes_back_where_it_was(texts):
    _, mask = texts
    x = torch.randn(*mask.shape, 4)
    places = Packing(mask)
    assert places.pack(x).shape == (sum(LENGTHS), 4)
    assert torch.equal(places.spread(places.pack(x)), x * mask[..., None])
    assert torch.equal(places.first(places.pack(x)), x[:, 0])
    assert torch.equal(places.made(True).spread(x[:, 0]), x[:, :1])
    whole = Packing(torch.ones_like(mask))
    assert whole.pack(x).data_ptr() == x.data_ptr()  # nothing to leave out, nothing copied
    assert torch.equal(whole.spread(whole.pack(x)), x) and torch.equal(whole.first(whole.pack(x)), x[:, 0])
