"""A headless Chromium of the system, and what its network did."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --window-size=1100,800"
)


class NoBrowser(Exception):
    """Why there is none."""


@contextmanager
def browser(folder: Path):
    """A browser until the block ends; the test skips where there is none."""
    try:
        found = start_browser(folder)
    except NoBrowser as e:
        pytest.skip(str(e))
    try:
        yield found
    finally:
        found.quit()


def start_browser(folder: Path):
    """A browser with a profile of its own: what one test stores, the next would otherwise see at times. It reaches this machine alone."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if not binary or not shutil.which("chromedriver"):
        raise NoBrowser("no Chromium with its chromedriver is installed (Debian: apt install chromium chromium-driver)")
    os.environ.update({"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"})
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    for flag in [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    found.downloads = folder / "downloads"
    found.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(found.downloads)})
    return found


def until(ask: Callable):
    """What is there at last: a browser does some things behind the page's back."""
    return wait_until(ask)


def events(driver, method: str) -> list[dict]:
    """What the browser's network did since somebody last asked."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"] for m in messages if m["method"] == method]


NARROW = 400  # pixels, as a phone has


def assert_stands_alone(driver, url: str) -> None:
    """The page asks no other host for anything, lacks nothing for it, and fits a narrow screen."""
    driver.get_log("browser")  # what pages before it said
    driver.get(url)
    found = {"asks elsewhere": asked_elsewhere(driver), "sticks out": sticks_out(driver, NARROW)}
    found["says"] = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not any(found.values()), f"{url}: {found}"


def asked_elsewhere(driver) -> list[str]:
    """What its pages asked other hosts for since somebody last asked, whether it came or not."""
    sent = [e for e in events(driver, "Network.requestWillBeSent") if not e["documentURL"].startswith("chrome")]  # its own first tab
    urls = [e["request"]["url"] for e in sent]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))]


# what sticks out on the right, but for parts that the reader moves by themselves: within one that scrolls or cuts off what is too wide
_STICKS_OUT = """
const cut = (e) => ['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(e).overflowX);
const within = (e) => { while ((e = e.parentElement) && e !== document.body) if (cut(e)) return true; return false; };
const right = (e) => Math.round(e.getBoundingClientRect().right);
const seen = (e) => e.getBoundingClientRect().width && e.getBoundingClientRect().height;
const out = [...document.body.querySelectorAll('*')].filter((e) => seen(e) && right(e) > innerWidth + 1 && !within(e));
return out.map((e) => `${e.tagName.toLowerCase()} to ${right(e)}: ${e.textContent.trim().slice(0, 60)}`);
"""


def sticks_out(driver, width: int) -> list[str]:
    """The elements of the page that a screen of so many pixels doesn't hold."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False})
    page = driver.execute_script("return document.documentElement.scrollWidth")
    found = driver.execute_script(_STICKS_OUT)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return found or ([f"the page is {page} pixels wide"] if page > width else [])
