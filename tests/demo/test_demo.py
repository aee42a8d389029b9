"""The demo page, Gradio's, in a real browser, over a model that has learned three pictures by heart; and its search index.

Needs Chromium and its driver (Debian: chromium, chromium-driver); without them the tests of the page skip."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from selenium.webdriver import Keys

from blip_core.compute.padding import tokenize
from blip_core.compute.pixels import load_pixels
from blip_core.config.params import load_params
from blip_core.demo import search as search_module
from blip_core.demo.search import PictureIndex
from blip_core.demo.verb import model_folder
from blip_core.model.vqa import vqa_of
from blip_core.serving.options import packed_settings
from blip_core.serving.service import Service, open_service
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import write_manifest
from blip_core.tasks.network import save_tuned
from blip_core.weights.checkpoint import load_model, new_model, save_model
from tests.support.browser import assert_stands_alone, browser, events, until
from tests.support.processes import HANG, heed_interrupts
from tests.support.reviews import write_shards

ROOT = Path(__file__).parents[2]
COLOURS = {"a red ball": (220, 30, 20), "a green box": (20, 200, 40), "a blue star": (30, 40, 220)}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "GRADIO_ANALYTICS_ENABLED": "True",
    "GRADIO_ALLOWED_PATHS": "/",
}
HOSTILE = '<img src=x onerror="window.ran = 1">'


def drawn(colour, size=(64, 48)) -> Image.Image:
    noise = np.random.default_rng(sum(colour)).integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def announced(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header says this size."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


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
    (root / "cut.jpg").write_bytes(jpeg(drawn((1, 2, 3)))[:-300])
    (root / "bomb.png").write_bytes(announced(60_000, 60_000))
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


# the program tells of each host that it looks up or connects to
WATCH = """import sys
def told(event, of):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("asked for", event, of[1:] if event == "socket.connect" else of[:2], file=sys.stderr)
sys.addaudithook(told)
"""


class Page(str):
    """The URL, and what the program behind it has written to its stderr."""

    log: Path

    def told(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="module")
def page(root):
    """As the verb serves it; then Ctrl-C, with the browser still there."""
    command = [sys.executable, "-m", "blip_core", "demo", "--model", "model", "--generation", "artifacts/generations/g1", "--port", "0"]
    with (root / "told").open("w") as told:
        environment = {**ENVIRONMENT, "TMPDIR": str(root / "tmp"), "PYTHONPATH": f"{root / 'watch'}{os.pathsep}{ROOT}"}
        (root / "tmp").mkdir()
        (root / "watch").mkdir()
        (root / "watch/sitecustomize.py").write_text(WATCH)
        options = {"cwd": root, "env": environment, "stdout": subprocess.PIPE, "stderr": told, "text": True, "preexec_fn": heed_interrupts}
        server = subprocess.Popen([*command, "--params", str(ROOT / "params.yaml")], **options)
        line = server.stdout.readline()
        url = Page(line.split(" ")[0])
        url.log = root / "told"
        assert line.startswith("http://127.0.0.1:"), url.told()
        yield url
        before = len(url.told())
        server.send_signal(signal.SIGINT)
        assert server.wait(HANG) == 130 and "Traceback" not in url.told()[before:]
    assert list((root / "tmp").glob("blip-demo-*")) == []  # what was uploaded is gone
    assert not (root / ".gradio").exists()
    assert "asked for" not in url.told()


class Person:
    def __init__(self, driver, url: str):
        self.driver = driver
        driver.get(url)
        until(lambda: self.all("#ask-caption"))

    def all(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def find(self, css: str):
        return until(lambda: self.all(css))[0]

    def texts(self, css: str) -> list[str]:
        return self.driver.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.value ?? e.textContent)", css)

    def choose(self, path: Path) -> None:
        if self.all("#picture img"):
            self.find("#picture .icon-button-wrapper button").click()
        self.find("#picture input[type=file]").send_keys(str(path))
        until(lambda: self.chosen().endswith(f"/{path.name}"))

    def chosen(self) -> str:
        """The address of the picture; the first to be shown is an outline of its place."""
        return "".join(self.driver.execute_script("return [...document.querySelectorAll('#picture img')].map(e => e.src)"))

    def open(self, tab: str) -> None:
        click = "const t = [...document.querySelectorAll('[role=tab]')].find(e => e.innerText == arguments[0]); t?.click(); return !!t"
        until(lambda: self.driver.execute_script(click, tab.capitalize()))
        until(lambda: self.find(f"#ask-{tab}").is_displayed())

    def ask(self, tab: str, **values) -> None:
        """Fill in what a tab has of it, and send it."""
        self.open(tab)
        for name, value in values.items():
            if self.all(f"#{name} input[type=radio]"):
                self.find(f"#{name} input[value='{value}']").click()
            else:
                field = self.find(f"#{name} textarea, #{name} input[type=number]")
                until(field.is_displayed)
                field.send_keys(Keys.CONTROL, "a")
                field.send_keys(str(value) or Keys.BACKSPACE, Keys.TAB)
        self.find(f"#ask-{tab}").click()

    def captions(self) -> list[str]:
        return self.texts("#captions textarea")[0].splitlines()

    def fault(self) -> str:
        """What the page complains of; takes note of it, so that it is gone."""
        [said] = until(lambda: self.texts("[data-testid=toast-text]"))
        self.find("[data-testid=toast-close]").click()
        until(lambda: not self.all("[data-testid=toast-text]"))
        return said


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One browser for all: the page stores nothing in it."""
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def ada(driver, page) -> Person:
    return Person(driver, page)


