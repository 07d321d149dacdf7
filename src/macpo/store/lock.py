"""One process at a time in a run directory, by a lock that dies with its holder.

The lock is the operating system's (`flock`), so that after a kill -9 or a crash nothing stale is
left to delete. The file's content only says who holds it, for the error that others get.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import weakref
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from macpo.errors import RunLockedError, StoreError
from macpo.invocation import command_line
from macpo.store import oslock
from macpo.store.atomic import make_directory, translate_write_errors, write_all

# How long a locked file is tried again: `lock_holder` holds a shared lock for an instant, and a
# new holder needs an instant to write down who it is.
_PATIENCE = 0.3  # seconds
_PAUSE = 0.02  # seconds

_COMMAND_LENGTH = 200  # characters of a command line that are kept


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock: `since` is local time with its offset, in ISO 8601."""

    pid: int
    host: str
    since: str
    command: str


class RunLock:
    """Holds the run directory of `path` (the lock file) while the `with` block runs.

    Two locks on one path exclude each other within a process too. A forked child does not inherit
    the lock: it can neither keep it from others after its parent's death nor release it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            RunLockedError: somebody holds it; says who.
            StoreError: the lock file cannot be made or locked.
        """
        make_directory(self.path.parent)
        with translate_write_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not self._try(descriptor):
                raise RunLockedError(_locked_message(self.path, _read_holder(descriptor)))
            with translate_write_errors(self.path):
                os.ftruncate(descriptor, 0)
                write_all(descriptor, json.dumps(asdict(_this_process())).encode() + b"\n")
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _forget_in_forked_children(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock; the file stays, for removing it would race with the next holder."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):  # what the file says only serves an error message
            os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def _try(self, descriptor: int) -> bool:
        """Try to lock for a moment; False when somebody else holds it."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                if oslock.lock(descriptor):
                    return True
            except OSError as error:
                raise StoreError(
                    f"cannot lock {self.path}: {error.strerror}; put the run on a disk that knows "
                    "file locks, with another --out"
                ) from error
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)

    def _forget(self) -> None:
        """In a forked child: drop the inherited descriptor; the parent keeps the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def lock_holder(path: Path) -> Holder | None:
    """Say who holds the lock at `path` right now, without waiting; None when nobody does.

    Raises:
        StoreError: the file cannot be read.
        RunLockedError: somebody holds it and does not say who.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its mode") from error
    try:
        if oslock.lock(descriptor, shared=True):
            return None
        holder = _read_holder(descriptor)
    except OSError as error:
        raise StoreError(f"cannot read the lock {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if holder is None:
        raise RunLockedError(_locked_message(path, None))
    return holder


def _locked_message(path: Path, holder: Holder | None) -> str:
    who = "another process"
    if holder is not None:
        who = (
            f"process {holder.pid} on {holder.host} since {holder.since} (command {holder.command})"
        )
    return (
        f"run directory {path.parent} is held by {who}: wait for it, stop it, or use another --out"
    )


def _this_process() -> Holder:
    return Holder(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        command=_one_line(command_line()),
    )


def _read_holder(descriptor: int) -> Holder | None:
    """Read who wrote the lock file; None when it does not say."""
    try:
        value: Any = json.loads(os.pread(descriptor, 1 << 16, 0))
        return Holder(
            pid=int(value["pid"]),
            host=_one_line(str(value["host"])),
            since=_one_line(str(value["since"])),
            command=_one_line(str(value["command"])),
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None


def _one_line(text: str) -> str:
    """Make text from a command line or a file fit into a one-line message."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= _COMMAND_LENGTH else plain[: _COMMAND_LENGTH - 1] + "…"


def _forget_in_forked_children(lock: RunLock) -> None:
    # A forked child (a data loader's worker) shares the lock through its copy of the descriptor and
    # would keep the run locked after its parent was killed.
    reference = weakref.ref(lock)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive._forget()

    os.register_at_fork(after_in_child=forget)
