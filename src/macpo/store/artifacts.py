"""Finished stages on disk, found again by the key of what determined them.

    store = Store(run / "store")
    artifact = store.find("sft", key)
    if artifact is None:
        workspace = store.workspace("sft", key)
        ...  # write files below workspace.output; save workspace.checkpoints on the way
        artifact = workspace.commit(inputs={"data": data.digest}, meta={"steps": 120})

An artifact holds nothing that differs between two runs of its stage: no times, no host names, no
absolute paths. Several processes may use one store: each stage is run by the one that holds its
claim.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macpo.errors import DamagedError, StoreError
from macpo.seeds import canonical_json
from macpo.store import oslock
from macpo.store.atomic import (
    TRASH,
    commit_directory,
    make_directory,
    move_durably,
    remove_tree,
    translate_write_errors,
)
from macpo.store.checkpoints import Checkpoints
from macpo.store.journal import Journal
from macpo.store.manifest import MANIFEST, Manifest, folder_state, verify

PARTIAL = ".partial"
DAMAGED = ".damaged"
TIMES = "times.jsonl"
KEPT = "kept"

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_KEY = re.compile(r"[0-9a-f]{16,64}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A committed, verified result of a stage.

    `key` identifies what it was made from, `digest` what came out (names and checksums of the
    files). `inputs` maps the names of the stage's inputs to their digests; `meta` is the stage's
    own JSON. Files are read below `path` and never written again.
    """

    kind: str
    key: str
    path: Path
    digest: str
    inputs: Mapping[str, str] = field(hash=False)
    meta: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The partial folder of one stage, which survives a kill.

    `output` was empty when the workspace was opened and becomes the artifact. `checkpoints` are
    those of an earlier, killed attempt at the same key, or none.
    """

    store: Store
    kind: str
    key: str
    path: Path

    @property
    def output(self) -> Path:
        """The folder whose files the artifact will hold."""
        return self.path / "output"

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the stage saves its state on the way; gone once the artifact is committed."""
        return Checkpoints(self.path / "checkpoints")

    def commit(self, inputs: Mapping[str, str], meta: Mapping[str, Any]) -> Artifact:
        """Turn `output` into the artifact and remove what is left of the workspace.

        Args:
            inputs: name of each input to its digest.
            meta: JSON about the result; equal in every run of this stage.

        Raises:
            StoreError: the disk is full or fails, the artifact exists already, or `output` holds
                a link; the checkpoints are still there.
            TypeError: `meta` holds something that JSON cannot express.
            ValueError: `meta` holds a NaN or an infinity.
        """
        return self.store._commit(self, inputs, meta)


