"""The page for judgments in a real browser: keys, clicks, tabs, and texts that want to act."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from macpo.annotation.judgments import JudgmentFile, left_side
from macpo.records import Message
from tests.annotation.files import make_file, make_pair, make_pairing

if TYPE_CHECKING:
    from tests.browser import Visit

pytest_plugins = ("tests.browser",)
pytestmark = pytest.mark.browser

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)><b>bold</b>\n"
    "<svg onload=alert(3)><a href='javascript:alert(4)'>x</a> \x1b[31m &lt;i&gt;"
)


@dataclass
class Served:
    """A file behind a server in this process."""

    file: JudgmentFile
    address: str
    stop: Any


def serve_in_thread(file: JudgmentFile) -> Served:
    uvicorn = pytest.importorskip("uvicorn", reason="needs macpo[annotate]")
    from macpo.annotation.server import make_app

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(file, "127.0.0.1"), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        listening.close()

    return Served(file, f"http://127.0.0.1:{listening.getsockname()[1]}/", stop)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = serve_in_thread(make_file(tmp_path))
    yield made
    made.stop()


def begin(visit: Visit, served: Served, name: str = "Anna") -> None:
    visit.page.goto(served.address)
    visit.page.fill("#name", name)
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#judge:not([hidden])")


def wait_for_count(page: Any, done: int) -> None:
    page.locator("#count", has_text=re.compile(rf"^{done} of")).wait_for(state="attached")


def clean(visit: Visit) -> bool:
    return visit.requests_elsewhere == visit.dialogs == visit.faults == []


def test_keys_judge_and_undo(visit: Visit, served: Served) -> None:
    begin(visit, served)
    pairs = served.file.pairs
    expected = []
    for done, key in enumerate(["1", "2", "0", "ArrowLeft", "ArrowRight", "ArrowDown"], 1):
        left = left_side(pairs[done - 1].id, "Anna")
        right = "other" if left == "one" else "one"
        side = {"1": left, "ArrowLeft": left, "2": right, "ArrowRight": right}
        expected.append(side.get(key, "tie"))
        visit.page.keyboard.press(key)
        wait_for_count(visit.page, done)
    assert visit.page.is_visible("#end")
    assert [j.verdict for j in served.file.judgments()] == expected

    visit.page.keyboard.press("u")
    wait_for_count(visit.page, 5)
    assert visit.page.is_visible("#judge")
    assert len(served.file.judgments()) == 5
    assert clean(visit)


def test_clicks_judge_and_show_what_was_chosen(visit: Visit, served: Served) -> None:
    begin(visit, served)
    texts = visit.page.locator(".answer .text").all_text_contents()
    pair = served.file.pairs[0]
    assert sorted(texts) == sorted([pair.one.text, pair.other.text])
    visit.page.click("[data-choice=right]")
    wait_for_count(visit.page, 1)
    better = {"one": pair.one.text, "other": pair.other.text}
    assert better[served.file.judgments()[0].verdict] == texts[1]
    assert visit.page.text_content("#said") == "Kept."
    assert clean(visit)


def test_going_on_later_and_a_second_person(visit: Visit, served: Served) -> None:
    begin(visit, served)
    visit.page.keyboard.press("1")
    wait_for_count(visit.page, 1)
    begin(visit, served, "Bert")
    visit.page.keyboard.press("2")
    wait_for_count(visit.page, 1)

    visit.page.goto(served.address)
    visit.page.click("text=Go on as Anna")
    wait_for_count(visit.page, 1)
    assert served.file.pairs[1].prompt.messages[-1].content in visit.page.inner_text("#prompt")
    assert served.file.annotators() == {"Anna": 1, "Bert": 1}
    assert clean(visit)


def test_two_tabs_and_held_keys_count_once(visit: Visit, served: Served) -> None:
    begin(visit, served)
    other = visit.page.context.new_page()
    other.goto(served.address)
    other.fill("#name", "Anna")
    other.keyboard.press("Enter")
    other.wait_for_selector("#judge:not([hidden])")
    visit.page.keyboard.press("1")
    wait_for_count(visit.page, 1)
    other.keyboard.press("2")
    other.locator("#said", has_text="another tab").wait_for()
    assert len(served.file.judgments()) == 1

    other.evaluate(
        "for (const repeat of [false, true, true]) "
        "dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat, bubbles: true}))"
    )
    other.evaluate("document.querySelector('[data-choice=left]').click()")
    wait_for_count(other, 2)
    assert len(served.file.judgments()) == 2


def test_texts_do_nothing_and_keep_their_whitespace(visit: Visit, tmp_path: Path) -> None:
    code = "def f():\n\treturn  1\n\n\n# " + "long " * 200 + "x" * 500
    pair = make_pair(EVIL, EVIL, code, Message("user", EVIL), Message("assistant", EVIL))
    pairing = make_pairing([pair, make_pair("Empty?", "  ", "full")])
    served = serve_in_thread(JudgmentFile.open(tmp_path / "evil.sqlite", pairing))
    try:
        begin(visit, served, "<b>Eve</b> \"' onload=alert(5)")
        shown = visit.page.locator(".answer .text").all_text_contents()
        assert sorted(shown) == sorted([EVIL, code])
        assert visit.page.locator("#prompt .text").all_text_contents() == [EVIL] * 3
        wide = visit.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not wide
        style = "getComputedStyle(document.querySelector('.answer .text')).whiteSpace"
        assert visit.page.evaluate(style).startswith("pre-wrap")
        visit.page.keyboard.press("0")
        wait_for_count(visit.page, 1)
        assert "(an empty answer)" in visit.page.locator(".answer .text").all_text_contents()
        visit.page.goto(served.address)
        visit.page.wait_for_selector("#known button")
        assert clean(visit)
        assert visit.page.locator("img, svg, b, a").count() == 0
    finally:
        served.stop()


def test_server_that_is_gone_is_told_and_comes_back(visit: Visit, tmp_path: Path) -> None:
    served = serve_in_thread(make_file(tmp_path))
    begin(visit, served)
    served.stop()
    visit.page.keyboard.press("1")
    visit.page.wait_for_selector("#said.bad")
    assert "The server does not answer" in visit.page.inner_text("#said")
    assert visit.page.locator(".chosen").count() == 0
    assert served.file.judgments() == []


def test_script_that_is_not_the_pages_own_does_not_run(visit: Visit, served: Served) -> None:
    """What the Content-Security-Policy is for, should a text ever be taken for markup."""
    begin(visit, served)
    visit.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.hit = 2';"
        "document.body.append(s)"
    )
    visit.page.wait_for_timeout(300)
    assert visit.page.evaluate("window.hit") is None
    refused = visit.page.evaluate(
        "fetch('http://localhost:9/').then(() => 'asked', () => 'refused')"
    )
    assert refused == "refused"
    assert any("Content Security Policy" in fault for fault in visit.faults)


@pytest.mark.parametrize("size", [(390, 844), (1280, 800)], ids=["phone", "desktop"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_can_be_reached(
    visit: Visit, tmp_path: Path, size: tuple[int, int], theme: Any
) -> None:
    """Nothing is wider than the screen, buttons are large and in sight, long answers scroll."""
    long = "A long line of an answer. " * 400
    pairing = make_pairing([make_pair("Tell me " + "more " * 300, long, long[1:])])
    served = serve_in_thread(JudgmentFile.open(tmp_path / "long.sqlite", pairing))
    try:
        visit.page.set_viewport_size({"width": size[0], "height": size[1]})
        visit.page.emulate_media(color_scheme=theme)
        begin(visit, served)
        assert not visit.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        for button in visit.page.locator("#buttons button").all():
            box = button.bounding_box()
            assert box is not None
            assert min(box["height"], box["width"]) >= 44
            assert box["y"] + box["height"] <= size[1]
        answers = visit.page.locator(".answer .text")
        assert answers.first.evaluate("e => e.scrollHeight > e.clientHeight + 100")
        boxes = [a.bounding_box() for a in visit.page.locator(".answer").all()]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert (boxes[0]["y"] == boxes[1]["y"]) is (size[0] > 720)
        ground = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        brightness = sum(int(part) for part in ground[4:-1].split(","))
        assert (brightness > 600) is (theme == "light")
    finally:
        served.stop()
