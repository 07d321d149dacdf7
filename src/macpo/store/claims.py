"""Claims on stages: of the processes that use a store, one is at work on a stage.

`LockClaims` rely on the operating system's locks, which die with their holder and reach as far as
the file system lets them: on one machine always, between machines not everywhere. Where they do
not reach, `macpo.store.lease` takes their place.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from macpo.errors import StoreError
from macpo.store import oslock
from macpo.store.atomic import make_directory


class Claim(Protocol):
    """A stage that this process has claimed.

    `attempt` is part of the name of the folder that its output goes to, so that whoever lost a
    claim without knowing it writes beside, not into, what the next one makes.
    """

    attempt: str

    def check(self) -> None:
        """Raise if it is known that the claim is lost; costs nothing.

        Raises:
            ClaimLostError: another process has taken the stage over.
        """

    def confirm(self) -> None:
        """Make sure that the claim is held still, by asking the file system.

        Raises:
            ClaimLostError: another process has taken the stage over, or may have.
        """

    def release(self) -> None:
        """Give it up."""


class Claims(Protocol):
    """How stages are claimed in a store."""

    def take(self, folder: Path, *, make: bool = True) -> Claim | None:
        """Claim a stage without waiting; None while somebody else has it.

        Args:
            folder: the stage's partial folder.
            make: make it if it is not there; otherwise there is nothing to claim then.

        Raises:
            StoreError: it cannot be made or claimed.
        """
        ...


class LockClaims:
    """Claims by a lock of the operating system's on the partial folder; see `Claims`."""

    def take(self, folder: Path, *, make: bool = True) -> LockClaim | None:
        """See `Claims.take`."""
        descriptor = _lock_folder(folder, make=make)
        return None if descriptor is None else LockClaim(folder, descriptor)


class LockClaim:
    """A locked folder; see `Claim`. It cannot be lost: the lock is held as long as it is open."""

    attempt = ""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor

    def check(self) -> None:
        """See `Claim.check`."""

    def confirm(self) -> None:
        """See `Claim.confirm`."""

    def release(self) -> None:
        """Unlock the folder, and remove it if nothing is in it."""
        with contextlib.suppress(OSError):  # it is gone already, or holds checkpoints
            if _is_at(self._folder, self._descriptor):  # and not one made since by the next process
                os.rmdir(self._folder)
        os.close(self._descriptor)


def _lock_folder(path: Path, *, make: bool) -> int | None:
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
            f"cannot lock {path}: {error.strerror}; put the store on a disk that knows file locks, "
            "or set execution.claims: lease"
        ) from error
    if not held:  # somebody has it, or it was removed or made anew since
        os.close(descriptor)
        return None
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open folder is still the one at `path`."""
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
