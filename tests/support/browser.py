"""A browser without a window, driven by the WebDriver protocol: pages as a person gets to see them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.runs import free_port

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--window-size=1600,1400", "--hide-scrollbars", "--no-first-run"),
)
# Pages are made of parts with trees of their own, which a plain query does not enter.
_DEEP = """
const found = [];
const walk = (node) => {
  for (const one of node.querySelectorAll('*')) {
    if (one.matches(arguments[0])) found.push(one);
    if (one.shadowRoot) walk(one.shadowRoot);
  }
};
walk(document);
const silent = ['STYLE', 'SCRIPT', 'TEMPLATE', 'DOM-MODULE'];
const said = (node) => node.nodeType === Node.TEXT_NODE ? node.data
  : silent.includes(node.nodeName) ? ''
  : [...(node.shadowRoot || node).childNodes, ...(node.shadowRoot ? node.childNodes : [])].map(said).join(' ');
"""


class Browser:
    """One page at a time."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": list(_OPTIONS)}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        body = {"script": script, "args": list(arguments)}
        return self._call("POST", f"{self._session}/execute/sync", body)

    def texts(self, selector: str) -> list[str]:
        """The words of all elements, one space between any two, in their order."""
        found = self.run(f"{_DEEP} return found.map(said);", selector)
        return [" ".join(text.split()) for text in found]

    def attributes(self, selector: str, name: str) -> list[str]:
        """A property of all elements, in their order."""
        return list(
            self.run(f"{_DEEP} return found.map((one) => String(one[arguments[1]]));", selector, name)
        )

    def wait(self, seen: Callable[[Browser], Any], limit_s: float = 60.0) -> Any:
        """What `seen` returns once that is true; fails with the page's text after the limit."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if found := seen(self):
                return found
            time.sleep(0.2)
        raise AssertionError(f"not seen in {limit_s:g} s; the page says: {self.texts('body')}")

    def screenshot(self, path: Path) -> Path:
        """Keep what the page looks like, as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))
        return path

    def close(self) -> None:
        """End the browser."""
        self._call("DELETE", self._session)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for the block. CHROMIUM and DRIVER must be there."""
    port = free_port()
    driver = subprocess.Popen(
        [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/status")
        page = Browser(port)
        try:
            yield page
        finally:
            page.close()
    finally:
        driver.terminate()
        driver.wait(30)


def wait_for(url: str, limit_s: float = 120.0) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
