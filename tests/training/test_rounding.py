"""A momentum twin in bf16 follows its model as one in fp32 does, and a resumed training draws the same."""

import torch

from blip_core.training.rounding import lerp_
from tests.support.trainings import Training


def moved(steps: int, *, seed: int = 0) -> torch.Tensor:
    average, target = torch.ones(4096, dtype=torch.bfloat16), torch.full((4096,), 1.1)
    for step in range(steps):
        lerp_([average], [target], 1 - 0.995, seed=1000 * seed + step)
    return average.float()


def test_the_average_moves_where_rounding_to_the_nearest_stands_still():
    exact, nearest = torch.ones(()), torch.ones((), dtype=torch.bfloat16)
    for _ in range(400):
        exact = exact.lerp(torch.tensor(1.1), 1 - 0.995)
        nearest = nearest.float().lerp(torch.tensor(1.1), 1 - 0.995).bfloat16()
    found = moved(400)
    assert nearest == 1 and exact > 1.08
    assert abs(float(found.mean()) - float(exact)) < 1e-3
    assert float((found - exact).abs().max()) < 8 * 2**-7  # a few of the steps that bf16 has above 1


def test_the_draws_hang_on_the_seed_alone():
    assert torch.equal(moved(20, seed=1), moved(20, seed=1)) and not torch.equal(moved(20, seed=1), moved(20, seed=2))


def test_what_bf16_can_say_is_kept():
    average = torch.randn(1000).bfloat16()
    before = average.clone()
    lerp_([average], [average.float()], 0.5, seed=3)
    assert torch.equal(average, before)


def test_a_resumed_run_has_the_twin_of_an_unbroken_one(ingested, tmp_path):
    """And its queue; the model's features go on in fp32."""
    options = {"steps": 4, "checkpoint_every": 2, "twin_precision": "bf16"}
    whole = Training(ingested, **options).fit(tmp_path / "whole")
    Training(ingested, **options).fit(tmp_path / "broken", stop_at=3)
    again = Training(ingested, **options).fit(tmp_path / "broken")
    assert whole["history"] == again["history"]
    twin = {k: v for k, v in whole["objective"].items() if "twin" in k}
    assert twin and all(v.dtype == torch.bfloat16 and torch.equal(v, again["objective"][k]) for k, v in twin.items())
    assert whole["objective"]["contrast.image_queue"].dtype == torch.float32
