"""Artifacts that another machine has just written, over a network file system that caches names."""

from __future__ import annotations

import time
from collections.abc import Callable

from macpo.errors import ClusterError
from macpo.store import MANIFEST, Artifact

CACHE_SECONDS = 90.0
"""NFS keeps the knowledge that a name is not there for 60 s at most, unless mounted otherwise."""


def await_artifact(artifact: Artifact, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until the files of a committed artifact can be seen from here.

    Raises:
        ClusterError: they cannot.
    """
    deadline = time.monotonic() + CACHE_SECONDS
    while not (artifact.path / MANIFEST).is_file():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{artifact.path} was committed on another node and cannot be seen here after "
                f"{CACHE_SECONDS:.0f} s; is the store on a file system that all nodes share?"
            )
        sleep(0.5)
