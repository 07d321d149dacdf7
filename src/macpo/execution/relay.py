"""An observer that passes on what it is told, for those that listen in on a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macpo.execution.protocol import Observer
    from macpo.stage import Stage
    from macpo.store import Artifact


class Relay:
    """Passes everything on; a subclass listens in by overriding what it is interested in.

    Args:
        observer: to whom.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def planned(self, stages: Sequence[Stage]) -> None:
        """See `Observer`, as for the rest."""
        self._observer.planned(stages)

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """See `Observer`."""
        self._observer.stage_started(stage, number, total)

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """See `Observer`."""
        self._observer.stage_progress(stage, done, total, **fields)

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """See `Observer`."""
        self._observer.stage_finished(stage, seconds, artifact)

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """See `Observer`."""
        self._observer.stage_found(stage, artifact)

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._observer.note(text)

    def alert(self, title: str, text: str) -> None:
        """See `Observer`."""
        self._observer.alert(title, text)