def test_a_picture_is_captioned_by_beam_and_by_nucleus(ada, root):
    ada.choose(root / "red.png")
    ada.ask("caption", sampler="beam", num_captions=1)
    until(lambda: ada.captions() == ["a red ball"])
    ada.ask("caption", num_captions=3)
    until(lambda: len(set(ada.captions())) == 3 and ada.captions()[0] == "a red ball")
    ada.ask("caption", sampler="nucleus", p=0.9, top_k=20, temperature=0.8, num_captions=2, seed=3)
    until(lambda: len(ada.captions()) == 2)
    ada.choose(root / "blue.png")
    until(lambda: not ada.captions())  # what was said of another picture is gone


def test_the_right_text_matches_better(ada, driver, root):
    """Several are asked about at once; the small picture fills its place, and its pixels stay squares."""
    ada.choose(root / "green.png")
    ada.ask("match", **{"match-text": f"a red ball\n\na green box\n{HOSTILE}"})
    lines = until(lambda: "a red ball" in (found := ada.find("#scores").text.splitlines()) and found)
    best = [line for line in lines if line in ("a red ball", "a green box", HOSTILE)]
    assert best[0] == "a green box" and len(best) == 3
    place = {text: lines.index(text) for text in best}
    (itm, itc), (wrong_itm, wrong_itc) = (map(float, lines[place[text] - 2 : place[text]]) for text in ("a green box", "a red ball"))
    assert itm > 0.8 > 0.2 > wrong_itm and itc > wrong_itc + 0.2
    assert "calibrated" not in ada.find("#scores").text  # of a calibrated filter only
    size = "const i = document.querySelector('#picture img'); return [i.naturalWidth, i.clientWidth, getComputedStyle(i).imageRendering]"
    natural, shown, rendering = driver.execute_script(size)
    assert (natural, rendering) == (64, "pixelated") and shown > 250


def test_search_finds_the_planted_picture_which_can_be_asked_about(ada, driver):
    ada.open("search")
    until(lambda: ada.texts("#progress")[0].strip() == "40 of 40 pictures of g1 can be searched")
    for text, key in (("a blue star", "web-000000033"), ("a red ball", "web-000000005")):
        ada.ask("search", **{"search-text": text, "count": 3, "rerank": 10})
        until(lambda key=key: ada.all("#hits img") and f"/shards/web-00000/{key}.jpg" in ada.find("#hits img").get_attribute("src"))
        assert len(ada.all("#hits img")) == 3
    until(lambda: driver.execute_script("return document.querySelector('#hits img').naturalWidth") == 64)
    cells = until(lambda: ada.texts("#hit-texts tbody td"))
    assert "web-000000005" in cells[0] and f"web: {HOSTILE}" in cells[2] and driver.execute_script("return window.ran") is None
    ada.find("#hits button.thumbnail-item").click()
    until(lambda: ada.chosen().endswith("/web-000000005.jpg"))
    ada.ask("caption", sampler="beam", num_captions=1)
    until(lambda: ada.captions() == ["a red ball"])


