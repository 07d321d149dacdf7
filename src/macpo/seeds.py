"""Seeds and digests of content: stable across processes, machines and Python versions.

Python's own `hash` is salted per process and must never decide a seed or a key.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes hashed at a time
_TOO_DEEP = "a value that is nested too deeply"
_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values of equal types give equal text.

    Keys are sorted, there are no spaces and no NaN. Tuples and lists are one type to JSON; `1` and
    `1.0` are two, and so are `0.0` and `-0.0`, and texts that only Unicode takes for one.

    Raises:
        TypeError: `value` holds something that JSON cannot express, such as a key that is no text.
        ValueError: `value` holds a NaN or an infinity, a character whose two halves are apart, or
            contains itself, or is nested too deeply.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
        _check(value, halves="\\ud" in text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return text


def _check(value: Any, *, halves: bool) -> None:
    """Refuse what `json` writes alike: a key 1 and "1", and a character and its two halves.

    Args:
        value: what is written.
        halves: whether there are surrogates in it at all.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text; write {str(key)!r} if it should be")
            _check(key, halves=halves)
            _check(item, halves=halves)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, halves=halves)
    elif halves and isinstance(value, str) and _SPLIT_PAIR.search(value):
        raise ValueError("a text with the two halves of a character apart; join them")


def plain(value: Any) -> Any:
    """Return a value of a config as JSON has it, tuples as lists.

    pydantic would write a set in the order that this process has for it, and bytes, paths and
    numbers as keys like the text that they are not.

    Raises:
        TypeError: it holds such a thing, or anything else without a form of its own in JSON.
        ValueError: it is nested too deeply.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a stage's key")


def _text(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise TypeError(f"the key {key!r} is no text and cannot be part of a stage's key")


def joined(text: str) -> str:
    """Return a text in which the two halves of a character, if they stand apart, are one.

    That is what JSON makes of them, so that the text is the same before and after it was in a file.
    """
    if _SPLIT_PAIR.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def digest(value: Any) -> str:
    """Return the SHA-256 of `value` as canonical JSON, in hexadecimal (64 characters)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as stored, in hexadecimal: moving it changes nothing.

    Raises:
        OSError: the file cannot be read.
    """
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def stable_seed(*parts: str | int) -> int:
    """Derive a 63-bit seed from `parts`, for example `(run seed, round, agent, prompt id)`.

    Parts are hashed as JSON, so `("a", 1)` and `("a1",)` or `("a", "1")` give different seeds.
    """
    raw = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 1
