"""Claims by lease and heartbeat, for stores whose file system has no locks between machines.

    .leases/sft-6f0c….3     {"owner": "f3…", "host": "node-2", "pid": 417, "beat": 12, ...}

A lease is a numbered file that its holder rewrites again and again. Whoever wants the stage watches
the file: has it not changed for `seconds`, by the watcher's *own* clock, its holder is taken for
dead, and the watcher makes the file with the next number. No two can make the same one, for a file
system makes a new file once (O_EXCL), also over a network; and no two clocks are ever compared.

A holder who was only slow finds out in three places: its own heartbeat sees that the next number is
there, the stage asks at every report of progress, and before a commit it has to make the next
number itself, which fails if anybody has. What it wrote meanwhile is in a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macpo.errors import ClaimLostError, StoreError
from macpo.store.atomic import make_directory, translate_write_errors, write_all

LEASES = ".leases"
BEATS = 4  # heartbeats in the time after which a lease is anybody's
_LENGTH = 512  # bytes of a lease file: written over in place, it never has to shrink

_log = logging.getLogger(__name__)


class LeaseClaims:
    """Claims by lease; see `macpo.store.claims.Claims`.

    Args:
        seconds: without a heartbeat, until a lease is anybody's. More than file attributes are
            cached for by a network file system (NFS: up to 60 s for a file that nobody opens; these
            are opened at every look).
        clock: seconds, monotonic.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._watched: dict[Path, tuple[bytes, float]] = {}

    def take(self, folder: Path, *, make: bool = True) -> Lease | None:
        """See `Claims.take`. Call it again and again: that is how silence is noticed."""
        if not make and not folder.is_dir():
            return None
        leases = folder.parent.parent / LEASES
        make_directory(leases)
        number = _newest(leases, folder.name)
        if number and not self._is_free(leases / f"{folder.name}.{number}"):
            return None
        lease = Lease(folder, number + 1, self.seconds, self._clock)
        if not lease.begin():
            return None
        try:
            if _newest(leases, folder.name) != lease.number:  # somebody counted on from another one
                lease.release()
                return None
            _remove_older(leases, folder.name, lease.number)
            if make:
                make_directory(folder)
        except BaseException:
            lease.release()
            raise
        return lease

    def _is_free(self, path: Path) -> bool:
        """Tell whether a lease was given up, or has been silent for long enough while we looked."""
        content = _read(path)
        if content is None:  # removed since: look again
            return False
        if _parse(content).get("released"):
            return True
        now = self._clock()
        before = self._watched.get(path)
        if before is None or before[0] != content:
            self._watched[path] = (content, now)
            return False
        if now - before[1] < self.seconds:
            return False
        del self._watched[path]
        who = _parse(content)
        _log.warning(
            "%s: no sign of life for %.0f s from process %s on %s; its stage is taken over",
            path.name,
            self.seconds,
            who.get("pid", "?"),
            who.get("host", "?"),
        )
        return True


class Lease:
    """A lease that this process holds; see `macpo.store.claims.Claim`."""

    def __init__(
        self, folder: Path, number: int, seconds: float, clock: Callable[[], float]
    ) -> None:
        self.number = number
        self.attempt = f"-{number}"
        self._folder = folder
        self._leases = folder.parent.parent / LEASES
        self._name = folder.name
        self._seconds = seconds
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._beat = 0
        self._written = clock()
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"lease {folder.name}", daemon=True)

    @property
    def path(self) -> Path:
        """The file as it is numbered now."""
        return self._leases / f"{self._name}.{self.number}"

    def begin(self) -> bool:
        """Make the file and start its heartbeat; False if somebody else was first.

        Raises:
            StoreError: it cannot be written.
        """
        if not self._make(self.number):
            return False
        self._thread.start()
        return True

    def check(self) -> None:
        """See `Claim.check`."""
        if self._lost.is_set():
            raise ClaimLostError(
                f"{self._name}: this process did not write its lease for {self._seconds:g} s, and "
                "another one runs the stage now; raise execution.lease_seconds if that was a pause"
            )

    def confirm(self) -> None:
        """See `Claim.confirm`: goes on to the next number, which only one process can make."""
        with self._writing:
            # The own file has to be there: where it is gone, others have been and are done.
            if not self._lost.is_set() and self._write(self.path) and self._make(self.number + 1):
                old = self.path
                self.number += 1
                with contextlib.suppress(OSError):
                    old.unlink()
            else:
                self._lost.set()
        self.check()

    def release(self) -> None:
        """Stop the heartbeat and leave word that the lease is anybody's."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._writing, contextlib.suppress(StoreError):
            if not self._lost.is_set():
                with contextlib.suppress(OSError):  # it is gone already, or holds checkpoints
                    self._folder.rmdir()
                self._write(self.path, released=True)  # without it the lease is free in a while

    def _keep(self) -> None:
        """Write a heartbeat now and then, until the lease ends or is lost."""
        while not self._ended.wait(self._seconds / BEATS):
            with self._writing:
                try:
                    there = self._write(self.path)
                except StoreError as error:  # the file system may be there again in a moment
                    there = self._clock() - self._written < self._seconds
                    _log.warning("heartbeat of %s: %s", self._name, error)
                if not there or (self._leases / f"{self._name}.{self.number + 1}").exists():
                    self._lost.set()
                    return

    def _make(self, number: int) -> bool:
        """Make the file with a number; False if it is there already."""
        path = self._leases / f"{self._name}.{number}"
        with translate_write_errors(path):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            self._fill(descriptor, released=False)
        return True

    def _write(self, path: Path, *, released: bool = False) -> bool:
        """Write the file over in place; False if it is gone."""
        with translate_write_errors(path):
            try:
                descriptor = os.open(path, os.O_WRONLY)
            except FileNotFoundError:
                return False
            self._fill(descriptor, released=released)
        return True

    def _fill(self, descriptor: int, *, released: bool) -> None:
        """Write who holds the lease, and a number that no heartbeat had before."""
        self._beat += 1
        said: dict[str, Any] = {
            "owner": self._owner,
            "host": socket.gethostname()[:200],
            "pid": os.getpid(),
            "beat": self._beat,
            "released": released,
        }
        try:
            write_all(descriptor, json.dumps(said).encode().ljust(_LENGTH - 1) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._written = self._clock()


def remove_leases(root: Path, name: str) -> None:
    """Remove the leases of a stage whose artifact is there, so that nobody needs them any more."""
    _remove_older(root / LEASES, name, None)


def leased(root: Path) -> set[str]:
    """Return the names of the stages that have leases, given up or not."""
    try:
        return {path.name.rpartition(".")[0] for path in (root / LEASES).iterdir()}
    except FileNotFoundError:
        return set()


def _numbers(leases: Path, name: str) -> list[int]:
    """List the numbers of a stage's leases."""
    found = (path.name.rpartition(".") for path in leases.iterdir())
    return [int(number) for stage, _, number in found if stage == name and number.isdigit()]


def _newest(leases: Path, name: str) -> int:
    """Return the number of a stage's newest lease, 0 if there is none."""
    return max(_numbers(leases, name), default=0)


def _remove_older(leases: Path, name: str, than: int | None) -> None:
    if not leases.is_dir():
        return
    for number in _numbers(leases, name):
        if than is None or number < than:
            with contextlib.suppress(OSError):  # somebody else has, or it is of no harm
                (leases / f"{name}.{number}").unlink()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its mode") from error


def _parse(content: bytes) -> dict[str, Any]:
    """Read what a lease says; nothing while it is being written."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
