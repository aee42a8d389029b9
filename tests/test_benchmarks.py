"""The benchmarks compare equal work: at tiny size both sides give the same numbers, and their checks notice when they do not."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Scripts in a folder that is no package: importable for one test, forgotten behind it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


def test_public_step_gives_our_losses_while_weights_move():
    import step

    sides = step.make_sides("tiny", step.SIDES[:2])
    assert step.check(sides, steps=4) < 1e-5
    losses = [sides[step.SIDES[0]](n) for n in (4, 4)]
    assert losses[0] != losses[1], "the same batch gives other losses behind a step"


def test_the_check_of_the_step_notices_other_negatives(monkeypatch):
    import public_step
    import step

    monkeypatch.setattr(public_step, "negative", lambda similarity, row, draw: (row + 1) % len(similarity))
    sides = step.make_sides("tiny", step.SIDES[:2])
    with pytest.raises(ValueError, match="itm is"):
        step.check(sides)


def test_the_public_step_keeps_its_negatives_off_the_diagonal():
    import public_step

    similarity = torch.tensor([9.0, 0.0, 0.5])
    drawn = {public_step.negative(similarity, 0, torch.tensor(d)) for d in (0.0, 0.2, 0.5, 0.99)}
    assert drawn == {1, 2}


def test_captions_are_equal_and_of_full_length():
    import generation

    model, tokenizer = generation.build("tiny", image_size=384)
    peer = generation.exported(generation.lively(model), tokenizer)
    pixels = torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    for search in generation.CAPTIONS:
        generation.check(model, peer, pixels, search)
    with torch.no_grad():
        peer.text_decoder.cls.predictions.bias.neg_()
    with pytest.raises(ValueError, match="expected equal captions"):
        generation.check(model, peer, pixels, "beam")


def test_itm_logits_agree_and_depend_on_texts():
    import scoring

    sides = scoring.make_sides("tiny")
    difference, logits = scoring.check(sides), sides["ours, fp32"]()
    assert difference < 1e-6
    assert logits.std(dim=0).min() > 100 * difference, "logits that are all the same would agree by chance"
    with pytest.raises(ValueError, match="differ by"):
        scoring.check({**sides, "transformers, fp32": lambda: logits + 1})


def test_a_comparison_takes_the_ratio_of_each_round():
    import side_by_side

    times = {"theirs": [(2.0, 1.0), (4.0, 1.0), (6.0, 3.0)], "ours": [(1.0, 0.5), (1.0, 0.5), (1.0, 0.5)]}
    ours = side_by_side.compared(times, theirs="theirs")[1]
    assert ours["wall_times_faster"] == [4.0, 2.0, 6.0]
    assert ours["cpu_times_faster"] == [2.0, 2.0, 6.0]
    assert ours["cpu_seconds"] == [0.5, 0.5, 0.5]
