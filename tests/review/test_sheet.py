"""The sheet in a real browser: what a person clicks is what the exported file says, and no text of the crawl does anything but be shown.

Needs Chromium and its driver (Debian: chromium, chromium-driver); without them these tests skip."""

import base64
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from blip_core.__main__ import main
from blip_core.review.agreement import agreement
from blip_core.review.choose import JUDGED_BY_SCORE
from blip_core.review.sheet import MOST_BYTES
from blip_core.selection.labels import read_labels
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.weights.checkpoint import model_hash, new_model, save_model
from tests.support.browser import events, until
from tests.support.reviews import THRESHOLD, human, row, write_shards

HOSTILE = [
    "</script><script>window.ran = 1</script>",
    '<img src=x onerror="window.ran = 1">',
    "<!--<script>window.ran = 1",
    "'\"><svg/onload=window.ran=1>",
    "\u202egnihton si siht\u202c <b>bold</b> &amp; &lt;",
    "قطة على العشب بجانب كرة",
    "a 🐈‍⬛ on\u2028two lines \\u003cb\\u003e",
    "{{script}} ${window.ran=1} %s",
    "long " * 4000,
    "unbroken" * 500,
]


def small(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).save(buffer, kind)
    return buffer.getvalue()


OTHERS = {"web-000000004": small("PNG"), "web-000000005": small("WEBP")}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, model_cfg, tokenizer) -> Path:
    """Ten pictures with a web text and two synthetic ones each, hostile ones among them; one text of each kind is not to be judged. And the
    filter that scored them."""
    root, rows = tmp_path_factory.mktemp("review"), []
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, root / "filter", prompt="", max_tokens=12)
    for i, text in enumerate(HOSTILE):
        rows += [row(i, text, "web", 0, 0.1 * i), row(i, f"made for {i}", "synthetic", 0, 1 - 0.1 * i)]
        rows.append(row(i, f"other of {i}: {text}", "synthetic", 1, 0.5, reason="loop"))
    rows = [r | {"filter": model_hash(root / "filter")} for r in rows]
    write_table(caption_table([human(0), *rows]), root / "generations/g1/web-00000.parquet")
    write_manifest(root / "generations/g1", rule={"score": "match", "threshold": {**THRESHOLD, "web": 0.8 + 1e-9}})  # as calibrated
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8)
    write_shards(root / "shards", rows, pictures={"web-000000003": simplejpeg.encode_jpeg(noise, quality=95), **OTHERS})
    write_manifest(root / "shards")
    keys = sorted({r["key"] for r in rows})
    write_table(pa.table({"key": keys, "<b>origin": [HOSTILE[int(key[-1])] for key in keys]}), root / "metadata/web-00000.parquet")
    write_manifest(root / "metadata")
    return root


@pytest.fixture(scope="module")
def sheet(artifacts) -> Path:
    out = artifacts / "sheet.html"
    assert main(["review", str(artifacts / "generations/g1"), "--out", str(out), "--work", str(artifacts / "work")]) == 0
    return out


