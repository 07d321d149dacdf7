"""Weights & Biases: as its own environment variables say, such as WANDB_MODE and WANDB_PROJECT."""

from __future__ import annotations

import os
from collections.abc import Mapping

from macpo.monitors.protocol import TrackedRun

PROJECT = "macpo"


class WandbMonitor:
    """Logs into the project that WANDB_PROJECT names, else `macpo`; a `Monitor`."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project,
            name=run.name,
            id=run.id,
            resume="allow",
            config=dict(run.config),
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.where = f"wandb sync {run.folder}/wandb/offline-run-*"
        if not self._run.offline:
            self.where = self._run.url or f"the project {project} of W&B"
        self._axes: set[str] = set()

    def numbers(self, axis: str, place: int, values: Mapping[str, float]) -> None:
        """See `Monitor`."""
        for name in (axis, *values):
            if name not in self._axes:
                self._axes.add(name)
                self._run.define_metric(name, step_metric=None if name == axis else axis)
        self._run.log({**values, axis: place})

    def alert(self, title: str, text: str) -> None:
        """See `Monitor`."""
        self._run.alert(title=title, text=text)

    def close(self) -> None:
        """See `Monitor`."""
        self._run.finish()


def start(run: TrackedRun) -> WandbMonitor:
    """See `MonitorFactory`."""
    return WandbMonitor(run)
