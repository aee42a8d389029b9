"""Pages that the project makes, in a real browser without a network: each asks no other host for anything, and fits a narrow screen. The
demo's page is asked the same in tests/demo/test_demo.py, where its server runs.

Needs Chromium and its driver (Debian: chromium, chromium-driver); without them these tests skip."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from blip_core.checks.docs import Docs
from blip_core.checks.expect import at_least, one_of
from blip_core.checks.expectations import check
from blip_core.sample.write import write_sample
from tests.report.test_interim import draw
from tests.report.test_report import build, run
from tests.support.browser import NARROW, asked_elsewhere, assert_stands_alone, browser, sticks_out, until
from tests.support.small import sample_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def test_what_a_page_takes_from_elsewhere_or_lets_stick_out_is_found(driver, tmp_path):
    """Else the tests below would find nothing whatever stood on a page."""
    page = tmp_path / "page.html"
    page.write_text('<title>t</title><img src="https://cdn.example.org/x.png"><p style="width: 500px">wide</p>')
    driver.get(page.as_uri())
    assert asked_elsewhere(driver) == ["https://cdn.example.org/x.png"]
    assert sticks_out(driver, NARROW) == ["p to 508: wide"]


def test_data_docs_stand_alone(driver, tmp_path):
    texts = pa.table({"source": ["web", "robot" * 30], "shard": ["web-00000"] * 2, "row": [0, 1], "key": ["web-0", "w" * 200]})
    facts = pa.table({"residual_noise_web_upper": [0.5]})
    suites = {
        "texts": (texts, [one_of("source", "source", ("web",), f"rows whose source is none of {'web, ' * 40}")]),
        "facts": (facts, [at_least("residual_noise_web_upper", 0.9, "noise left in the kept web texts")]),
    }
    check(suites, docs=Docs(tmp_path / "gate-r1", "Gate of g1", "0" * 64, notes=["n" * 300]))
    for page in (tmp_path / "index.html", tmp_path / "gate-r1/index.html"):
        assert_stands_alone(driver, page.as_uri())


def test_the_plots_of_dvc_are_drawn_without_another_host(driver, tmp_path, monkeypatch):
    """DVC's own page takes the scripts that draw from one."""
    from dvc.cli import main as dvc

    (tmp_path / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/plots.html"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "losses.csv").write_text("step,loss\n1,3.0\n2,1.0\n")
    (tmp_path / "dvc.yaml").write_text("plots:\n  - losses:\n      x: step\n      y: {losses.csv: loss}\n")
    (tmp_path / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    assert dvc(["plots", "show", "--quiet"]) == 0
    driver.get((tmp_path / "dvc_plots/index.html").as_uri())
    assert until(lambda: driver.find_elements("css selector", "#losses canvas, #losses svg, .vega-embed canvas"))
    assert asked_elsewhere(driver) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The artifacts of a chain with its report, the sheets to judge, and the report so far."""
    root = tmp_path_factory.mktemp("reported")
    write_sample(root / "data", sample_config(seed=1, num_web=40, num_train=10, num_val=6, num_test=6))
    build(root / "artifacts", root / "data")
    run(root / "artifacts", root / "data")
    draw(root / "artifacts", root / "data")
    return root / "artifacts"


@pytest.mark.parametrize("name", ["report/index.html", "report/review-r1.html", "interim/index.html"])
def test_the_report_and_the_sheet_stand_alone(driver, written, name):
    assert_stands_alone(driver, (written / name).as_uri())


def test_the_site_of_the_docs_stands_alone(driver, site):
    pages = sorted(page.relative_to(site) for page in site.rglob("index.html"))
    assert len(pages) > 15
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever).start()
        for page in pages:
            assert_stands_alone(driver, f"http://127.0.0.1:{server.server_port}/{page}")
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass
