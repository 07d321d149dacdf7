"""Finished stages on disk, found again by the key of what determined them.

    store = Store(run / "store")
    artifact = store.find("sft", key)
    if artifact is None:
        workspace = store.workspace("sft", key)
        ...  # write files below workspace.output; save workspace.checkpoints on the way
        artifact = workspace.commit(inputs={"data": data.digest}, meta={"steps": 120})

An artifact holds nothing that differs between two runs of its stage: no times, no host names, no
absolute paths. Several processes may use one store: each stage is run by the one that holds its
claim (`macpo.store.claims`).
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
from macpo.ranks import Ranks
from macpo.seeds import canonical_json
from macpo.store.atomic import (
    TRASH,
    commit_directory,
    make_directory,
    move_durably,
    remove_tree,
    translate_write_errors,
)
from macpo.store.checkpoints import Checkpoints
from macpo.store.claims import Claim, Claims, LockClaims
from macpo.store.journal import Journal
from macpo.store.lease import leased, remove_leases
from macpo.store.manifest import MANIFEST, Manifest, folder_state, verify

PARTIAL = ".partial"
CHECKPOINTS = "checkpoints"
DAMAGED = ".damaged"
TIMES = "times.jsonl"
KEPT = "kept"
OUTPUT = "output"

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
    those of an earlier, killed attempt at the same key, or none. `attempt` is that of the claim.
    """

    store: Store
    kind: str
    key: str
    path: Path
    attempt: str = ""

    @property
    def output(self) -> Path:
        """The folder whose files the artifact will hold."""
        return self.path / f"{OUTPUT}{self.attempt}"

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the stage saves its state on the way; gone once the artifact is committed."""
        return Checkpoints(self.path / CHECKPOINTS)

    def commit(self, inputs: Mapping[str, str], meta: Mapping[str, Any]) -> Artifact:
        """Turn `output` into the artifact and remove what is left of the workspace.

        Args:
            inputs: name of each input to its digest.
            meta: JSON about the result; equal in every run of this stage.

        Raises:
            StoreError: the disk is full or fails, the artifact exists already, or `output` holds
                a link; the checkpoints are still there.
            ClaimLostError: another process has taken the stage over.
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

    Args:
        root: the folder.
        claims: how stages are claimed; by default by the operating system's locks.
    """

    def __init__(self, root: Path, claims: Claims | None = None) -> None:
        self.root = Path(root)
        self.claims: Claims = claims or LockClaims()
        self.times = Journal(self.root / TIMES)
        self.kept = self.root / KEPT
        self._verified: dict[str, tuple[object, Artifact]] = {}
        self._claimed: dict[str, Claim] = {}

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
    def claim(self, kind: str, key: str, wait: Callable[[], None]) -> Iterator[Claim]:
        """Be the only process at work on a stage while the `with` block runs.

        Look for the artifact again inside the block, for who held the claim before may have made
        it. A commit inside the block makes sure that the claim is still held.

        Args:
            kind: of the stage.
            key: likewise.
            wait: called again and again while another process holds the claim; sleeps for a
                moment, or raises to give up.

        Raises:
            StoreError: the folder cannot be made or claimed.
        """
        path = self.root / PARTIAL / self._folder(kind, key).name
        while (claim := self.claims.take(path)) is None:
            wait()
        self._claimed[path.name] = claim
        try:
            yield claim
        finally:
            del self._claimed[path.name]
            claim.release()

    def workspace(self, kind: str, key: str) -> Workspace:
        """Open the partial folder of a stage: its output empty, its checkpoints kept.

        Call it with the stage claimed if other processes may use the store.

        Raises:
            StoreError: it cannot be created.
        """
        name = self._folder(kind, key).name
        claim = self._claimed.get(name)
        attempt = "" if claim is None else claim.attempt
        workspace = Workspace(self, kind, key, self.root / PARTIAL / name, attempt)
        for left in (workspace.output, *workspace.path.glob(f"{OUTPUT}*")):
            remove_tree(left)
        make_directory(workspace.output)
        return workspace

    def checkpoints(self, kind: str, key: str, ranks: Ranks) -> Checkpoints:
        """Return the checkpoints of a stage at which several ranks are at work."""
        return Checkpoints(self.root / PARTIAL / self._folder(kind, key).name / CHECKPOINTS, ranks)

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
            claim = self.claims.take(folder, make=False)
            if claim is None:
                continue
            try:
                removed += self._sweep_stage(folder)
            finally:
                claim.release()
        for name in leased(self.root):
            removing = name.startswith(TRASH) and (partial / name).exists()
            if (self.root / name / MANIFEST).is_file() or (name.startswith(TRASH) and not removing):
                remove_leases(self.root, name)
        return removed

    def _sweep_stage(self, folder: Path) -> list[Path]:
        """Remove what is of no use in a stage's partial folder, or all of it."""
        done = (self.root / folder.name / MANIFEST).is_file()
        leftovers = sorted(folder.glob(f"{TRASH}*"))
        checkpoints = folder / CHECKPOINTS
        if done or folder.name.startswith(TRASH) or not checkpoints.is_dir():
            stale = [folder]
        else:
            stale = [p for p in (*leftovers, *sorted(folder.glob(f"{OUTPUT}*"))) if p.is_dir()]
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
        claim = self._claimed.get(final.name)
        confirm = None if claim is None else claim.confirm
        manifest = commit_directory(workspace.output, final, fields, confirm)
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
