"""A headless Chromium of the system, and what its network did."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support.processes import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --window-size=1100,800"
)


class NoBrowser(Exception):
    """Why there is none."""


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
