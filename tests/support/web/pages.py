"""Serves the page in this process, on a small model and a free port, and opens it in headless Chromium."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dsd_lightning.pipeline import TwoFramePipeline

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)

PATIENCE = 180
"""Seconds that an image may take on a machine with other work."""


# As the command does: pages of several test processes would otherwise share their uploads, and take them from each other.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="dsd-page-")


@contextmanager
def served(examples: Any = ()) -> Iterator[tuple[str, Any]]:
    """Serve a page of the shipped miniature; yield its address and its studio."""
    from dsd_lightning.ui.page import CSS, THEME, build_page
    from dsd_lightning.ui.studio import Studio

    studio = Studio(TwoFramePipeline.tiny(device="cpu"), miniature=True)
    page = build_page(studio, examples)
    options = {"theme": THEME, "css": CSS, "run_history": False, "ssr_mode": False, "footer_links": ["api"]}
    _, url, _ = page.launch(
        prevent_thread_lock=True, quiet=True, show_error=True, max_file_size="1mb", server_port=None, **options
    )
    try:
        yield str(url), studio
    finally:
        page.close()


@contextmanager
def chromium(width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """Yield a driver of headless Chromium; without one, the test fails in CI, and says elsewhere that it was left out."""
    browser, driver = (next(filter(None, map(shutil.which, names)), None) for names in (BROWSERS, DRIVERS))
    if browser is None or driver is None:
        message = (
            "NO BROWSER: the page was not tested. Install Debian's packages chromium and chromium-driver (.ci/run does)"
        )
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # No sandbox and no /dev/shm: both are missing in containers, where CI runs as root.
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def severe(driver: Any) -> list[str]:
    """Return what the browser's console calls an error."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def held_out_character(folder: Path) -> tuple[str, str]:
    """Return the file of a character's image, and a prompt."""
    from dsd_lightning.ui.examples import write_examples

    return write_examples(folder)[0]
