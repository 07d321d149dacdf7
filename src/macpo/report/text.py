"""Text and numbers made fit for a terminal: model output is untrusted."""

from __future__ import annotations

import re
import unicodedata

# Escape sequences as ECMA-48 has them: CSI ("\x1b[31m"), strings such as OSC ("\x1b]0;title\x07"),
# and the short ones. The 8-bit forms (U+009B and so on) go as control characters below.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~]|$)"
)
# The same without those that a text to come may still end.
_WHOLE_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-OQ-WYZ\\`-~])"
)
LONGEST_ESCAPE = 1000
"""Characters that are held back for the end of an escape sequence, at most."""

# Marks that turn the direction of the text around them, or of the whole line.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


UNITS = "kMGTPEZ"


def plain_line(text: str) -> str:
    """Return a text on one line, without anything that a terminal would act on.

    Escape sequences go; every run of white space becomes one space; other control characters and
    halves of surrogate pairs become U+FFFD.
    """
    words = " ".join(_ESCAPES.sub("", text).split())
    return "".join(
        "" if c in _BIDI else "\N{REPLACEMENT CHARACTER}" if _is_control(c) else c for c in words
    )


def plain_text(text: str) -> str:
    """Return a text, lines and tabs kept, without anything that a terminal would act on.

    Escape sequences and carriage returns go; other control characters and halves of surrogate
    pairs become U+FFFD.
    """
    return "".join(map(_shown, _ESCAPES.sub("", text)))


class PlainStream:
    """`plain_text` of a text that arrives in pieces, which may part an escape sequence."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take the next piece, and return what can be shown by now."""
        text = _WHOLE_ESCAPES.sub("", self._held + piece)
        cut = text.find("\x1b")
        if cut < 0 or len(text) - cut > LONGEST_ESCAPE:
            cut = len(text)
        self._held = text[cut:]
        return plain_text(text[:cut])

    def end(self) -> str:
        """Return what was held back."""
        rest, self._held = plain_text(self._held), ""
        return rest


def _shown(character: str) -> str:
    if character in _BIDI or character == "\r":
        return ""
    if character in "\n\t" or not _is_control(character):
        return character
    return "\N{REPLACEMENT CHARACTER}"


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def shorten(text: str, limit: int) -> str:
    """Return `plain_line(text)`, cut to `limit` characters at most, an ellipsis included."""
    line = plain_line(text[: 20 * limit])
    if len(line) <= limit and len(text) <= 20 * limit:
        return line
    return line[: limit - 1].rstrip() + "…"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_count(number: float) -> str:
    """Write a large number in three digits: `950`, `12.3k`, `4.56M`, `7.89G`."""
    if number < 999.5:
        return f"{number:.0f}"
    for unit in UNITS:
        number /= 1000
        # The next unit also takes what would round up to 1000 of this one.
        if number < 999.5:
            return f"{number:.3g}{unit}"
    return f"{number:.2e}{UNITS[-1]}"


def plural(number: int, noun: str) -> str:
    """Write a number with its noun: `1 stage`, `1,200 stages`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
