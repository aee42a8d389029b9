"""A person asks why a text stayed or went, and is told the rule with the numbers."""

import pytest

from blip_core.explain.image import explain
from tests.stages.test_assemble import assemble, config, opinion, row, seal


@pytest.fixture
def generation(tmp_path):
    base = seal(tmp_path / "g0", {"web-00000": [row("web-1", "a boat", "web", reason="kept")]})
    rows = [
        row("web-1", "a boat", "web", 0.8),
        row("web-1", "A boat!", "synthetic", 0.7),
        row("web-1", "a car", "synthetic", 0.2, candidate=1),
        row("web-1", "sea", "synthetic", 0.6, candidate=2),
        row("web-1", "dog dog dog", "synthetic", 0.9, candidate=3),
    ]
    assemble(base, seal(tmp_path / "scores", {"web-00000": rows}), tmp_path / "g1", tmp_path / "m.json", cfg=config(keep_best=1))
    return tmp_path / "g1"


def test_each_text_is_told_with_the_rule_in_numbers(generation):
    told = explain("web-1", generation)
    assert "kept is what has match of at least synthetic 0.5, web 0.5; of those only the 1 best of an image" in told
    assert "kept: 'a boat', web\n    match 0.800, at least 0.5 (itm 0.800, itc 0.800; filter tuned, f)" in told
    assert "duplicate: 'A boat!', synthetic r1#0 (beam 3, captioner m)\n    says the same as 'a boat' (web)\n    match 0.700" in told
    assert "below_threshold: 'a car', synthetic r1#1 (beam 3, captioner m)\n    match 0.200, below 0.5" in told
    assert "outranked: 'sea'" in told and "the image has 1 texts with a better score" in told
    assert "loop: 'dog dog dog'" in told and "the same words 3 times in a row or more" in told


def test_a_small_share_is_told_as_it_is(tmp_path):
    base = seal(tmp_path / "g0", {"web-00000": [row(f"web-{i}", f"text {i}", "web", reason="kept") for i in range(2)]})
    rows = [row(f"web-{i}", "a boat", "synthetic", 0.7) for i in range(2)]
    scores = seal(tmp_path / "scores", {"web-00000": rows})
    assemble(base, scores, tmp_path / "g1", tmp_path / "m.json", cfg=config(max_share=0.0025))
    assert "it stands at more than 0.25% of the images" in explain("web-1", tmp_path / "g1")


def test_every_filter_has_its_say(generation, tmp_path):
    from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
    from blip_core.stages.assemble import assemble

    rows = [row("web-1", "a boat", "web", 0.8) | {"opinions": [opinion(0.3)]}]
    scores, calibration = seal(tmp_path / "scores2", {"web-00000": rows}), tmp_path / "two.json"
    as_it_stands = Calibration(itm_logit=1.0, itc=0.0, bias=0.0)
    write_calibrations([Calibrated("f", "tuned", as_it_stands, None), Calibrated("g", "clip", as_it_stands, None)], calibration, facts={})
    assemble(tmp_path / "g0", scores, calibration, tmp_path / "g2", tmp_path / "m.json", cfg=config(votes=2))
    told = explain("web-1", tmp_path / "g2")
    assert "by 2 of 2 filters at least" in told
    assert "match 0.800, at least 0.5" in told and "match 0.300, below 0.5 (itm 0.300, itc 0.300; filter clip, g)" in told


def test_what_can_not_be_explained_is_said_plainly(generation, tmp_path):
    with pytest.raises(ValueError, match="names no rule by which texts were chosen"):
        explain("web-1", tmp_path / "g0")
    with pytest.raises(ValueError, match="holds no image 'web-9'; the nearest are web-1"):
        explain("web-9", generation)
    with pytest.raises(ValueError, match=r"g7: no such generation; there are .*/g0, .*/g1"):
        explain("web-1", tmp_path / "g7")
