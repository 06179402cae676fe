"""Drives headless Chromium over its DevTools protocol, as a person uses a page; no network."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40}


class Page:
    """A page in its own browser.

    Args:
        url: of the page.
        profile: folder for the browser's files; the same one keeps what a page has stored.
        downloads: folder for what is saved.
    """

    def __init__(self, url: str, profile: Path, downloads: Path) -> None:
        assert CHROMIUM is not None
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        self._storage = profile / "Default" / "Local Storage" / "leveldb"
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self._process.stderr is not None
        address = next(line.split()[-1] for line in self._process.stderr if "DevTools listening" in line)
        self._socket = connect(address, max_size=None)
        self._session: str | None = None
        self._number = 0
        self._width = 0
        self.requested: list[str] = []
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Network.enable")
        self._call("Page.enable")
        self.visit(url)

    def visit(self, url: str) -> None:
        """Open a page and wait until it is loaded and drawn."""
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")
        self.settle()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 120) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)

    def resize(self, width: int, height: int = 844) -> None:
        """Give the page the size of a phone (390 pixels wide) or of a window."""
        self._width = width
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def fits(self) -> bool:
        """Return whether nothing is wider than the window: a phone would lay the page out wider, and show all of it smaller."""
        wide = f"innerWidth === {self._width} && document.documentElement.scrollWidth <= {self._width}"
        return bool(self.evaluate(wide))

    def screenshot(self) -> bytes:
        """Return what the page shows, as a png."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def settle(self) -> None:
        """Wait until the page has been laid out and drawn twice."""
        script = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        self._call("Runtime.evaluate", expression=script, awaitPromise=True)

    def until_stored(self, seconds: float = 60) -> None:
        """Wait until the page's local storage is on disk: Chromium writes it after some 5 s, and not surely at its end."""
        values = self.evaluate("Object.values(localStorage)")
        assert values, "the page has stored nothing"
        deadline = time.monotonic() + seconds
        while True:
            # LevelDB's tables and journals: other files there, which it renames, may vanish while they are read.
            files = [*self._storage.glob("*.log"), *self._storage.glob("*.ldb")]
            written = b"".join(file.read_bytes() for file in files)
            if all(text.encode("latin-1") in written for text in values):
                return
            assert time.monotonic() < deadline, values
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click what a selector finds."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def type_into(self, selector: str, text: str) -> None:
        """Give a field a value, as typing does."""
        self.evaluate(
            "((field, value) => { field.value = value; "
            "for (const kind of ['input', 'change', 'blur']) field.dispatchEvent(new Event(kind, {bubbles: true})) })"
            f"(document.querySelector({json.dumps(selector)}), {json.dumps(text)})"
        )

    def press(self, key: str) -> None:
        """Press a key."""
        text = key if len(key) == 1 else ""
        code = KEYS.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            shown = {"text": text} if text and kind == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **shown)

    def close(self) -> None:
        """End the browser as its user would, so that its files are written."""
        self._session = None
        self._call("Browser.close")
        self._socket.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._process.kill()
            self._process.wait()
