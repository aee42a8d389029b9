"""The demo page in a real browser, over a model that has learned three pictures by heart; and its search index.

Needs Chromium and its driver (Debian: chromium, chromium-driver); without them the tests of the page skip."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import NoBrowser, events, start_browser, until
from PIL import Image
from reviews import write_shards

from blip_core.captions import caption_table, write_manifest, write_table
from blip_core.checkpoint import load_model, new_model, save_model
from blip_core.config import load_params
from blip_core.data import load_pixels, tokenize
from blip_core.demo import search as search_module
from blip_core.demo.search import PictureIndex
from blip_core.demo.verb import model_folder
from blip_core.serving.options import packed_settings
from blip_core.serving.service import Service

ROOT = Path(__file__).parents[1]
COLOURS = {"a red ball": (220, 30, 20), "a green box": (20, 200, 40), "a blue star": (30, 40, 220)}
HOSTILE = '<img src=x onerror="window.ran = 1">'


def drawn(colour, size=(64, 48)) -> Image.Image:
    noise = np.random.default_rng(sum(colour)).integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory, model_cfg, tokenizer) -> Path:
    """A model, a generation of 40 grey pictures with the three that the model knows among them, and picture files."""
    root = tmp_path_factory.mktemp("demo")
    save_model(learned(model_cfg, tokenizer), tokenizer, root / "model", prompt="", max_tokens=12)
    pictures = {f"web-{i:09d}": jpeg(drawn((90 + i, 90 + i, 90 + i))) for i in range(40)}
    for number, colour in zip((5, 17, 33), COLOURS.values(), strict=True):
        pictures[f"web-{number:09d}"] = jpeg(drawn(colour))
    rows = [{"key": key, "image_id": key, "text": HOSTILE, "source": "web", "reason": "kept"} for key in pictures]
    write_table(caption_table(rows), root / "artifacts/generations/g1/web-00000.parquet")
    write_manifest(root / "artifacts/generations/g1")
    write_shards(root / "artifacts/shards", rows, pictures=pictures)
    write_manifest(root / "artifacts/shards")
    for text, colour in COLOURS.items():
        drawn(colour).save(root / f"{text.split()[1]}.png")
    scene = drawn((100, 100, 100))
    scene.paste(drawn(COLOURS["a red ball"], (20, 20)), (4, 4))
    scene.save(root / "scene.png")
    (root / "notes.png").write_text("no picture at all")
    return root


def learned(model_cfg, tokenizer):
    """All three objectives on three pictures."""
    torch.manual_seed(0)
    model = new_model(model_cfg, tokenizer, seed=0)
    pixels = load_pixels([np.array(drawn(c)) for c in COLOURS.values()], 16)
    ids, mask = tokenize(tokenizer, list(COLOURS), max_tokens=12)
    optimizer, truth = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.arange(3)
    for _ in range(80):
        tokens = model.image_tokens(pixels)
        images = model.keys_values(tokens)
        similarity = 10 * model.image_features(tokens) @ model.text_features(ids, mask).T
        others = [tuple(t.roll(shift, 0) for t in layer) for shift in (1,) for layer in images]
        odds = model.match_logits(torch.cat([ids, ids]), torch.cat([mask, mask]), images, others)
        words = model.med.vocabulary_logits(model.caption_hidden(ids, images))[:, :-1]
        loss = F.cross_entropy(similarity, truth) + F.cross_entropy(similarity.T, truth)
        loss = loss + F.cross_entropy(odds, torch.tensor([1, 1, 1, 0, 0, 0]))
        loss = loss + F.cross_entropy(words.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def page(root):
    """The URL of the page, as the verb serves it."""
    command = [sys.executable, "-m", "blip_core", "demo", "--model", "model", "--generation", "artifacts/generations/g1", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": root, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen([*command, "--params", str(ROOT / "params.yaml")], **options)
    line = server.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), server.communicate()[1]
    yield line.split()[0]
    server.send_signal(signal.SIGINT)
    _, told = server.communicate(timeout=30)
    assert server.returncode == 130 and "Traceback" not in told


class Person:
    def __init__(self, driver, url: str):
        self.driver = driver
        driver.get(url)
        until(lambda: "model" in self.find("#about").text)

    def find(self, css: str):
        return self.driver.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        return [e.text for e in self.driver.find_elements("css selector", css)]

    def choose(self, path: Path) -> None:
        self.find("#file").send_keys(str(path))
        until(lambda: self.find("#name").text == path.name)

    def ask(self, tab: str, **values) -> None:
        """Fill in a tab's form, send it, and wait for the answer or the fault."""
        self.find(f"#tab-{tab}").click()
        for name, value in values.items():
            field = self.find(f"#{tab} [name={name}]")
            if field.tag_name == "select":
                self.find(f"#{tab} [name={name}] option[value={value}]").click()
            else:
                field.clear()
                field.send_keys(str(value))
        self.find(f"#{tab} button.main").click()
        until(lambda: self.find("#status").text != "working …" and self.find(f"#{tab} button.main").is_enabled())

    @property
    def status(self) -> str:
        return self.find("#status").text


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One browser for all: the page stores nothing in it."""
    try:
        found = start_browser(tmp_path_factory.mktemp("browser"))
    except NoBrowser as e:
        pytest.skip(str(e))
    yield found
    found.quit()


@pytest.fixture
def ada(driver, page) -> Person:
    return Person(driver, page)


def test_a_picture_is_captioned_by_beam_and_by_nucleus(ada, root):
    ada.choose(root / "red.png")
    ada.ask("caption", sampler="beam", num_captions=1)
    assert ada.status == "" and ada.texts("#caption li") == ["a red ball"]
    ada.ask("caption", num_captions=3)
    assert ada.texts("#caption li")[0] == "a red ball" and len(set(ada.texts("#caption li"))) == 3
    ada.ask("caption", sampler="nucleus", p=0.9, top_k=20, temperature=0.8, num_captions=2, seed=3)
    assert len(ada.texts("#caption li")) == 2 and ada.status == ""
    ada.choose(root / "blue.png")
    assert not ada.texts("#caption li")  # what was said of another picture is gone


def test_the_right_text_matches_better(ada, root):
    ada.choose(root / "green.png")
    found = []
    for text in ("a green box", "a red ball"):
        ada.ask("match", text=text)
        assert ada.texts("#match dt") == ["P(match) of the ITM head, raw", "ITC cosine"]
        found.append([float(value) for value in ada.texts("#match dd")])
    (itm, itc), (wrong_itm, wrong_itc) = found
    assert itm > 0.8 > 0.2 > wrong_itm and itc > wrong_itc + 0.2


def test_search_finds_the_planted_picture_which_can_be_asked_about(ada, driver):
    until(lambda: ada.find("#search .progress").get_attribute("textContent") == "40 of 40 pictures of g1 can be searched")
    for text, key in (("a blue star", "web-000000033"), ("a red ball", "web-000000005")):
        ada.ask("search", text=text, count=3, rerank=10)
        assert len(ada.texts("#search figure")) == 3 and key in ada.texts("#search figcaption")[0]
    until(lambda: driver.execute_script("return document.querySelector('#search img').naturalWidth") == 64)
    assert f"web: {HOSTILE}" in ada.texts("#search figcaption")[0] and driver.execute_script("return window.ran") is None
    ada.find("#search figure button").click()
    until(lambda: ada.find("#name").text == "web-000000005")
    ada.ask("caption", sampler="beam", num_captions=1)
    assert ada.texts("#caption li") == ["a red ball"]


def test_each_word_has_a_map_over_the_picture(ada, driver, root):
    ada.choose(root / "scene.png")
    shades = """return [...document.querySelectorAll('#attention canvas')].map((c) => {
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const warm = []; for (let i = 0; i < data.length; i += 4) warm.push(data[i] - data[i + 2]);
        return [c.width, c.height, Math.min(...warm), Math.max(...warm)]; })"""
    for kind, layer in (("grad_cam", 1), ("attention", 2)):
        ada.ask("attention", text="a red ball", kind=kind, layer=layer)
        assert ada.status == "" and ada.texts("#attention figcaption") == ["a", "red", "ball"]
        maps = driver.execute_script(shades)
        assert all((width, height) == (320, 240) for width, height, *_ in maps)
        assert max(warmest - coldest for _, _, coldest, warmest in maps) > 100  # some places glow, others do not
    ada.ask("attention", text="a red ball", kind="grad_cam", layer=2)
    assert "no word has a gradient there" in ada.status


def test_what_is_wrong_is_said_in_the_page(ada, root):
    ada.ask("caption")
    assert ada.status == "choose a picture first"
    ada.choose(root / "notes.png")
    ada.ask("caption")
    assert ada.status.startswith("image: not_an_image") and "expected a JPEG, PNG, WebP or GIF" in ada.status
    ada.choose(root / "red.png")
    ada.ask("match", text=" " * 3)
    assert "empty_text" in ada.status
    ada.ask("match", text="a red ball")
    assert ada.status == "" and ada.texts("#match dd")


def test_the_page_asks_no_other_host_and_may_not(ada, driver, page, root):
    ada.choose(root / "red.png")
    ada.ask("search", text="a red ball")
    asked = [e for e in events(driver, "Network.requestWillBeSent") if not e["documentURL"].startswith("chrome:")]  # of its first tab
    sent = [e["request"]["url"] for e in asked]
    assert sent and all(url.startswith((page, "blob:", "data:")) for url in sent)
    told = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in told if "/api/" not in entry["message"]] == []  # answers of 400 to what was wrong are told there too
    inject = "const i = new Image(); i.src = arguments[0]; document.body.append(i)"
    driver.execute_script(inject, "http://127.0.0.1:9/x")
    until(lambda: any(e.get("blockedReason") == "csp" for e in events(driver, "Network.loadingFailed")))


def test_a_narrow_window_will_do(ada, driver):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 340, "height": 700, "deviceScaleFactor": 1, "mobile": False})
    for tab in ("caption", "match", "search", "attention"):
        ada.find(f"#tab-{tab}").click()
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
    unnamed = "(e) => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)"
    assert driver.execute_script(f"return [...document.querySelectorAll('button, select, input')].filter({unnamed})") == []
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_strangers_and_large_questions_are_turned_away(page):
    assert httpx.get(f"{page}/api/about", headers={"Host": "evil.example.org"}).status_code == 400  # a name that was pointed here
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{page}/api/task/caption", content=b" " * 60_000_000, headers=headers)
    assert answer.status_code == 413 and "choose a smaller picture" in answer.json()["error"]
    simple = {"Content-Type": "text/plain"}  # what a page elsewhere may send without asking
    assert httpx.post(f"{page}/api/task/match", content=b'{"text": "a"}', headers=simple).status_code == 422
    for path in ("/docs", "/openapi.json", "/../params.yaml", "/api/picture/..%2f..%2fx/y", "/api/picture/web-00000/nokey"):
        assert httpx.get(page + path).status_code in (400, 404)
    assert "default-src 'none'" in httpx.get(page).headers["Content-Security-Policy"]
    assert httpx.post(f"{page}/api/task/tag", json={}).json()["error"].startswith("task: ")


@pytest.fixture
def index(root, tmp_path, monkeypatch):
    """Makes an index, in parts of 16 pictures, that is new to this process."""
    monkeypatch.setattr(search_module, "PART", 16)
    service = Service(root / "model", packed_settings(root / "model", load_params(ROOT / "params.yaml")))
    return lambda: PictureIndex(service, root / "model", root / "artifacts/generations/g1", root / "artifacts/shards", tmp_path)


class StopsAfter(threading.Event):
    """Set when it has been asked so many times."""

    def __init__(self, times: int):
        super().__init__()
        self.left = times

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_an_index_goes_on_where_it_was_stopped(index):
    first = index()
    assert first.search("a red ball", count=3, rerank=3) == []
    first.build(StopsAfter(3))
    parts = {path: path.stat().st_mtime_ns for path in first.folder.glob("*.npy")}
    assert first.done == 16 and len(parts) == 1
    [best] = first.search("a red ball", count=1, rerank=8)
    assert best["key"] == "web-000000005"  # of what is there so far
    second = index()
    second.build(threading.Event())
    assert second.done == 40 and second.folder == first.folder
    assert all(path.stat().st_mtime_ns == made for path, made in parts.items())
    np.testing.assert_allclose(np.linalg.norm(second.features, axis=1), 1, atol=1e-3)
    assert [second.search(t, count=1, rerank=8)[0]["key"] for t in COLOURS] == ["web-000000005", "web-000000017", "web-000000033"]


def test_the_search_ranks_as_scores_of_all_pictures_would(index, root):
    own = index()
    own.build(threading.Event())
    found = own.search("a green box", count=40, rerank=40)
    assert sorted(hit["key"] for hit in found) == sorted(key for _, key in own.places)
    ranks = [np.log(hit["itm"] / (1 - hit["itm"])) + hit["itc"] for hit in found]
    assert ranks == sorted(ranks, reverse=True)


def test_a_model_is_a_folder_or_a_registered_version(served, root, tmp_path, monkeypatch):
    assert model_folder(str(root / "model"), tmp_path) == root / "model"
    monkeypatch.chdir(served[0])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = model_folder("models:/blip@champion", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (served[0] / "model/model.safetensors").read_bytes()
    load_model(folder)
    assert model_folder("models:/blip/1", tmp_path) == folder
    with pytest.raises(ValueError, match="no model folder"):
        model_folder("artifacts/models/none", tmp_path)
    with pytest.raises(ValueError, match="no version 9"):
        model_folder("models:/blip/9", tmp_path)
