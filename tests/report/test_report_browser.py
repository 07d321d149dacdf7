"""The report in a real browser: whatever texts it shows, nothing runs and nothing is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from macpo.report.page import render_run
from macpo.report.text import plain_text
from tests.report.pages import report_saying
from tests.report.test_page import EVIL
from tests.runs import FinishedRun

if TYPE_CHECKING:
    from tests.browser import Visit

pytest_plugins = ("tests.browser",)
pytestmark = pytest.mark.browser


def opened(visit: Visit, folder: Path, page: str) -> Visit:
    """Open a page from disk."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    visit.page.goto(path.as_uri())
    return visit


def test_what_models_wrote_neither_runs_nor_asks(visit: Visit, tmp_path: Path) -> None:
    text = plain_text("\n".join(EVIL))  # as it is gathered
    opened(visit, tmp_path, render_run(report_saying(text)))
    visit.page.locator("#transcript-list .answer").first.wait_for()
    for summary in visit.page.locator("summary").all():
        summary.click()
    for field in visit.page.locator("[data-tip]").all():
        field.dispatch_event("pointermove", {"clientX": 5, "clientY": 5})
    visit.page.fill("#transcript-search", "<script>")
    assert visit.page.locator("mark").first.inner_text() == "<script>"
    assert visit.page.evaluate("window.evil") is None
    assert visit.page.locator("script").count() == 2
    assert visit.page.locator("img, iframe, object, embed, link").count() == 0
    assert (visit.requests_elsewhere, visit.dialogs, visit.faults) == ([], [], [])
    assert len(visit.requests) == 1  # the file itself
    shown = visit.page.locator("#transcript-list .answer .text").first.inner_text()
    assert "<script>window.evil = 1</script>" in shown
    assert "\x1b" not in shown


def test_policy_keeps_a_script_from_running_that_slipped_in(visit: Visit, tmp_path: Path) -> None:
    page = render_run(report_saying("plain"))
    broken = page.replace("<main>", "<main><script>window.evil = 1</script>")
    broken = broken.replace("<main>", '<main><img src="http://example.com/x" onerror="evil()">')
    opened(visit, tmp_path, broken)
    assert visit.page.evaluate("window.evil") is None
    refused = [fault for fault in visit.faults if "Content Security Policy" in fault]
    assert any("script" in fault for fault in refused)
    assert any("http://example.com/x" in fault for fault in refused)


def test_report_of_a_run_can_be_read_and_searched(visit: Visit, finished: FinishedRun) -> None:
    visit.page.goto((finished.folder / "report.html").as_uri())
    assert visit.page.locator("h1").inner_text() == "tiny"
    assert visit.page.locator("#transcript-list article").count() == 4
    visit.page.fill("#transcript-search", "no answer holds these words")
    assert visit.page.locator("#transcript-list article").count() == 0
    visit.page.fill("#transcript-search", "")
    visit.page.select_option("#transcript-agent", "")
    assert visit.page.locator("#transcript-list article").first.locator(".answer").count() == 9
    visit.page.click("[data-order=worst]")
    assert visit.page.get_attribute("[data-order=worst]", "aria-pressed") == "true"
    field = visit.page.locator("#curves [data-tip]").nth(1)
    field.hover()
    assert "student" in visit.page.locator("#tip").inner_text()
    assert (visit.requests_elsewhere, visit.dialogs, visit.faults) == ([], [], [])


def test_light_and_dark_can_be_chosen(visit: Visit, finished: FinishedRun) -> None:
    def background() -> str:
        return str(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    visit.page.emulate_media(color_scheme="light")
    visit.page.goto((finished.folder / "report.html").as_uri())
    light = background()
    visit.page.click("#theme")
    dark = background()
    assert light != dark
    visit.page.emulate_media(color_scheme="dark")
    assert background() == dark
    visit.page.click("#theme")
    assert background() == light


def test_phone_needs_no_scrolling_sideways(visit: Visit, finished: FinishedRun) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 740})
    visit.page.goto((finished.folder / "report.html").as_uri())
    for summary in visit.page.locator("summary").all():
        summary.click()
    wide = visit.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
