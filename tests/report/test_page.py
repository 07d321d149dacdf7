"""The page: every text is shown as text, whoever wrote it, and nothing is asked of anybody."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from macpo.report.page import render_run, script_json
from tests.report.pages import change, curve, judged, report_saying, run_report

EVIL = (
    "<script>window.evil = 1</script>",
    "</script><script>window.evil = 1</script>",
    "<!--<script>",
    "]]><img src=http://example.com/x onerror=window.evil=1>",
    "\"' onmouseover=window.evil=1 x='",
    "javascript:window.evil=1",
    "{{ 7 * 7 }}{% for x in y %}",
    "\u2028\u2029 \ud83d &amp; \x1b[31mred\x1b[0m \x00",
)


class Elements(HTMLParser):
    """Keeps the elements of a page, with their attributes, and the texts of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data


@pytest.mark.parametrize("text", EVIL)
def test_no_text_becomes_an_element_an_attribute_or_a_script(text: str) -> None:
    plain, evil = (
        Elements(render_run(report_saying("plain"))),
        Elements(render_run(report_saying(text)).encode("utf-8", "replace").decode()),
    )

    def shape(page: Elements) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in page.elements]

    assert shape(evil) == shape(plain)
    assert evil.scripts[1:] == plain.scripts[1:]  # the first holds the transcripts
    assert not any(name.startswith("on") for _, names in shape(evil) for name in names)


@pytest.mark.parametrize("text", EVIL)
def test_json_in_a_script_cannot_end_it(text: str) -> None:
    written = script_json({text: [text]})
    assert not set(written) & set("<>&\u2028\u2029")
    assert written.isascii()
    assert json.loads(written) == {text: [text]}


def test_page_names_no_address_and_allows_none() -> None:
    page = render_run(report_saying("plain"))
    for attribute in ("src", "href", "action", "srcset", "poster", "data", "style"):
        values = [found[attribute] for _, found in Elements(page).elements if attribute in found]
        assert all(value is not None and value.startswith("#") for value in values), attribute
    assert "url(" not in page
    assert "@import" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]


def test_what_people_said_is_shown_with_its_uncertainty() -> None:
    page = render_run(run_report(judgments=(judged(),)))
    said = page[page.index('<section id="people">') : page.index('<section id="signs">')]
    for text in ("66.7 % (55 to 79)", "won by student@3; without ties 69.2 %", "lost 8; 20 of 40"):
        assert text in said
    for text in ("<td>Anna</td>", ">0.61</td>", "Fleiss&#39; kappa, on 10 that everybody judged"):
        assert text in said
    assert (
        "By people&#39;s judgments student@3 won 66.7 % (55 to 79) against student@0, a tie half a "
        "win: 30 judgments of 20 pairs by 2 annotators."
    ) in page


def test_first_words_tell_of_people_only_what_is_of_the_student() -> None:
    page = render_run(run_report(judgments=(judged(one="weak@3", other="weak@0"),)))
    assert "won by weak@3" in page
    assert "By people" not in page


def test_where_nobody_judged_there_is_no_word_of_people() -> None:
    page = render_run(run_report())
    assert "people" not in page[page.index("<main>") :]
    assert "#people" not in page


def test_answer_stands_first_and_says_what_it_stands_on() -> None:
    page = render_run(
        run_report(
            curves=(curve("preference_accuracy", 0.5, 0.6, 0.7, 0.7),),
            changes=(change("preference_accuracy", 0.5, 0.7, 0.1),),
        )
    )
    assert "Yes: the student improved in preference accuracy." in page
    assert "+20.0 points ± 10.0 points: better" in page


def test_run_without_anything_has_a_page() -> None:
    page = render_run(run_report(agents=(), pairs=0, rounds=0, stages_total=None, state="stopped"))
    assert "Too early to tell" in page
    assert 'id="curves"' not in page
    assert 'id="transcripts"' not in page
