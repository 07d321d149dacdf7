"""Odd values, and damaged bytes."""

from __future__ import annotations

import random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 1e308, float("nan"), float("-inf")),
    *("", "x" * 300, "\x1b[2J", "\ud800", "../..", "~nobody-there", [], {}, [[]], {"": None}),
)


def odd(value: Any, generator: random.Random) -> Any:
    """Return a value with something in it replaced by something odd, or left out."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(sorted(value, key=str))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if generator.random() < 0.2 else {**rest, key: odd(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.9:
        at = generator.randrange(len(value))
        return [*value[:at], odd(value[at], generator), *value[at + 1 :]]
    return generator.choice(ODD)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Return other bytes: a bit flipped, the end cut off, zeros in a page's place, or rubbish."""
    way = generator.randrange(4)
    at = generator.randrange(max(len(content), 1))
    if way == 0 and content:
        return content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :]
    if way == 1 and content:
        return content[:at]
    if way == 2 and content:
        hole = bytes(min(4096, len(content) - at))
        return content[:at] + hole + content[at + len(hole) :] + b"\0"
    return content[:at] + generator.randbytes(9) + content[at:]
