"""The operating system's lock on an open file or folder, which dies with the process that has it.

By hand, not by a library: docs/architecture.md ("What stays by hand, and why") has the reasons.
"""

from __future__ import annotations

import errno

from macpo.errors import StoreError

try:
    import fcntl
except ImportError:
    # Said before anything else of the store can fail for want of POSIX, such as syncing a folder.
    raise StoreError(
        "macpo needs Linux or macOS (or WSL): this operating system has no POSIX file locks"
    ) from None

_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock what is open under `descriptor`, until it is closed or the process is gone.

    A descriptor that a forked child has inherited is the same lock; another one, opened anew, is
    not, though the same process opened it.

    Args:
        descriptor: of a file or a folder, opened in any mode.
        shared: beside others that are shared too.
        wait: until nobody is in the way.

    Returns:
        False if somebody else is in the way.

    Raises:
        OSError: the file system knows no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True
