"""Stage 1 of BLIP-2 against slow references; test_distributed.py has it in two processes."""

import pytest
import torch

from blip_core.training.objectives import draw_negatives
from blip_core.training.query_objective import QueryContrast
from blip_core.training.step import FeatureBatch
from tests.support.plain_qformer import match, next_tokens, similarity, tiny_qformer
from tests.support.query_steps import IMAGES, TEXTS, batch_of, contrast_cfg, objective


def alone(batch: FeatureBatch, place: int) -> torch.Tensor:
    return batch.ids[place][batch.mask[place]]


@torch.no_grad()
def test_itc_is_smoothed_cross_entropy_of_the_best_query(tokenizer):
    """Row by row: all texts of a picture are its positives, its text below another picture is no candidate."""
    model, batch = tiny_qformer(tokenizer), batch_of(tokenizer)
    cosines = torch.stack([torch.stack([similarity(model, f, alone(batch, j)) for j in range(6)]) for f in batch.features])
    total = 0.0
    for rows in (cosines, cosines.T):
        for i in range(6):
            candidates = [j for j in range(6) if IMAGES[i] == IMAGES[j] or TEXTS[i] != TEXTS[j]]
            positives = [j for j in candidates if IMAGES[i] == IMAGES[j]]
            logs = dict(zip(candidates, (rows[i][candidates] / 0.1).log_softmax(0).tolist(), strict=True))
            total -= sum(0.9 * (j in positives) / len(positives) * v + 0.1 / len(candidates) * v for j, v in logs.items()) / 12
    assert float(objective()(model, batch)["itc"]) == pytest.approx(total, abs=1e-5)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_itm_and_itg_against_one_pass_per_pair(tokenizer):
    """The losses, and the gradient of every weight."""
    model, batch = tiny_qformer(tokenizer), batch_of(tokenizer)
    found = objective()(model, batch)
    queries, _ = model.look(model.keys_values(model.image_tokens(batch.features)))
    _, similar = QueryContrast(contrast_cfg())(batch, model.image_features(queries), model.text_features(batch.ids, batch.mask))
    texts, images = (
        draw_negatives(s, similar.related_BG, draw, 1.0)[0]
        for s, draw in zip((similar.image_to_text_BG, similar.text_to_image_BG), batch.draws, strict=True)
    )
    assert not any(IMAGES[i] == IMAGES[int(t)] or TEXTS[i] == TEXTS[int(t)] for i, t in enumerate(texts))
    pairs = [(i, i, 1) for i in range(6)] + [(i, int(texts[i]), 0) for i in range(6)] + [(int(images[i]), i, 0) for i in range(6)]
    by_pair = [-match(model, batch.features[i], alone(batch, t)).log_softmax(0)[label] for i, t, label in pairs]
    by_token = []
    for i in range(6):
        ids = alone(batch, i)
        logs = next_tokens(model, batch.features[i], ids).log_softmax(-1)
        by_token += [-0.9 * logs[t - 1, ids[t]] - 0.1 * logs[t - 1].mean() for t in range(2, len(ids))]  # one token of prompt is given
    itm, itg = torch.stack(by_pair).mean(), torch.stack(by_token).mean()
    assert (found["itm"].item(), found["lm"].item()) == pytest.approx((itm.item(), itg.item()), abs=1e-5)
    expected = gradients(model, itm + itg)
    torch.testing.assert_close(gradients(model, found["itm"] + found["lm"]), expected, atol=1e-5, rtol=1e-4)
    assert all(expected[f"image_norm.{name}"].abs().max() > 1e-3 for name in ("weight", "bias"))


def test_a_batch_of_one_picture_trains_all_the_same(tokenizer):
    """No negative for ITM, and every text is a positive."""
    losses = objective()(tiny_qformer(tokenizer), batch_of(tokenizer, images=[7] * 6))
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
