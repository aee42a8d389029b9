"""Personal data in texts: what is an address, a phone number or a card's number, and what only looks like one."""

import time

import pytest

from blip_core.config.screens import WebScreensConfig
from blip_core.tables.captions import SCREENS, caption_table
from blip_core.texts.personal import has_card, has_email, has_phone
from blip_core.texts.screens import decide, fill, tally

EMAILS = "write to ann@example.org|Ann.B+x@mail.example.co.uk!|(jürgen@bücher.de)|a_b-c@d.info, b@c.org"
NO_EMAILS = "logo@2x.png|@handle|5 apples @ 2 euros|a@b|me@localhost|user@@example.org|icon@3x.webp on white"
PHONES = "call +44 20 7946 0958|+1 650-253-0000 now|tel. +34 912 34 56 78|＋49 30 901820"
NO_PHONES = "1920x1080|2019-05-04 10.11.12|Boeing 747 in 1999|ISBN 978-3-16-148410-0|12345678901|+1 23|room 12 34 56 78"
CARDS = "4111 1111 1111 1111|visa 4111-1111-1111-1111 exp 12/30|378282246310005|5555555555554444|6011000990139424"
NO_CARDS = "4111 1111 1111 1112|4111.1111.1111.1111|1234567812345670|978-3-16-148410-0|41111111111111111111111|order 0000000000000000"


@pytest.mark.parametrize(
    ("hit", "those", "others"),
    [(has_email, EMAILS, NO_EMAILS), (lambda text: has_phone(text, ()), PHONES, NO_PHONES), (has_card, CARDS, NO_CARDS)],
)
def test_what_is_personal_data_and_what_looks_like_it(hit, those, others):
    assert [text for text in those.split("|") if not hit(text)] == []
    assert [text for text in others.split("|") if hit(text)] == []


def test_numbers_without_a_country_code_are_those_of_the_regions():
    text = "call (650) 253-0000 today"
    assert not has_phone(text, ()) and not has_phone(text, ("GB",)) and has_phone(text, ("GB", "US"))
    assert has_phone("020 7946 0958", ("GB",)) and has_phone("+34 912 34 56 78", ("GB",))


def test_each_is_a_reason_of_its_own_and_comes_before_markup():
    limits = {"languages": None, "min_confidence": 0.5, "max_images": 50, "max_share": 0.01, "max_repeat": 3, "phone_regions": ["US"]}
    on = {"email": "drop", "phone": "drop", "card": "mark", "markup": "drop"}
    cfg = WebScreensConfig(**dict.fromkeys(SCREENS, "off") | on | limits)
    texts = ["ann@example.org", "call 650-253-0000", "card 4111 1111 1111 1111", "see www.example.org", "a red ball"]
    made = decide(
        fill(caption_table([{"key": "web-0", "text": t, "source": "web", "reason": "kept"} for t in texts]), cfg, max_repeat=3), cfg
    )
    assert made["reason"].to_pylist() == ["email", "phone", "kept", "markup", "kept"]
    assert {n: c for n, c in tally(made, cfg).items() if "markup" not in n} == {
        **{"marked_email": 1, "marked_phone": 1, "marked_card": 1},
        **{"dropped_email": 1, "dropped_phone": 1, "dropped_card": 0},
    }


def test_regions_are_codes_of_countries():
    with pytest.raises(ValueError, match="phone_regions"):
        WebScreensConfig(phone_regions=["usa"])


def test_hostile_texts_cost_no_time():
    texts = ["a" * 1000, "a@" * 500, "a." * 500, "1" * 1000, "1 " * 500, "+1" * 500, "a@b." * 250, "4111 " * 200, "1-" * 500, "%+" * 500]
    start = time.process_time()
    for text in texts:
        has_email(text), has_phone(text, ("US", "GB")), has_card(text)
    assert time.process_time() - start < 2
