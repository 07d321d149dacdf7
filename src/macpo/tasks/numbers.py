"""The final number of a worked answer, as an exact fraction.

final_number("16 - 3 - 4 = 9, so she earns $18.")     # Fraction(18, 1)
final_number("That leaves 3/4 of it.\\n#### 0.75")     # Fraction(3, 4)
"""

from __future__ import annotations

import re
from fractions import Fraction

MARKS = ("####", "\\boxed{")
"""What announces a final answer: in GSM8K, and in what models write after MATH."""

MOST_DIGITS = 100
"""Of a number that is taken for an answer; a model caught in a loop writes thousands."""

CALCULATION = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations, such as `<<48/2=24>>`."""

_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{\s*([0-9]+)\s*\}\{\s*([0-9]+)\s*\}")

# A minus is a sign only where nothing stands before it that it could be taken from.
_NUMBER = re.compile(
    r"(?<![\w.])(?P<minus>(?<![)\]])[-\N{MINUS SIGN}])?[$€£]?(?P<minus_behind>-)?"
    r"(?P<whole>[0-9]+(?:,[0-9]{3})*(?![0-9])|(?=\.[0-9]))"
    r"(?P<decimals>\.[0-9]+)?"
    r"(?:(?P<mixed> [0-9]+)?/(?P<below>[0-9]+)(?!\.?[0-9/]))?"
)


def final_number(text: str) -> Fraction | None:
    """Return the number that an answer ends with; None if it holds none.

    The first number after the last of `MARKS`, else the last number of the text. Commas between
    thousands, currency signs and units do not count (`$1,200.00` is 1200, `18 %` is 18); `3/4` and
    `1 1/2` are fractions. A number of over `MOST_DIGITS` digits, or with 0 below the line, is none.
    """
    text = _LATEX_FRACTION.sub(r"\1/\2", CALCULATION.sub("", text)).replace("\\$", "$")
    at = max((text.rfind(mark) + len(mark) for mark in MARKS if mark in text), default=None)
    if at is not None:
        found = next(_NUMBER.finditer(text, at), None)
        if found is not None:
            return _value(found)
    return _value(found) if (found := _last(text)) is not None else None


def _last(text: str) -> re.Match[str] | None:
    """Return the last number of a text."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    """Return what a number is worth."""
    parts = {name: part or "" for name, part in match.groupdict().items()}
    if sum(map(len, parts.values())) > MOST_DIGITS:
        return None
    value = Fraction(f"{parts['whole'].replace(',', '') or '0'}{parts['decimals']}")
    if parts["below"]:
        below = int(parts["below"])
        if below == 0:
            return None
        above = parts["mixed"].strip()
        value = value + Fraction(int(above), below) if above else value / below
    return -value if parts["minus"] or parts["minus_behind"] else value
