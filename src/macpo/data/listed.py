"""Lists that a table holds as text: as JSON, as Python or as numpy writes them. Never executed.

    '["7", "8"]'    "['7', '8']"    "['7' '8']"    "array([{'role': 'user', …}], dtype=object)"

A csv has no lists; what wrote it has put some spelling of one into a cell. numpy puts no commas
between elements, and what Python makes of that is another list: it joins neighbouring texts.
"""

from __future__ import annotations

import ast
import json
import re

TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
SPELLED = re.compile(
    rf"(?P<parted>{TEXT}(?=\s+['\"])|\}}(?=\s*\{{))|{TEXT}"
    r"|(?P<array>\barray\()|(?P<dtype>,\s*dtype=\w+)",
    re.DOTALL,
)
NUMPY_TEXTS = re.compile(rf"\s*\[\s*{TEXT}(?:\s+{TEXT})+\s*\]\s*", re.DOTALL)


def parse_list(text: str) -> list[object] | None:
    """Return the list that a text spells, one of objects also without its brackets; None if none.

    Where numpy has cut a long list, an `Ellipsis` stands in it.
    """
    value: object = None
    for parse, spelled in ((json.loads, text.strip()), (ast.literal_eval, _as_python(text))):
        try:
            value = parse(spelled)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if isinstance(value, dict):
        return [value]
    return value if isinstance(value, list) else None


def is_numpy_texts(text: str) -> bool:
    """Say whether a text is what numpy prints of several texts."""
    return NUMPY_TEXTS.fullmatch(text) is not None


def _as_python(text: str) -> str:
    """Return what numpy prints as a Python literal: with commas, without `array` and `dtype`."""

    def mend(found: re.Match[str]) -> str:
        if found["array"]:
            return "("
        return "" if found["dtype"] else found[0] + ("," if found["parted"] else "")

    return SPELLED.sub(mend, text.strip())
