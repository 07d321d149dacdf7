"""trackio: a data base on this machine, in trackio's own folder (TRACKIO_DIR)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping

from macpo.monitors.protocol import TrackedRun

PROJECT = "macpo"


class TrackioMonitor:
    """Logs into the project `macpo`; a `macpo.monitors.protocol.Monitor`.

    trackio counts its own steps; the place of numbers on their axis stands beside them.
    """

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self.where = f"trackio show --project {PROJECT}"
        with _quiet():
            self._run = trackio.init(
                project=PROJECT,
                name=f"{run.name} {run.id[:6]}",
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def numbers(self, axis: str, place: int, values: Mapping[str, float]) -> None:
        """See `Monitor`."""
        self._run.log({**values, axis: place})

    def alert(self, title: str, text: str) -> None:
        """See `Monitor`."""
        with _quiet():
            self._run.alert(title, text)

    def close(self) -> None:
        """See `Monitor`."""
        import trackio

        with _quiet():
            trackio.finish()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what trackio prints off stdout, which is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def start(run: TrackedRun) -> TrackioMonitor:
    """See `MonitorFactory`."""
    return TrackioMonitor(run)
