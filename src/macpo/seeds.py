"""Seeds and digests of content: stable across processes, machines and Python versions.

Python's own `hash` is salted per process and must never decide a seed or a key.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes hashed at a time


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values of equal types give equal text.

    Keys are sorted, there are no spaces and no NaN. Tuples and lists are one type to JSON; `1` and
    `1.0` are two.

    Raises:
        TypeError: `value` holds something that JSON cannot express, such as a key that is no text.
        ValueError: `value` holds a NaN or an infinity, or contains itself.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    _check_keys(value)
    return text


def _check_keys(value: Any) -> None:
    """Refuse keys that `json` would turn into text, so that 1 and "1" cannot fall together."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text; write {str(key)!r} if it should be")
            _check_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)


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
