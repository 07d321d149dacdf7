"""The cache of derived models: made once, whole or not at all.

    $MACPO_CACHE/models/gguf-1f0c…/      a dequantised GGUF file, an ordinary model folder
    $MACPO_CACHE/models/pruned-77ab…/    some layers of another folder
    $MACPO_CACHE/models/merged-03fe…/    another folder with an adapter merged into it
    $MACPO_CACHE/packages/NAME.json      which model a Python package holds
    $MACPO_CACHE/models/….sums.json      names, sizes and checksums of the files in such a folder
    $MACPO_CACHE/digests/….json          SHA-256 of a weight file, by path, inode, size and times

A folder appears under its name by one rename, when it is complete and on disk. A process that is
killed leaves at most a `.partial-…` beside it, which the next builder of that folder removes. A
folder that does not match its checksums any more is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from macpo.errors import DamagedError, ModelError, StoreError
from macpo.paths import user_path
from macpo.seeds import file_digest
from macpo.store.atomic import make_directory, new_directory, remove_tree, write_text_atomic
from macpo.store.manifest import Manifest, compare, folder_state, parse_manifest, scan

logger = logging.getLogger("macpo")

LARGE_BYTES = 1 << 30
STALE_SECONDS = 600.0
"""After so long a note that is being written is nobody's: it takes a millisecond."""
MOST_NOTES = 10_000
"""Of a kind; past it the older half goes. A note that is gone costs hashing a file once more."""

_whole: dict[Path, tuple[object, ...] | None] = {}
"""Derived models that this process has compared with their checksums, and in what state."""


def cache_dir() -> Path:
    """Return `$MACPO_CACHE`, else `$XDG_CACHE_HOME/macpo`, else `~/.cache/macpo`."""
    if own := os.environ.get("MACPO_CACHE"):
        return user_path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "macpo"


def model_folder(key: str) -> Path:
    """Return where the derived model `key` lies once it is made."""
    return cache_dir() / "models" / key


def build_once(key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of the derived model `key`, made by `make` unless it is there already.

    Processes that want the same folder wait for the first of them and share its work. What is there
    is compared with its checksums, once in a process, and made again where it is damaged.

    Args:
        key: name of the folder; equal keys must mean equal content.
        make: writes the content into the empty folder that it is given.

    Raises:
        ModelError: the cache cannot be written.
    """
    target = model_folder(key)
    if is_whole(target):
        return target
    from filelock import FileLock

    with _writing(target):
        make_directory(target.parent)
        lock = FileLock(target.with_name(f"{key}.lock"), fallback_to_soft=False)
        with lock:  # dies with its holder, however that ends
            if not is_whole(target):
                remove_tree(target)
                with new_directory(target, None) as partial:
                    make(partial)
                    _write_sums(target, partial, alone=True)
    return target


def is_whole(folder: Path) -> bool:
    """Tell whether a derived model is there as it was made; say what is damaged.

    One that an older macpo made has no checksums: it is taken as it is, and has them from now on.
    """
    if not folder.is_dir():
        return False
    state = folder_state(folder)
    if _whole.get(folder) == state:
        return True
    try:
        compare(folder, _read_sums(folder))
    except DamagedError as error:
        logger.warning("%s; it is made again", error.fault)
        return False
    except (OSError, StoreError) as error:  # of a cache that this user may not write, for example
        logger.warning("%s is used without a look at its checksums: %s", folder, error)
    _whole[folder] = state
    return True


def _read_sums(folder: Path) -> Manifest:
    """Read the checksums of a derived model; those of an older macpo's are taken now.

    Raises:
        DamagedError: they are of no use.
        OSError: they cannot be read.
        StoreError: they cannot be written.
    """
    sums = _sums_file(folder)
    if not sums.is_file():
        _write_sums(folder, folder, alone=False)
    try:
        return parse_manifest(sums.read_bytes().decode("utf-8"), folder)
    except (UnicodeDecodeError, StoreError) as error:
        raise DamagedError(f"{sums} holds no checksums; remove it") from error


def _sums_file(folder: Path) -> Path:
    """Return where the checksums of a derived model are."""
    return folder.with_name(f"{folder.name}.sums.json")


def _write_sums(target: Path, written: Path, *, alone: bool) -> None:
    """Keep the checksums of what was written and is to be, or is, at `target`."""
    text = Manifest(scan(written)).to_text()
    write_text_atomic(_sums_file(target), text, durable=True, alone=alone)


def remembered_digest(path: Path) -> str:
    """Return `file_digest(path)`, remembered by the file's path, inode, size and times.

    What is written over a file with its size and mtime kept has another ctime.
    """
    stat = path.stat()
    absolute = str(path.absolute())
    seen = {
        "path": absolute,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }
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
        _sweep_notes(path.parent)
        write_text_atomic(path, json.dumps(value), durable=False, alone=False)


def _sweep_notes(folder: Path) -> None:
    """Remove what killed processes have left of writing notes, and old notes of too many."""
    names = os.listdir(folder)
    for name in names:
        if name.startswith(".") and name.endswith(".partial"):
            with suppress(OSError):  # another process was quicker
                if time.time() - (folder / name).stat().st_mtime > STALE_SECONDS:
                    (folder / name).unlink()
    if len(names) > MOST_NOTES:
        with suppress(OSError):
            by_age = sorted(folder.glob("*.json"), key=lambda note: note.stat().st_mtime)
            for note in by_age[: len(by_age) // 2]:
                note.unlink()


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
