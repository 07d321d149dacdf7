"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[..., None]
"""Called as progress(done, total, **fields); fields are numbers to show, such as loss."""
