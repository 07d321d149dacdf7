"""The cache of derived models: made once, whole or not at all.

    $MACPO_CACHE/models/gguf-1f0c…/      a dequantised GGUF file, an ordinary model folder
    $MACPO_CACHE/models/pruned-77ab…/    some layers of another folder
    $MACPO_CACHE/packages/NAME.json      which model a Python package holds
    $MACPO_CACHE/digests/….json          SHA-256 of a weight file, by path, size and mtime

A folder appears under its name by one rename, when it is complete and on disk. A process that is
killed leaves at most a `….partial` beside it, which the next builder of that folder removes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from macpo.errors import ModelError
from macpo.seeds import file_digest

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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(target.with_name(f"{key}.lock")):
            if not target.is_dir():
                _build(target, make)
    except OSError as error:
        raise ModelError(
            f"{target}: cannot be written ({reason(error)}); free some space or set "
            "MACPO_CACHE to a writable folder"
        ) from error
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
    except OSError as error:  # a read-only cache costs time, not the result
        logger.warning("%s: not cached, so hashed again next time (%s)", path, error)
    return sha256


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a cache file, or None when there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_note(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object to a cache file in one step; the last writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _build(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a partial folder, put it on disk, and give it its final name."""
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists():  # of a killed process: we hold the lock, so nobody is writing it
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        make(partial)
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Hold an advisory lock on the file `lock`; it vanishes with the process, however that ends."""
    import fcntl

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def reason(error: BaseException) -> str:
    """Return the class and the first line of an error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