def test_each_word_has_a_map_over_the_picture(ada, driver, root):
    ada.choose(root / "scene.png")
    shades = """return [...document.querySelectorAll('#maps img')].map((i) => {
        if (!i.complete || !i.naturalWidth) return null;
        const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
        c.getContext('2d').drawImage(i, 0, 0);
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const warm = []; for (let i = 0; i < data.length; i += 4) warm.push(data[i] - data[i + 2]);
        return [c.width, c.height, Math.min(...warm), Math.max(...warm)]; })"""
    ada.ask("attention", of="caption")  # of one that the model writes
    until(lambda: len(ada.all("#maps img")) > 1)
    seen = [ada.find("#maps img").get_attribute("src")]
    for of, kind, layer in (("match", "grad_cam", 0), ("match", "attention", 2), ("caption", "grad_cam", 2)):
        ada.ask("attention", **{"of": of, "attention-text": "a red ball", "kind": kind, "layer": layer})
        until(lambda: ada.all("#maps img") and ada.find("#maps img").get_attribute("src") not in seen)
        seen.append(ada.find("#maps img").get_attribute("src"))
        assert [text.strip() for text in ada.texts("#maps .caption-label")] == ["all", "a", "red", "ball"]
        maps = until(lambda: (found := driver.execute_script(shades)) and all(found) and found)
        assert all((width, height) == (320, 240) for width, height, *_ in maps)
        assert max(warmest - coldest for _, _, coldest, warmest in maps) > 100  # some places glow, others do not
    ada.ask("attention", of="match", layer=2)
    assert "no word has a gradient there" in ada.fault()


def test_a_model_tuned_for_questions_has_a_page_of_its_own(root, tokenizer, tmp_path):
    """One tab, and maps of its answer; asked in this process, without a browser."""
    from blip_core.demo.page import make_page

    save_tuned(vqa_of(load_model(root / "model")[0]), tokenizer, tmp_path / "vqa", kind="vqa")
    service = open_service(tmp_path / "vqa", packed_settings(tmp_path / "vqa", load_params(ROOT / "params.yaml")))
    page = make_page(service, None, title="vqa", cache=tmp_path)
    assert [part["props"]["label"] for part in page.config["components"] if part["type"] == "tabitem"] == ["Question"]
    [ask] = [fn.fn for fn in page.fns.values() if fn.api_name == "answer"]
    said, maps = ask(str(root / "scene.png"), "is there a red ball", "grad_cam", 0)
    assert isinstance(said, str) and [word for _, word in maps] == ["all", "is", "there", "a", "red", "ball"]
    assert {drawn.shape for drawn, _ in maps} == {(240, 320, 3)}


def test_an_example_of_the_generation_is_there_to_be_asked_about(ada):
    ada.find("#examples button").click()
    until(lambda: ada.chosen().endswith("/web-000000000.jpg"))
    ada.ask("caption", sampler="beam", num_captions=1)
    until(lambda: len(ada.captions()) == 1)


def test_what_is_wrong_is_said_in_the_page(ada, root, page):
    ada.ask("caption")
    assert ada.fault() == "choose a picture first"
    for name, reason in (("notes.png", "not_an_image"), ("bomb.png", "bomb"), ("cut.jpg", "truncated")):
        ada.choose(root / name)
        ada.ask("caption")
        said = ada.fault()
        assert said.startswith(f"image: {reason}") and "expected a JPEG, PNG, WebP or GIF" in said
    ada.choose(root / "red.png")
    ada.ask("match", **{"match-text": ""})
    assert "empty_text" in ada.fault()
    ada.ask("match", **{"match-text": "a red ball"})
    until(lambda: "a red ball" in ada.find("#scores").text)
    assert "Traceback" not in page.told()


def test_the_page_asks_no_other_host_and_may_not(ada, driver, page, root):
    ada.choose(root / "red.png")
    ada.ask("search", **{"search-text": "a red ball"})
    until(lambda: ada.all("#hits img"))
    asked = [e for e in events(driver, "Network.requestWillBeSent") if not e["documentURL"].startswith("chrome")]  # of its first tab
    sent = [e["request"]["url"] for e in asked]
    assert sent and all(url.startswith((page, "blob:", "data:")) for url in sent)
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    inject = "const i = new Image(); i.src = arguments[0]; document.body.append(i)"
    driver.execute_script(inject, "http://127.0.0.1:9/x")
    until(lambda: any(e.get("blockedReason") == "csp" for e in events(driver, "Network.loadingFailed")))


