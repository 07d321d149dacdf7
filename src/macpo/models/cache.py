"""The cache of derived models: made once, whole or not at all.

    $MACPO_CACHE/models/gguf-1f0c…/      a dequantised GGUF file, an ordinary model folder
    $MACPO_CACHE/models/pruned-77ab…/    some layers of another folder
    $MACPO_CACHE/models/merged-03fe…/    another folder with an adapter merged into it
    $MACPO_CACHE/packages/NAME.json      which model a Python package holds
    $MACPO_CACHE/digests/….json          SHA-256 of a weight file, by path, size and mtime

A folder appears under its name by one rename, when it is complete and on disk. A process that is
killed leaves at most a `.partial-…` beside it, which the next builder of that folder removes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from macpo.errors import ModelError, StoreError
from macpo.seeds import file_digest
from macpo.store.atomic import make_directory, new_directory, write_text_atomic

logger = logging.getLogger("macpo")

LARGE_BYTES = 1 << 30


def cache_dir() -> Path:
    """Return `$MACPO_CACHE`, else `$XDG_CACHE_HOME/macpo`, else `~/.cache/macpo`."""
    if own := os.environ.get("MACPO_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "macpo"


def model_folder(key: str) -> Path:
    """Return where the derived model `key` lies once it is made."""
    return cache_dir() / "models" / key


def build_once(key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of the derived model `key`, made by `make` unless it is there already.

    Processes that want the same folder wait for the first of them and share its work.

    Args:
        key: name of the folder; equal keys must mean equal content.
        make: writes the content into the empty folder that it is given.

    Raises:
        ModelError: the cache cannot be written.
    """
    target = model_folder(key)
    if target.is_dir():
        return target
    from filelock import FileLock

    with _writing(target):
        make_directory(target.parent)
        lock = FileLock(target.with_name(f"{key}.lock"), fallback_to_soft=False)
        with lock:  # dies with its holder, however that ends
            if not target.is_dir():
                with new_directory(target, None) as partial:
                    make(partial)
    return target


def remembered_digest(path: Path) -> str:
    """Return `file_digest(path)`, remembered by the file's path, size and mtime."""
    stat = path.stat()
    absolute = str(path.absolute())
    seen = {"path": absolute, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    name = hashlib.sha256(absolute.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    note = cache_dir() / "digests" / f"{name}.json"
    known = read_note(note)
    if known is not None and all(known.get(key) == value for key, value in seen.items()):
        return str(known["sha256"])
    if stat.st_size > LARGE_BYTES:
        logger.info("hashing %s (%.1f GiB)", path, stat.st_size / (1 << 30))
    sha256 = file_digest(path)
    try:
        write_note(note, {**seen, "sha256": sha256})
    except ModelError as error:  # a read-only cache costs time, not the result
        logger.warning(
            "%s is hashed again next time, since its digest is not kept: %s", path, error
        )
    return sha256


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a cache file, or None when there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_note(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object to a cache file in one step; the last writer wins.

    Raises:
        ModelError: the cache cannot be written.
    """
    with _writing(path):
        make_directory(path.parent)
        write_text_atomic(path, json.dumps(value), durable=False, alone=False)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what writing to the cache can raise into one line with its remedy."""
    try:
        yield
    except (OSError, StoreError) as error:  # the store's own remedies are about a run's folder
        cause = error.__cause__ or error
        raise ModelError(
            f"{path}: cannot be written ({reason(cause)}); free some space or set MACPO_CACHE to "
            "a writable folder"
        ) from error


def reason(error: BaseException) -> str:
    """Return the class and the first line of an error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
