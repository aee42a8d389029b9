"""Which values of a field a screen hits, what it says of those that it can't compare, and which reason a picture gets."""

import math

import pyarrow as pa
import pytest

from blip_core.config.screens import PicturesConfig, PictureScreen
from blip_core.screens.fields import Judge, screen_pictures

UNSAFE = {"name": "unsafe", "field": "punsafe", "above": 0.5}
LICENCE = {"name": "licence", "field": "license", "outside": ["CC BY 4.0", "cc0 1.0"]}
DOMAIN = {"name": "domain", "field": "url", "hosts": ["Example.org", "pics.net"]}
OPT_OUT = {"name": "opt_out", "field": "noai", "among": [True, "yes"]}


def screen(rule: dict, **changes) -> PictureScreen:
    return PictureScreen(**{"then": "drop", **rule, **changes})


@pytest.mark.parametrize(
    ("rule", "hit", "clear", "mistyped"),
    [
        (UNSAFE, [0.51, 1, "0.9", [0.1, 0.7], "[0.1, 0.7]"], [0.5, 0, " 0.2 ", -math.inf], ["high", True, {"p": 1}]),
        ({"name": "small", "field": "w", "below": 10, "above": 90}, [9, 91], [10, 90], ["ten"]),
        (
            LICENCE,
            ["All rights reserved", "CC BY-NC 4.0", 3, ["CC BY 4.0", "CC BY-NC 4.0"]],
            ["cc_by-4.0", "CC-BY 4.0", "https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"],
            [{"id": 4}],
        ),
        (OPT_OUT, [True, "Yes", "true", ["no", "yes"]], [False, "no", 1], [{"all": True}]),
        (
            DOMAIN,
            ["https://example.org/a.jpg", "http://IMG.example.org:8080/a", "www.pics.net/1", "//pics.net."],
            ["https://notexample.org/a", "https://example.org.evil.net/", "https://a.net/?u=pics.net"],
            [7, "https:///a", "http://[::1"],
        ),
    ],
)
def test_values_are_hit_or_clear_or_of_another_type(rule, hit, clear, mistyped):
    found = {"hit": hit, "clear": clear, "mistyped": mistyped, "missing": [None, "", math.nan, [], [None]]}
    for outcome, values in found.items():
        assert [v for v in values if Judge(screen(rule))(v) != outcome] == [], outcome


def table(**columns) -> pa.Table:
    return pa.table({"key": [f"web-{i}" for i in range(len(next(iter(columns.values()))))], **columns})


def test_the_first_screen_that_drops_is_the_reason_and_each_marks():
    fields = table(punsafe=[0.9, 0.1, None, 0.2], license=["mine", "CC BY 4.0", "mine", None], url=["http://pics.net/1"] * 4)
    screens = [screen(UNSAFE), screen(LICENCE, missing="drop"), screen(DOMAIN, then="mark"), screen(OPT_OUT, then="off")]
    found = screen_pictures(fields, screens)
    assert found.dropped == {
        "web-0": ("picture_unsafe", "punsafe is 0.9: above 0.5"),
        "web-2": ("picture_licence", "license is mine: none of those that the screen lets in"),
        "web-3": ("picture_licence", "no license, and the screen's `missing` is drop"),
    }
    assert found.marked == {
        "web-0": ["unsafe", "licence", "domain"],
        "web-1": ["domain"],
        "web-2": ["licence", "domain"],
        "web-3": ["domain"],
    }
    counts = {"unsafe": (1, 1, 1, 0), "licence": (2, 2, 1, 0), "domain": (4, 0, 0, 0)}
    kinds = ("marked", "dropped", "missing", "mistyped")
    assert found.counts == {f"{kind}_picture_{name}": n for name, own in counts.items() for kind, n in zip(kinds, own, strict=True)}


def test_a_field_that_no_picture_has_is_counted_and_one_that_is_rare_is_found():
    rare = table(other_fields=['{"punsafe": 0.9}', None, '{"x": 1}'])
    found = screen_pictures(rare, [screen(UNSAFE)])
    assert list(found.dropped) == ["web-0"] and found.counts["missing_picture_unsafe"] == 2
    found = screen_pictures(table(url=["a", "b"]), [screen(UNSAFE, missing="drop", then="mark")])
    assert list(found.dropped) == ["web-0", "web-1"] and found.marked == {} and found.counts["dropped_picture_unsafe"] == 2


@pytest.mark.parametrize("rule", [{}, {"above": 1, "among": ["x"]}, {"hosts": ["a.b"], "outside": ["x"]}])
def test_a_screen_has_one_kind_of_rule(rule):
    with pytest.raises(ValueError, match="the screen odd of x: expected one of above and below, among, outside, or hosts"):
        PictureScreen(name="odd", field="x", then="drop", **rule)


def test_screens_that_make_no_sense_together_are_refused():
    with pytest.raises(ValueError, match="unsafe stands there more than once"):
        PicturesConfig(screens=[screen(UNSAFE), screen(UNSAFE)])
    with pytest.raises(ValueError, match="the screen dark wants measured_brightest; expected measure: true"):
        PicturesConfig(screens=[screen({"name": "dark", "field": "measured_brightest", "below": 0.3})])
    assert screen(UNSAFE, then=False).then == "off"  # as YAML reads a bare off
