"""A real Chromium for the tests of the page. What a visitor does, and what such a browser noticed."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def find_chromium() -> str:
    """Path of the machine's own Chromium. Skips the test where it, or what drives it, is missing."""
    pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e .[dev]")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    return path


@contextmanager
def chromium(path: str) -> Iterator[Any]:
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visit:
    """One tab on the page: `tab` is Playwright's Page; what its console said, and methods and addresses asked."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **context})
        self.tab = self.context.new_page()
        self.errors: list[str] = []
        self.sent: list[tuple[str, str]] = []
        self.tab.on("console", self._note)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.sent.append((request.method, request.url.removeprefix(url))))
        self.tab.goto(url)
        self.sees("#limits", "at most")

    def _note(self, message: Any) -> None:
        refused = message.text.startswith("Failed to load resource: the server responded")
        if message.type in ("error", "warning") and not refused:
            self.errors.append(message.text)

    def sees(self, selector: str, text: str, *, seconds: float = 60) -> None:
        """Waits until this part of the page is visible with this text in it."""
        from playwright.sync_api import expect

        expect(self.tab.locator(selector).filter(visible=True)).to_contain_text(text, timeout=1000 * seconds)

    def pick(self, data: bytes, name: str = "cat.png") -> None:
        """Chooses a file in the file dialogue."""
        self.tab.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})

    def hand_over(self, event: str, data: bytes, name: str) -> None:
        """Drops or pastes a file: the event that a browser makes of it, with the file inside."""
        script = """([event, base64, name]) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name));
            const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
            const made = event === "drop" ? new DragEvent(event, options) : new ClipboardEvent(event, options);
            document.body.dispatchEvent(made);
        }"""
        self.tab.evaluate(script, [event, base64.b64encode(data).decode(), name])

    def upscale(self, data: bytes, name: str = "cat.png") -> None:
        """From the file dialogue to the result."""
        self.pick(data, name)
        self.tab.click("#go")
        self.sees("#done", "Done")

    def looks(self, selector: str) -> np.ndarray[Any, Any]:
        """A part of the page as it looks, as H×W×3."""
        png = self.tab.locator(selector).screenshot(animations="disabled")
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def box(self, selector: str) -> dict[str, float]:
        """x, y, width and height of a part of the page."""
        found: dict[str, float] = self.tab.locator(selector).bounding_box()
        return found

    def violations(self) -> str:
        """What axe finds wrong with the accessibility of the page as it is now; empty where all is well."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.tab, options=AXE_RULES)
        return found.generate_report() if found.violations_count else ""
