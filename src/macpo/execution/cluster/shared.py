"""Is the store one folder for all nodes, and do the operating system's locks reach them?

The driver writes a word into a fresh file and locks it; every node reads the file and tries to lock
it too. Whether a network file system carries locks between machines depends on how it is mounted,
so it is tried, not known.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from macpo.errors import ClusterError
from macpo.store import oslock
from macpo.store.atomic import make_directory, translate_write_errors, write_all
from macpo.version import __version__

PROBES = ".probes"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node makes of the driver's probe.

    Attributes:
        host: its name.
        word: what it read in the file; None where there is no such file.
        locked: whether the driver's lock kept it from locking the file.
        macpo: the version there.
        python: likewise.
    """

    host: str
    word: str | None
    locked: bool
    macpo: str
    python: str


@contextlib.contextmanager
def probe(store: Path) -> Iterator[tuple[Path, str]]:
    """Yield a locked file in a store and the word that is in it; remove it afterwards.

    Raises:
        StoreError: it cannot be written.
    """
    path, word = store / PROBES / uuid.uuid4().hex, uuid.uuid4().hex
    make_directory(path.parent)
    with translate_write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with translate_write_errors(path):
            write_all(descriptor, word.encode())
            os.fsync(descriptor)
        with contextlib.suppress(OSError):  # no locks at all: then nobody is kept out
            oslock.lock(descriptor)
        yield path, word
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def see(path: Path) -> Seen:
    """Look at a probe from this machine."""
    word, locked = None, False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        pass
    else:
        with contextlib.suppress(OSError):
            locked = not oslock.lock(descriptor)
        word = os.pread(descriptor, 100, 0).decode(errors="replace")
        os.close(descriptor)
    return Seen(socket.gethostname(), word, locked, __version__, platform.python_version())


def refuse_strangers(store: Path, word: str, seen: Sequence[Seen]) -> None:
    """Refuse nodes that do not see the store, or run another macpo or Python.

    Raises:
        ClusterError: in one line, with the nodes.
    """
    blind = sorted({node.host for node in seen if node.word != word})
    if blind:
        raise ClusterError(
            f"{', '.join(blind)}: the store {store} is not the driver's there, or cannot be "
            "written; put it on a file system that all nodes share, with --out"
        )
    here = (__version__, platform.python_version_tuple()[:2])
    for node in seen:
        there = (node.macpo, tuple(node.python.split(".")[:2]))
        if there != here:
            raise ClusterError(
                f"{node.host} has macpo {node.macpo} on Python {node.python}, the driver "
                f"{__version__} on {platform.python_version()}; install one environment everywhere"
            )


def locks_reach(seen: Sequence[Seen]) -> bool:
    """Tell whether the driver's lock kept all nodes out."""
    return all(node.locked for node in seen)