class Store:
    """The artifacts below one folder.

    Every artifact is compared with its checksums when this object first meets it, and again when a
    file of it has changed since.

    Attributes:
        times: how long stages took, those of all runs that use the store.
        kept: a folder for what is kept besides artifacts, such as verdicts that were paid for.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.times = Journal(self.root / TIMES)
        self.kept = self.root / KEPT
        self._verified: dict[str, tuple[object, Artifact]] = {}

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact, or None when it is absent or was never completed.

        Raises:
            DamagedError: its files do not match its checksums.
            StoreError: it cannot be read, or another version of macpo wrote it.
        """
        folder = self._folder(kind, key)
        if not _is_there(folder / MANIFEST):
            return None
        known = self._verified.get(folder.name)
        state = folder_state(folder)
        if known is not None and known[0] == state and known[1].key == key:
            return known[1]
        return self._remember(folder, verify(folder), kind, key)

    @contextlib.contextmanager
    def claim(self, kind: str, key: str, wait: Callable[[], None]) -> Iterator[None]:
        """Be the only process at work on a stage while the `with` block runs.

        The claim is a lock of the operating system's on the stage's partial folder: it dies with
        its holder. Look for the artifact again inside the block, for who held the claim before may
        have made it.

        Args:
            kind: of the stage.
            key: likewise.
            wait: called again and again while another process holds the claim; sleeps for a
                moment, or raises to give up.

        Raises:
            StoreError: the folder cannot be made or locked.
        """
        path = self.root / PARTIAL / self._folder(kind, key).name
        while (descriptor := _lock_folder(path)) is None:
            wait()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is gone already, or holds checkpoints
                if _is_at(path, descriptor):  # and not one that the next process has made since
                    os.rmdir(path)
            os.close(descriptor)

    def workspace(self, kind: str, key: str) -> Workspace:
        """Open the partial folder of a stage: its output empty, its checkpoints kept.

        Call it with the stage claimed if other processes may use the store.

        Raises:
            StoreError: it cannot be created.
        """
        workspace = Workspace(self, kind, key, self.root / PARTIAL / self._folder(kind, key).name)
        remove_tree(workspace.output)
        make_directory(workspace.output)
        return workspace

    def discard(self, kind: str, key: str) -> Path | None:
        """Set an artifact aside, so that its stage runs again; nothing is deleted.

        Returns:
            Where the folder is now, or None when there was none.

        Raises:
            StoreError: it cannot be moved.
        """
        folder = self._folder(kind, key)
        self._verified.pop(folder.name, None)
        if not os.path.lexists(folder):
            return None
        number = 1
        while os.path.lexists(target := self.root / DAMAGED / f"{folder.name}.{number}"):
            number += 1
        move_durably(folder, target)
        return target

    def sweep(self) -> list[Path]:
        """Remove what killed processes left behind and nobody can use.

        That is: outputs that were not committed, workspaces of committed artifacts, and removals
        that were cut short. Checkpoints of unfinished stages stay, and whatever another process
        has claimed. Call it before this process opens its first workspace.

        Returns:
            What was removed.

        Raises:
            StoreError: something cannot be removed.
        """
        removed: list[Path] = []
        partial = self.root / PARTIAL
        if not partial.is_dir():
            return removed
        with translate_write_errors(partial):
            folders = sorted(p for p in partial.iterdir() if p.is_dir())
        for folder in folders:
            descriptor = _lock_folder(folder, make=False)
            if descriptor is None:
                continue
            try:
                removed += self._sweep_stage(folder)
            finally:
                os.close(descriptor)
        return removed

    def _sweep_stage(self, folder: Path) -> list[Path]:
        """Remove what is of no use in a stage's partial folder, or all of it."""
        done = (self.root / folder.name / MANIFEST).is_file()
        leftovers = sorted(folder.glob(f"{TRASH}*"))
        checkpoints = folder / "checkpoints"
        if done or folder.name.startswith(TRASH) or not checkpoints.is_dir():
            stale = [folder]
        else:
            stale = [p for p in (*leftovers, folder / "output") if p.is_dir()]
        for path in stale:
            remove_tree(path)
        return stale

    def _folder(self, kind: str, key: str) -> Path:
        return artifact_folder(self.root, kind, key)

    def _commit(
        self, workspace: Workspace, inputs: Mapping[str, str], meta: Mapping[str, Any]
    ) -> Artifact:
        kind, key = workspace.kind, workspace.key
        fields = {"kind": kind, "key": key, "inputs": dict(inputs), "meta": dict(meta)}
        canonical_json(fields)  # a meta that is not JSON is the caller's fault, found in time
        final = self._folder(kind, key)
        if final.is_dir() and not _is_there(final / MANIFEST):
            aside = self.discard(kind, key)
            _log.warning("%s had no %s and was moved to %s", final, MANIFEST, aside)
        manifest = commit_directory(workspace.output, final, fields)
        artifact = self._remember(final, manifest, kind, key)
        remove_tree(workspace.path)
        return artifact

    def _remember(self, folder: Path, manifest: Manifest, kind: str, key: str) -> Artifact:
        """Make the `Artifact` of a folder just verified or just written."""
        fields = manifest.fields
        if (fields.get("kind"), fields.get("key")) != (kind, key):
            raise DamagedError(
                f"{folder} is damaged: it says it is {fields.get('kind')} {fields.get('key')}, not "
                f"{kind} {key}; move the folder away and run again to compute it anew"
            )
        if not isinstance(fields.get("inputs"), dict) or not isinstance(fields.get("meta"), dict):
            raise StoreError(f"{folder} is not an artifact of a stage: move the folder away")
        artifact = Artifact(kind, key, folder, manifest.digest, fields["inputs"], fields["meta"])
        self._verified[folder.name] = (folder_state(folder), artifact)
        return artifact


def artifact_folder(root: Path, kind: str, key: str) -> Path:
    """Return where a store keeps the artifact of a stage, which need not be there."""
    if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key):
        raise ValueError(f"({kind!r}, {key!r}) is not a kind and a key in hexadecimal")
    return root / f"{kind}-{key[:16]}"


def _lock_folder(path: Path, *, make: bool = True) -> int | None:
    """Lock a folder without waiting; return its open descriptor, None if somebody else has it.

    Raises:
        StoreError: it cannot be made or locked.
    """
    if make:
        make_directory(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # removed since, by who held it
        return None
    try:
        held = oslock.lock(descriptor) and _is_at(path, descriptor)
    except FileNotFoundError:
        held = False
    except OSError as error:
        os.close(descriptor)
        raise StoreError(
            f"cannot lock {path}: {error.strerror}; put the store on a disk that knows file locks"
        ) from error
    if not held:  # somebody has it, or it was removed or made anew since
        os.close(descriptor)
        return None
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open folder is still the one at `path`."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))


def _is_there(path: Path) -> bool:
    """Tell whether there is a file.

    Raises:
        StoreError: its folder cannot be read.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its mode") from error
    return True
