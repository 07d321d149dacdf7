"""The boundary to trackers: a run's numbers and alerts go out, nothing comes back.

What is told is the same for all of them:

    student/preference_accuracy   an agent's metric, on the axis `round` (0: before the first)
    train/student/loss            training, on the axis `train/student`: optimizer steps, counted on
                                  from round to round; `train/student/negative/loss` of the negative
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROUND = "round"
"""The axis of metrics."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        name: that people read.
        id: the same whenever the run goes on, so that its curves do.
        folder: the run directory.
        config: plain values, defaults included.
    """

    name: str
    id: str
    folder: Path
    config: Mapping[str, Any]


class Monitor(Protocol):
    """Takes a run's numbers; it may raise, and is then left out for the rest of the run."""

    where: str
    """One line on where to look."""

    def numbers(self, axis: str, place: int, values: Mapping[str, float]) -> None:
        """Take numbers by name, at a place on an axis.

        A run that was stopped and goes on tells some of them again, at the same places.
        """
        ...

    def alert(self, title: str, text: str) -> None:
        """Take an alert, such as a sign of collapse."""
        ...

    def close(self) -> None:
        """The run is over, or was stopped."""
        ...


class MonitorFactory(Protocol):
    """Starts to follow a run."""

    def __call__(self, run: TrackedRun) -> Monitor:
        """Return a monitor."""
        ...
