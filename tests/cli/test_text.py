"""Untrusted text and numbers on a terminal."""

from __future__ import annotations

import pytest

from macpo.report.text import format_count, format_seconds, plain_line, plural, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[1;1Hhome", "home"),
        ("\x1bcreset", "reset"),
        ("cut\x1b[3", "cut3"),
        ("\x1b]0;without an end", "0;without an end"),
        ("lone\x1b", "lone"),
        ("a\x1b\nb", "a� b"),
        ("bell\x07", "bell�"),
        ("over\rwritten\nlines\tand  spaces", "over written lines and spaces"),
        ("8-bit\x9b31m", "8-bit�31m"),
        ("half \ud83d", "half �"),
        ("right\u202eleft", "rightleft"),
        ("naïve 日本 🙂", "naïve 日本 🙂"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
    ],
)
def test_plain_line_holds_nothing_that_a_terminal_acts_on(text: str, shown: str) -> None:
    assert plain_line(text) == shown


def test_long_text_ends_in_an_ellipsis() -> None:
    assert shorten("one two three", 20) == "one two three"
    assert shorten("one two three", 9) == "one two…"
    assert shorten("x" * 10**6, 5) == "xxxx…"
    assert shorten(" " * 10**6 + "x", 5) == "…"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3600, "1 h 00 min"),
        (7630, "2 h 07 min"),
        (172800, "2 d 0 h"),
        (277200, "3 d 5 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (950.4, "950"),
        (999.6, "1k"),
        (12345, "12.3k"),
        (999_960, "1M"),
        (134_515_008, "135M"),
        (7e10, "70G"),
        (1.5e15, "1.5P"),
        (1.79e18, "1.79E"),
        (2e25, "2.00e+04Z"),
    ],
)
def test_large_numbers(number: float, shown: str) -> None:
    assert format_count(number) == shown


def test_plurals() -> None:
    assert plural(1, "stage") == "1 stage"
    assert plural(1200, "stage") == "1,200 stages"