class Person:
    """At the sheet, for the first time."""

    def __init__(self, driver, sheet: Path, name: str = "Ada"):
        self.driver = driver
        driver.get(sheet.as_uri())
        if not self.find("#intro").is_displayed():
            until(self.forgotten)
        self.introduce(name)

    def forgotten(self) -> bool:
        self.driver.execute_script("localStorage.clear()")
        self.reload()
        return self.find("#intro").is_displayed()

    def reload(self) -> None:
        """Chromium writes localStorage behind the page's back: one that is loaded within milliseconds may see what was before."""
        time.sleep(0.2)
        self.driver.refresh()

    def introduce(self, name: str) -> None:
        self.find("#name").clear()
        self.find("#name").send_keys(f"{name}\n")
        self.settle()

    def settle(self) -> None:
        """Wait for the next picture on the screen: a dialog that closes holds keys off until then."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def find(self, css: str):
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def texts(self, css: str) -> list[str]:
        return self.driver.execute_script("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def pressed(self) -> list[str]:
        return self.texts(".verdicts [aria-pressed=true]")

    def count(self) -> str:
        return self.find("#count").text

    def export(self) -> Path:
        shutil.rmtree(self.driver.downloads, ignore_errors=True)
        self.find("#export").click()
        return until(lambda: next((p for p in self.driver.downloads.glob("*.jsonl") if p.stat().st_size), None))

    def take(self, path: Path) -> str:
        """Import a file; returns what the page says of it."""
        self.driver.execute_script("document.getElementById('status').textContent = ''")
        self.find("#file").send_keys(str(path))
        return until(lambda: self.find("#status").text)


@pytest.fixture
def ada(driver, sheet) -> Person:
    return Person(driver, sheet)


def on_sheet(sheet: Path) -> dict:
    data = sheet.read_text().split('id="sheet">')[1].split("</script>")[0]
    return json.loads(data)


def asked(sheet: Path) -> list[dict]:
    return [r for card in on_sheet(sheet)["cards"] for r in card["rows"]]


def test_the_file_is_whole_and_small_and_holds_no_markup_of_the_crawl(sheet, artifacts):
    page = sheet.read_text()
    assert page.count("<script") == 2 and "src=x" in page and "<img src=x" not in page and "http" not in page.replace("http-equiv", "")
    data = on_sheet(sheet)
    assert {r["text"] for r in asked(sheet)} == {*HOSTILE, *(f"made for {i}" for i in range(10))}
    assert data["drawn"] == {"generation": content_hash(artifacts / "generations/g1")[:16], "asked": "all"}
    for card, fields in zip(data["cards"], data["fields"], strict=True):
        text = " ".join(HOSTILE[int(card["rows"][0]["key"][-1])].split())
        assert fields == {"<b>origin": text if len(text) <= 200 else fields["<b>origin"]} and len(fields["<b>origin"]) < 230
    pictures = {card["rows"][0]["key"]: picture for picture, card in zip(data["pictures"], data["cards"], strict=True)}
    for key, picture in pictures.items():
        kind, file = picture["src"].removeprefix("data:image/").split(";base64,")
        file = base64.b64decode(file)
        assert len(file) <= MOST_BYTES and Image.open(io.BytesIO(file)).format.lower() == kind
        assert file == OTHERS[key] if key in OTHERS else kind == "jpeg"
        if key == "web-000000003":
            assert (picture["width"], picture["height"]) == (1400, 900) and max(Image.open(io.BytesIO(file)).size) <= 384


def test_the_same_generation_and_seed_make_the_same_file_and_another_seed_another_sheet(sheet, artifacts):
    def made(*options: str) -> bytes:
        out = artifacts / "again.html"
        assert main(["review", str(artifacts / "generations/g1"), "--out", str(out), "--work", str(artifacts / "work"), *options]) == 0
        return out.read_bytes()

    assert made() == sheet.read_bytes()
    made("--seed", "8")
    assert on_sheet(artifacts / "again.html")["sheet"] != on_sheet(sheet)["sheet"]


def test_what_is_judged_by_keys_and_mouse_is_what_the_file_says(ada, sheet, artifacts):
    rows, expected = asked(sheet), {}
    for verdict in ("right", "wrong", "unsure"):
        ada.press({"right": "1", "wrong": "2", "unsure": "3"}[verdict])
        expected[rows[len(expected)]["text"]] = verdict
    current = ada.find("[aria-current] bdi").get_attribute("textContent")
    assert current == rows[3]["text"]
    ada.find("[aria-current] .wrong").click()
    expected[current] = "wrong"
    assert ada.count() == "4 of 20 texts judged"
    labels = read_labels([ada.export()])
    assert {label.text: label.verdict for label in labels} == expected
    assert {label.reviewer for label in labels} == {"Ada"} and all(label.blind for label in labels)
    by_text = {r["text"]: r for r in rows}
    assert all(label.weight == by_text[label.text]["weight"] and label.sheet == on_sheet(sheet)["sheet"] for label in labels)
    found = agreement(labels, artifacts / "generations/g1", cfg=type("Cfg", (), {"bootstrap": 20, "confidence": 0.9}), seed=0)
    assert found["reviewers"]["Ada"]["labels"] == 4 and found["pairs_elsewhere"] == 0


def test_marks_survive_a_reload_and_go_from_browser_to_browser_by_file(ada, driver, sheet):
    ada.press("1", "2", "1")
    until(lambda: ada.reload() or ada.count() == "3 of 20 texts judged")
    assert not ada.find("#intro").is_displayed() and ada.find("#who").text == "Ada"
    ada.press("3")
    first = ada.export().rename(driver.downloads.with_name("first.jsonl"))
    other = Person(driver, sheet)  # nothing is kept any more
    assert other.count() == "0 of 20 texts judged" and not other.find("#export").is_enabled()
    assert other.take(first) == f"{len(first.read_text().splitlines())} judgements imported."
    assert other.export().read_text() == first.read_text()
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    first.write_text(
        "\n".join([json.dumps(lines[0] | {"sheet": "0" * 16}), json.dumps(lines[1] | {"verdict": "x"}), "{", *map(json.dumps, lines)])
    )
    told = other.take(first)
    assert told.startswith("0 judgements imported; ") and "1 lines left out: of another sheet or reviewer" in told
    assert "2 lines left out: no labels" in told
    bob = other
    bob.find("#who").click()
    bob.introduce("Bob")
    assert bob.count() == "0 of 20 texts judged"  # each reviewer has marks of their own


def test_taking_back_says_what_it_did_and_that_there_was_nothing(ada):
    ada.press("0")
    assert ada.find("#status").text == "There is nothing to take back: this text is not judged yet."
    ada.press("1", "\ue013", "0")  # arrow up: to the text that was judged
    assert ada.find("#status").text == "taken back" and ada.count() == "0 of 20 texts judged"


def test_two_tabs_keep_each_others_marks(ada, driver, sheet):
    ada.press("1", "2")
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    try:
        driver.get(sheet.as_uri())
        until(lambda: ada.count() == "2 of 20 texts judged")
        ada.press("n", "3")
    finally:
        second = driver.current_window_handle
        driver.switch_to.window(first)
    until(lambda: ada.count() == "3 of 20 texts judged")
    ada.press("n", "1")
    verdicts = sorted(label.verdict for label in read_labels([ada.export()]))
    driver.switch_to.window(second)
    driver.close()
    driver.switch_to.window(first)
    assert verdicts == ["right", "right", "unsure", "wrong"]


def test_scores_are_told_after_judging_unless_asked_for(ada, sheet):
    first = asked(sheet)[0]
    texts = len(on_sheet(sheet)["cards"][0]["rows"])
    assert not ada.all(".facts") and first["source"] not in " ".join(ada.texts("#card .note"))
    ada.find("#onward").click()
    for _ in range(texts):
        ada.press("1", "\ue015")  # arrow down
    if ada.find("figcaption").text.startswith("picture 2"):
        ada.find("#back").click()
    for _ in range(texts - 1):
        ada.press("\ue013")  # arrow up
    assert len(ada.all(".facts")) == texts and first["reason"].replace("_", " ") in ada.find(".facts").text
    assert all(text.endswith(("threshold of match 0.8", "threshold of match 0.9")) for text in ada.texts(".facts"))
    assert all(r["reason"] in JUDGED_BY_SCORE for r in asked(sheet))
    assert any("other of" in text for text in ada.texts(".others bdi"))
    ada.press("2")  # now that the score is known
    blind = {label.text: label.blind for label in read_labels([ada.export()])}
    assert sorted(blind.values()) == [False] + [True] * (texts - 1)
    ada.find("#scores option[value=always]").click()
    ada.find("#next").click()
    assert ada.all(".facts")
    ada.press("1")
    assert sum(not label.blind for label in read_labels([ada.export()])) == 2


def test_where_the_filter_looked_is_shown_over_the_picture_after_judging(driver, sheet, artifacts):
    """Of the same sheet: its labels are those of the one without maps."""
    out = artifacts / "explained.html"
    command = ["review", str(artifacts / "generations/g1"), "--out", str(out), "--work", str(artifacts / "work"), "--explain"]
    assert main([*command, str(artifacts / "filter")]) == 0
    explained = on_sheet(out)
    assert explained["sheet"] == on_sheet(sheet)["sheet"] and explained["maps"]["side"] == 2
    first, looks = explained["cards"][0]["rows"][0], explained["maps"]["cards"][0][0]
    maps = [np.frombuffer(base64.b64decode(look["map"]), np.uint8) for look in looks]
    assert looks[0]["word"] == "all" and looks[1]["word"] == first["text"].split()[0]
    assert all(len(m) == 4 for m in maps) and maps[0].max() == 255 and maps[0].min() == 0
    ada = Person(driver, out)
    assert not ada.all(".looks")
    ada.find("#onward").click()
    for _ in explained["cards"][0]["rows"]:
        ada.press("1", "\ue015")
    while not ada.find("figcaption").text.startswith("picture 1 "):
        ada.find("#back").click()
    ada.find(".looks button").click()
    warmth = """const c = document.querySelector('figure canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const warm = []; for (let i = 0; i < d.length; i += 4) warm.push(d[i] - d[i + 2]);
        return Math.max(...warm) - Math.min(...warm);"""
    until(lambda: driver.execute_script(warmth) > 100)
    ada.find(".looks [aria-pressed=true]").click()
    assert ada.all("figure img") and not ada.all("figure canvas")


def test_a_model_that_did_not_score_the_texts_or_has_no_maps_is_refused(artifacts, model_cfg, tokenizer, tmp_path, capsys):
    save_model(new_model(model_cfg, tokenizer, seed=1), tokenizer, tmp_path / "other", prompt="", max_tokens=12)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/config.json").write_text('{"model_type": "clip"}')
    for folder, message in (
        (tmp_path / "other", "but the texts were scored by"),
        (tmp_path / "clip", "no BLIP, and only its ITM has a map"),
    ):
        command = ["review", str(artifacts / "generations/g1"), "--out", str(tmp_path / "sheet.html"), "--explain", str(folder)]
        assert main([*command, "--work", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "sheet.html").exists()


def test_texts_of_the_crawl_are_shown_and_do_nothing(ada, driver, sheet):
    driver.get_log("performance")
    until(lambda: ada.reload() or not ada.find("#intro").is_displayed())
    ada.find("#scores option[value=always]").click()
    seen = set()
    for _ in on_sheet(sheet)["cards"]:
        seen |= {*ada.texts(".words bdi"), *ada.texts(".others bdi")}
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert ada.find(".text .right").is_displayed()
        if ada.find("#next").is_enabled():
            ada.find("#next").click()
    assert {*HOSTILE} <= seen and any(text.startswith(f"other of 1: {HOSTILE[1]}") for text in seen)
    assert driver.execute_script("return window.ran") is None and not ada.all("img[src=x], svg, b")
    sent = [e["request"]["url"] for e in events(driver, "Network.requestWillBeSent")]
    assert sent and all(url.startswith(("file:", "data:", "blob:")) for url in sent)
    inject = "document.body.insertAdjacentHTML('beforeend', arguments[0])"
    driver.execute_script(inject, '<img src="data:," onerror="window.ran=1"><img src="http://127.0.0.1:9/x"><script>window.ran=1</script>')
    failed = until(lambda: events(driver, "Network.loadingFailed"))
    assert driver.execute_script("return window.ran") is None  # nor would it, if a text became markup
    assert [e["blockedReason"] for e in failed] == ["csp"]


def test_a_narrow_window_and_keyboard_alone_will_do(ada, driver):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 340, "height": 700, "deviceScaleFactor": 1, "mobile": True})
    try:
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        unnamed = "(e) => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)"
        assert driver.execute_script(f"return [...document.querySelectorAll('button, select, input')].filter({unnamed})") == []
        ada.press("n", "1", "\ue004", "\ue004")  # Tab, Tab: the buttons of the text
        assert driver.switch_to.active_element.get_attribute("class") in ("right", "wrong")
        ada.press(" ")
        assert ada.count() == "2 of 20 texts judged"
        ada.press("?")
        assert ada.find("#intro").is_displayed()
        ada.press("\ue00c")  # Escape
        ada.settle()
        ada.press("1")
        assert ada.count() == "3 of 20 texts judged"
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
