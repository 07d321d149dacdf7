"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping

from macpo.monitors.protocol import TrackedRun

FOLDER = "tensorboard"


class TensorBoardMonitor:
    """Writes scalars and texts; a `macpo.monitors.protocol.Monitor`."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / FOLDER
        self.where = f"tensorboard --logdir {folder}"
        self._writer = SummaryWriter(str(folder))
        self._alerts = 0

    def numbers(self, axis: str, place: int, values: Mapping[str, float]) -> None:
        """See `Monitor`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, place)
        self._writer.flush()

    def alert(self, title: str, text: str) -> None:
        """See `Monitor`."""
        self._writer.add_text("alerts", f"{title}: {text}", self._alerts)
        self._writer.flush()
        self._alerts += 1

    def close(self) -> None:
        """See `Monitor`."""
        self._writer.close()


def start(run: TrackedRun) -> TensorBoardMonitor:
    """See `MonitorFactory`."""
    return TensorBoardMonitor(run)
