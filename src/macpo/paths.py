"""Paths as people write them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from macpo.errors import ConfigError


def user_path(text: str | Path) -> Path:
    """Return the path that somebody wrote, with `~` and `~name` resolved.

    Raises:
        ConfigError: no system could have such a path.
    """
    shown = str(text) if len(str(text)) <= 60 else f"{str(text)[:59]}…"
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # pathlib's word for a user that is not there
        raise ConfigError(f"{shown}: there is no such user; write the path in full") from None
    try:
        os.lstat(path)
    except ValueError:
        raise ConfigError(f"{shown!r}: holds a null character, which no path does") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{shown}: too long for a path or a name") from None
    return path
