"""Writing that survives kill -9 and power loss: afterwards all of it is there, or none of it.

The order is always the same: write under a temporary name, fsync what was written, rename, fsync
the folder that holds the name. A rename is atomic on one file system, and a folder cannot be
renamed over another that holds files, so nothing committed is ever replaced by something else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from macpo.errors import MacpoError, StoreError
from macpo.store.manifest import MANIFEST, Manifest, parse_manifest, scan

PARTIAL = ".partial-"
"""Prefix of a folder that is being made; whoever is to make the same one may remove it."""

TRASH = ".trash-"
"""Prefix of a folder that is being removed; whoever meets one may finish the job."""

# Libraries written in Rust (safetensors) report a full disk as an error of their own, with the
# operating system's error number in the text.
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "your quota is used up: free some space there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
    errno.EEXIST: "move it away",
    errno.ENOTDIR: "move the file away that is in the place of a folder",
    errno.EISDIR: "move the folder away that is in the place of a file",
}


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error while `path` is written into a `StoreError`.

    Raises:
        StoreError: one line with what could not be written, why, the space left on that disk and
            what to do.
    """
    try:
        yield
    except MacpoError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None and str(error.filename) != str(path):
            reason += f": {error.filename}"
        raise StoreError(_explain(path, error.errno, reason)) from error
    except Exception as error:
        match = _RUST_OS_ERROR.search(str(error))
        if match is None:
            raise
        number = int(match[1])
        raise StoreError(_explain(path, number, os.strerror(number))) from error


def write_text_atomic(path: Path, text: str, *, durable: bool, alone: bool = True) -> None:
    """Replace `path` by `text` (UTF-8): a reader sees the old text or the new, never a mix.

    Args:
        path: the file; its folder exists.
        text: the new content.
        durable: fsync, so that the new text also survives a power loss once this returns; without
            it a power loss may leave the old text, the new or nothing.
        alone: nobody else writes `path` at the same time (in a run directory the lock sees to
            that). Otherwise the last one wins, and a killed writer leaves its temporary file.

    Raises:
        StoreError: it cannot be written; the old text is still there (or, when only the last
            fsync failed, the new one).
    """
    writer = "" if alone else f".{uuid.uuid4().hex}"
    temporary = path.with_name(f".{path.name}{writer}.partial")
    with translate_write_errors(path):
        try:
            _write_file(temporary, text.encode(), durable=durable)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            fsync_directory(path.parent)


def commit_directory(
    temporary: Path,
    final: Path,
    fields: Mapping[str, Any] | None = None,
    confirm: Callable[[], None] | None = None,
) -> Manifest:
    """Make the finished folder `temporary` appear as `final`, whole and durable.

    Every file is checksummed and fsynced, the manifest is written last, every folder is fsynced,
    then comes the rename and the fsync of `final`'s parent. On any failure before the rename
    `temporary` is removed: half a result is of no use, and on a full disk it is in the way.

    Args:
        temporary: a folder on the same file system as `final`, written by nobody any more.
        final: must not exist.
        fields: JSON to put into the manifest beside the files.
        confirm: called right before the rename; what it raises keeps it from being done.

    Returns:
        The manifest as a reader gets it (tuples in `fields` have become lists).

    Raises:
        StoreError: something cannot be written, `final` exists, or `temporary` holds a link.
    """
    return parse_manifest(_commit(temporary, final, fields or {}, confirm), final)


@contextlib.contextmanager
def new_directory(final: Path, fields: Mapping[str, Any] | None) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends, whole and durable.

    Nothing is left of it when the block fails. One maker of `final` at a time: what a killed one
    has left is removed first.

    Args:
        final: must not exist any more when the block ends.
        fields: as in `commit_directory`; None for a folder without a manifest, which holds what
            the block wrote and nothing of ours.

    Raises:
        StoreError: something cannot be written, or `final` exists.
    """
    temporary = final.with_name(PARTIAL + final.name)
    try:
        with translate_write_errors(final):
            if os.path.lexists(temporary):
                shutil.rmtree(temporary)
            make_directory(temporary)
            yield temporary
        _commit(temporary, final, fields)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _commit(
    temporary: Path,
    final: Path,
    fields: Mapping[str, Any] | None,
    confirm: Callable[[], None] | None = None,
) -> str:
    """Do what `commit_directory` says; return the manifest's text, empty when there is none."""
    if os.path.lexists(final):
        raise StoreError(f"cannot write {final}: it exists already; move it away")
    text = ""
    with translate_write_errors(final):
        try:
            if fields is not None:
                text = Manifest(scan(temporary), dict(fields)).to_text()
            open_modes(temporary)
            fsync_tree(temporary)
            if fields is not None:
                _write_file(temporary / MANIFEST, text.encode(), durable=True)
                fsync_directory(temporary)
            make_directory(final.parent)
            if confirm is not None:
                confirm()
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(final.parent)
    return text


def move_durably(source: Path, target: Path) -> None:
    """Rename a file or folder within one file system; durable once this returns.

    Raises:
        StoreError: it cannot be moved; it is still in its old place.
    """
    with translate_write_errors(target):
        make_directory(target.parent)
        os.rename(source, target)
        fsync_directory(target.parent)
        fsync_directory(source.parent)


def make_directory(path: Path) -> None:
    """Create `path` and its missing parents, each durable in its own parent.

    Raises:
        StoreError: it cannot be created, for example because a file has that name.
    """
    with translate_write_errors(path):
        missing = [p for p in (path, *path.parents) if not p.is_dir()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            fsync_directory(folder.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder, if there is one, so that half of it is never found under its name.

    A link or a file in its place is removed as such; what a link points at stays.

    Raises:
        StoreError: it cannot be removed.
    """
    with translate_write_errors(path):
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        trash = path
        if not path.name.startswith(TRASH):
            trash = path.with_name(TRASH + path.name)
            if os.path.lexists(trash):
                shutil.rmtree(trash)
            os.rename(path, trash)
        shutil.rmtree(trash)


def open_modes(folder: Path) -> None:
    """Give files that a library wrote for their owner alone the mode that others have here.

    safetensors writes 0600 whatever the umask, and a colleague could not load an adapter.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if file.stat().st_mode & 0o777 == 0o600:
                file.chmod(0o666 & ~umask)


def fsync_tree(folder: Path) -> None:
    """Make everything in a folder durable: what files hold, then the names."""
    for path, _, names in os.walk(folder):
        for name in names:
            fsync_file(Path(path, name))
    for path, _, _ in os.walk(folder, topdown=False):
        fsync_directory(Path(path))


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems keep names durable by themselves and refuse this call.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; the operating system may take several calls for it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a new file, or replace the content of an old one in place."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(path: Path, number: int | None, reason: str) -> str:
    """Say in one line why `path` cannot be written and what to do."""
    advice = _ADVICE.get(number, "check the disk") if number is not None else "check the disk"
    return (
        f"cannot write {path}: {reason} ({_space_left(path)}); {advice} or use another --out, then "
        "run again: nothing finished is lost"
    )


def _space_left(path: Path) -> str:
    """Say how much space is left on the disk that would hold `path`."""
    folder = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
    try:
        free = float(shutil.disk_usage(folder).free)
    except OSError:
        return "space left there unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if free < 1024 or unit == "GiB":
            break
        free /= 1024
    return (
        f"{free:.0f} B left on that disk" if unit == "B" else f"{free:.1f} {unit} left on that disk"
    )
