"""A real browser for tests of pages: headless Chromium, which can reach nothing but this machine.

pytest_plugins = ("tests.browser",)  # the fixture `visit`

@pytest.mark.browser
def test_page_shows_it(visit: Visit) -> None:
    visit.page.goto("http://127.0.0.1:...")
    assert visit.requests_elsewhere == visit.dialogs == visit.faults == []
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HERE = ("127.0.0.1", "localhost", "[::1]")


def chromium() -> str:
    """Return the path of an installed Chromium; skips the test where there is none."""
    found = next(filter(None, (os.environ.get("CHROMIUM"), *map(shutil.which, NAMES))), None)
    if found is None:
        pytest.skip("no chromium here: install one (Debian: apt-get install chromium), or CHROMIUM")
    return found


@dataclass
class Visit:
    """A page in the browser, and all that it did which a page of ours must not do.

    Attributes:
        page: playwright's page.
        requests: the addresses that it asked for, in order.
        dialogs: the texts of alerts and the like.
        faults: what its scripts raised, or wrote as an error.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def requests_elsewhere(self) -> list[str]:
        """What was asked of anything but this machine's own addresses and files."""
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme not in ("file", "data", "blob")
            and urlsplit(url).hostname not in HERE
        ]

    def __post_init__(self) -> None:
        self.page.on("request", self._asked)
        self.page.on("dialog", self._said)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._wrote)

    def _asked(self, request: Request) -> None:
        self.requests.append(request.url)

    def _said(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _wrote(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(message.text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module; skips them where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright: make test-browser")
    executable = chromium()
    with sync_api.sync_playwright() as playwright:
        # In a container Chromium's own sandbox does not start; only pages of ours are opened. No
        # name resolves, so that a page that asks elsewhere fails at once.
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        opened = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh page, 1280 x 800."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield Visit(context.new_page())
    context.close()
