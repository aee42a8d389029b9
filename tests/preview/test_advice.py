"""Suggested values are those that are known to train: the paper's at its size, no queue at that of thousands of pictures."""

from blip_core.config.params import load_params
from blip_core.preview.advice import suggestions
from blip_core.preview.plan import plan
from blip_core.preview.timing import step_seconds
from tests.support.small import ROOT, small_params


def test_at_the_papers_size_the_papers_values_are_left():
    cfg = load_params(ROOT / "configs/vit-b16.yaml").section("pretrain")
    found = {each.name: each for each in suggestions(cfg, width=768, pictures=14_000_000)}
    assert [name for name, each in found.items() if not each.fits] == []
    assert found["contrast.queue_size"].suggested == 57_600 and found["optim.lr"].suggested == 3e-4


def test_few_pictures_want_no_queue_many_passes_and_a_faster_rate():
    cfg = load_params(ROOT / "params.yaml").section("pretrain")
    found = {each.name: each for each in suggestions(cfg, width=128, pictures=5500)}
    assert (found["contrast.queue_size"].suggested, found["contrast.alpha"].suggested) == (0, 0.0)
    assert found["optim.steps"].suggested == 2000
    assert found["optim.lr"].suggested > 6e-4
    assert str(found["contrast.queue_size"]).startswith(f"contrast.queue_size 0 instead of {cfg.contrast.queue_size}: with few steps")
    more = {each.name: each.suggested for each in suggestions(cfg, width=512, pictures=10_000_000)}
    assert more["contrast.queue_size"] > 0 and more["contrast.momentum"] == 0.995 and more["optim.warmup"] < 0.1


def test_the_plan_suggests_where_it_knows_the_pictures_and_times_two_steps_of_each_training(tmp_path):
    params = small_params()
    said = plan(params, tmp_path / "none", pictures=5500)
    assert "what suits 5,500 pictures and a width of 32" in said and "optim.steps 6,875 instead of 12: " in said
    assert said.count("two steps by the clock: ") == 3 and "what suits" not in plan(params, tmp_path / "none")
    assert 0 < step_seconds(params, "tune_filter", images=4, vocabulary=60) < 60
