"""What a committed folder says about itself: its files, their sizes and checksums.

    {"format": 1, "kind": "sft", …,
     "files": {"adapter/weights.safetensors": {"size": 4096, "sha256": "9f86d0…"}},
     "checksum": "2c26b4…"}

The manifest is written last, so a folder that has one was complete; `checksum` covers the rest of
the manifest itself. Nothing in it depends on when or where it was written.

Names in a manifest are never opened: checking lists the folder and compares, so a manifest that
someone changed to point at `../../elsewhere` cannot make anybody read or write there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from macpo.errors import DamagedError, StoreError
from macpo.seeds import digest, file_digest

MANIFEST = "manifest.json"
FORMAT = 1

_OWN_KEYS = frozenset({"format", "files", "checksum"})


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a committed folder: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest: `files` by relative POSIX path, and what the writer added (`fields`)."""

    files: Mapping[str, FileEntry]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the files' names and checksums (not of `fields`), 64 hexadecimal characters."""
        return digest({name: entry.sha256 for name, entry in self.files.items()})

    def to_text(self) -> str:
        """Return the manifest as it is written: JSON with sorted keys, readable by eye.

        Raises:
            TypeError: `fields` hold something that JSON cannot express.
            ValueError: `fields` hold a NaN, or a key that belongs to the manifest itself.
        """
        taken = sorted(_OWN_KEYS & self.fields.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)}: a manifest sets this itself")
        body: dict[str, Any] = {
            **self.fields,
            "format": FORMAT,
            "files": {
                name: {"size": entry.size, "sha256": entry.sha256}
                for name, entry in self.files.items()
            },
        }
        body["checksum"] = digest(body)
        return json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"


def scan(folder: Path) -> dict[str, FileEntry]:
    """Measure every file under `folder`, which is about to be committed.

    Raises:
        StoreError: the folder holds a link or a special file, or a file with the manifest's name.
    """
    try:
        present = _list_files(folder)
    except _NotPlain as error:
        raise StoreError(f"{folder} cannot be committed: {error}; write plain files only") from None
    if MANIFEST in present:
        raise StoreError(
            f"{folder} cannot be committed: {MANIFEST} is the store's own name; rename that file"
        )
    return {
        name: FileEntry(path.stat().st_size, file_digest(path))
        for name, path in sorted(present.items())
    }


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`'s manifest, checked against its own checksum; files are not looked at.

    Raises:
        DamagedError: it is missing, is not JSON, or was changed.
        StoreError: it cannot be read, or another version of macpo wrote it.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(folder, f"{MANIFEST} is missing") from None
    except UnicodeDecodeError:
        raise _damaged(folder, f"{MANIFEST} is not text") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    return parse_manifest(text, folder)


def parse_manifest(text: str, folder: Path) -> Manifest:
    """Parse what `Manifest.to_text` wrote; `folder` is named in errors.

    Raises:
        DamagedError: the text is not a manifest, or does not match its checksum.
        StoreError: another version of macpo wrote it.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(folder, f"{MANIFEST} is not JSON") from None
    if not isinstance(body, dict) or "format" not in body:
        raise _damaged(folder, f"{MANIFEST} is not a manifest")
    if body["format"] != FORMAT:
        raise StoreError(
            f"{folder} has store format {body['format']!r}, this macpo reads {FORMAT}: use the "
            "version that wrote it, or another --out"
        )
    checksum = body.pop("checksum", None)
    try:
        matches = checksum == digest(body)
        files = {
            name: FileEntry(int(entry["size"]), str(entry["sha256"]))
            for name, entry in body["files"].items()
        }
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
        matches, files = False, {}
    if not matches:
        raise _damaged(folder, f"{MANIFEST} does not match its own checksum")
    for name in files:
        if not _is_inside(name):
            raise _damaged(folder, f"{MANIFEST} names {name!r}, which is outside of the folder")
    return Manifest(files, {k: v for k, v in body.items() if k not in _OWN_KEYS})


def verify(folder: Path, *, sizes_only: bool = False) -> Manifest:
    """Compare a committed folder with its manifest, byte by byte.

    Args:
        folder: the folder.
        sizes_only: compare names and sizes alone, which takes no time.

    Raises:
        DamagedError: a file is missing, is not in the manifest, or has other content.
        StoreError: a file cannot be read, or another version of macpo wrote the folder.
    """
    manifest = read_manifest(folder)
    compare(folder, manifest, sizes_only=sizes_only)
    return manifest


def compare(folder: Path, manifest: Manifest, *, sizes_only: bool = False) -> None:
    """Compare the files of a folder with a manifest, which may lie elsewhere.

    Raises:
        DamagedError: a file is missing, is not in the manifest, or has other content.
        StoreError: a file cannot be read.
    """
    try:
        fault = _first_difference(folder, manifest, sizes_only=sizes_only)
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from error
    if fault is not None:
        raise _damaged(folder, fault)


def folder_state(folder: Path) -> tuple[tuple[str, int, int, int, int], ...] | None:
    """Return what changes when any file of a folder does: names, inodes, times and sizes.

    A file's ctime cannot be set back, so what stays the same here was not written to. None when
    there is no such folder, or it holds what is no plain file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        files = sorted(_list_files(folder).items())
        found = [(name, path.stat()) for name, path in files]
    except (FileNotFoundError, NotADirectoryError, _NotPlain):
        return None
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from error
    return tuple((n, s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_size) for n, s in found)


def _first_difference(folder: Path, manifest: Manifest, *, sizes_only: bool) -> str | None:
    """Say what is wrong with the files of `folder`, cheap checks first; None when nothing is."""
    try:
        present = _list_files(folder)
    except _NotPlain as error:
        return str(error)
    present.pop(MANIFEST, None)
    for name in sorted(manifest.files.keys() | present.keys()):
        if name not in present:
            return f"{name} is missing"
        if name not in manifest.files:
            return f"{name} is not in its manifest"
        size, expected = present[name].stat().st_size, manifest.files[name].size
        if size != expected:
            return f"{name} has {size} bytes instead of {expected}"
    if sizes_only:
        return None
    for name, entry in sorted(manifest.files.items()):
        if file_digest(present[name]) != entry.sha256:
            return f"{name} does not match its checksum"
    return None


class _NotPlain(Exception):
    """A folder holds something that is neither a plain file nor a folder."""


def _list_files(folder: Path) -> dict[str, Path]:
    """Map relative POSIX paths of all plain files under `folder` to paths; follows no link."""
    found: dict[str, Path] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                path = Path(entry.path)
                name = path.relative_to(folder).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found[name] = path
                else:
                    what = "a link" if entry.is_symlink() else "not a plain file"
                    raise _NotPlain(f"{name} is {what}")
    return found


def _is_inside(name: str) -> bool:
    """Tell whether a manifest's name is a plain relative path that stays in its folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in name
        and path.as_posix() == name
    )


def _damaged(folder: Path, what: str) -> DamagedError:
    return DamagedError(
        f"{folder} is damaged: {what}; move the folder away and run again to compute it anew"
    )


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot read {path}: {error.strerror or error}; check its disk and its mode")