def test_the_page_stands_alone(driver, page):
    assert_stands_alone(driver, page)


def test_a_narrow_window_will_do(ada, driver):
    for tab in ("caption", "match", "search", "attention"):
        ada.open(tab)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": False})
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def ask_past_the_page(page: str, name: str, data: list) -> dict:
    """The answer to a question that no page sent: to the function of that name, with any data."""
    [fn] = [f for f in httpx.get(f"{page}/config").json()["dependencies"] if f["api_name"] == name]
    session = {"session_hash": f"test{time.monotonic_ns()}"}
    httpx.post(f"{page}/gradio_api/queue/join", json={"data": data, "fn_index": fn["id"], **session}).raise_for_status()
    with httpx.stream("GET", f"{page}/gradio_api/queue/data", params=session, timeout=HANG) as lines:
        for line in lines.iter_lines():
            if '"process_completed"' in line:
                return json.loads(line.removeprefix("data: "))
    raise AssertionError("no answer")


def test_no_file_but_the_pages_own_can_be_had(page, root):
    (root / "secret.png").write_bytes((root / "red.png").read_bytes())
    for path in (
        "/etc/passwd",
        str(ROOT / "params.yaml"),
        str(root / "red.png"),
        "params.yaml",
        "model/config.json",
        "http://127.0.0.1:9/x",
    ):
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/proxy="):
            assert httpx.get(page + route + path).status_code in (400, 403, 404), route + path
    [own] = re.findall(r"/gradio_api/file=[^\"]+web-000000000.jpg", httpx.get(f"{page}/config").text)[:1]
    assert httpx.get(page + own).headers["content-type"] == "image/jpeg"
    cache = own.split("/shards/")[0]
    assert httpx.get(f"{page}{cache}/..%2f..%2fetc/passwd").status_code in (403, 404)
    for path in (str(root / "secret.png"), "http://127.0.0.1:9/x.png"):  # for an upload
        answer = ask_past_the_page(page, "match", [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a red ball"])
        assert not answer["success"] and "data" not in answer["output"]


def test_strangers_and_large_questions_are_turned_away(page):
    assert httpx.get(f"{page}/config", headers={"Host": "evil.example.org"}).status_code == 400  # a name that was pointed here
    answer = httpx.post(f"{page}/gradio_api/upload", files={"files": b" " * 60_000_000})
    assert answer.status_code == 413 and "choose a smaller picture" in answer.text
    simple = {"Content-Type": "text/plain"}  # what a page elsewhere may send without asking
    assert httpx.post(f"{page}/gradio_api/queue/join", content=b'{"data": [], "fn_index": 0}', headers=simple).status_code == 422
    for path in (
        "/docs",
        "/openapi.json",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/monitoring",
        "/gradio_api/vibe-edit",
        "/../params.yaml",
    ):
        assert httpx.get(page + path).status_code == 404
    assert "default-src 'self'" in httpx.get(page).headers["Content-Security-Policy"]


def test_a_taken_port_and_a_missing_gradio_are_said(page, root, tmp_path):
    command = [sys.executable, "-m", "blip_core", "demo", "--model", "model", "--params", str(ROOT / "params.yaml")]
    taken = subprocess.run([*command, "--port", page.rsplit(":", 1)[1]], cwd=root, capture_output=True, text=True)
    assert taken.returncode == 1 and "name another port with --port" in taken.stderr
    hide = "# warm\nimport sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'gradio' else f(n, *a); "
    hide += "import blip_core.__main__ as m; sys.exit(m.main(sys.argv[1:]))"
    missing = subprocess.run([sys.executable, "-c", hide, *command[3:]], cwd=root, capture_output=True, text=True)
    assert missing.returncode == 1 and "blip-bootstrap[demo]" in missing.stderr


def test_no_other_verb_imports_gradio():
    code = (
        "import sys, blip_core.__main__ as m\ntry: m.main(['demo', '--help'])\nexcept SystemExit: pass\nassert 'gradio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)


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
