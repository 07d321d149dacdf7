"""Telling trackers of a run: an observer that listens in, and cannot make the run fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from macpo.config import RunConfig
from macpo.execution.relay import Relay
from macpo.monitors.protocol import ROUND, Monitor, TrackedRun
from macpo.run_directory import COLLAPSE, MetricRow, RunDir
from macpo.seeds import digest
from macpo.trackers import TRACKERS

if TYPE_CHECKING:
    from macpo.execution.protocol import Observer
    from macpo.stage import Stage
    from macpo.store import Artifact

SHOWN_OF_TRAINING = ("loss", "margin", "tokens_per_second")
POSITIVE_STAGES = ("positive", "train")
"""Last parts of the names of stages that train positive policies."""


def tracked_run(config: RunConfig, home: RunDir) -> TrackedRun:
    """Return a run as trackers know it."""
    folder = home.path.resolve()
    name = config.name
    if folder.name != name:
        name = f"{name} ({folder.parent.name}/{folder.name})"
    return TrackedRun(name, digest(str(folder))[:16], folder, config.model_dump(mode="json"))


class Tracking(Relay):
    """Tells monitors what an observer is told, and the metrics as they come about.

    Args:
        observer: is told everything as well, and of a monitor that fails.
        monitors: by name.
    """

    def __init__(self, observer: Observer, monitors: dict[str, Monitor]) -> None:
        super().__init__(observer)
        self._monitors = monitors
        self._told: set[tuple[str, int, str]] = set()
        self._steps: dict[str, int] = {}

    @classmethod
    def start(cls, config: RunConfig, home: RunDir, observer: Observer) -> Tracking:
        """Start the trackers that a config names.

        Raises:
            ConfigError: what one needs is not installed.
        """
        factories = {name: TRACKERS.get(name).load() for name in config.track}
        tracking = cls(observer, {})
        for name, factory in factories.items():
            tracking._guard(name, partial(tracking._add, name, factory, config, home))
        return tracking

    def _add(self, name: str, factory: Any, config: RunConfig, home: RunDir) -> None:
        self._monitors[name] = factory(tracked_run(config, home))
        self._observer.note(f"track: {name}: {self._monitors[name].where}")

    def measured(self, rows: Iterable[MetricRow]) -> None:
        """Tell the metrics that have not been told yet, all of one round together."""
        fresh: dict[int, dict[str, float]] = {}
        for row in rows:
            place = (row.policy, row.round, row.metric)
            if place not in self._told:
                self._told.add(place)
                fresh.setdefault(row.round, {})[f"{row.policy}/{row.metric}"] = row.value
        for t, values in sorted(fresh.items()):
            self._each(partial(_tell_numbers, ROUND, t, values))

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """Tell a step of training."""
        super().stage_progress(stage, done, total, **fields)
        values = {name: fields[name] for name in SHOWN_OF_TRAINING if _is_number(fields, name)}
        if self._monitors and "loss" in values:
            axis = training_axis(stage)
            named = {f"{axis}/{name}": value for name, value in values.items()}
            place = self._steps.get(axis, 0) + done
            self._each(partial(_tell_numbers, axis, place, named))

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """Count a training stage's steps, and tell signs of collapse as alerts."""
        super().stage_finished(stage, seconds, artifact)
        self._count(stage, artifact)
        if stage.kind == COLLAPSE:
            signs: Sequence[str] = artifact.meta.get("signs", ())
            for sign in signs:
                self._each(partial(_tell_alert, f"{stage.name}: sign of collapse", sign))

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """Count the steps of a training stage that had been run before."""
        super().stage_found(stage, artifact)
        self._count(stage, artifact)

    def alert(self, title: str, text: str) -> None:
        """Pass the alert on to everybody."""
        super().alert(title, text)
        self._each(partial(_tell_alert, title, text))

    def close(self) -> None:
        """Tell the monitors that it is over."""
        self._each(lambda monitor: monitor.close())

    def _count(self, stage: Stage, artifact: Artifact) -> None:
        steps = artifact.meta.get("steps")
        if steps:
            axis = training_axis(stage)
            self._steps[axis] = self._steps.get(axis, 0) + int(steps)

    def _each(self, tell: Callable[[Monitor], None]) -> None:
        for name, monitor in list(self._monitors.items()):
            self._guard(name, partial(tell, monitor))

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        """Do something with a monitor; one that fails is left out, and that is said once."""
        try:
            act()
        except Exception as error:  # whatever a tracker does, the run goes on
            self._monitors.pop(name, None)
            self._observer.note(
                f"track: {name} failed and is left out from here on; the run goes on "
                f"({type(error).__name__}: {error})"
            )


def _tell_numbers(axis: str, place: int, values: Mapping[str, float], monitor: Monitor) -> None:
    monitor.numbers(axis, place, values)


def _tell_alert(title: str, text: str, monitor: Monitor) -> None:
    monitor.alert(title, text)


def training_axis(stage: Stage) -> str:
    """Return whose training a stage is: `train/student`, `train/student/negative`."""
    agent = "" if stage.agent is None else stage.agent.name
    last = stage.name.rpartition("/")[2]
    return f"train/{agent}" if last in POSITIVE_STAGES else f"train/{agent}/{last}"


def _is_number(fields: dict[str, Any], name: str) -> bool:
    return isinstance(fields.get(name), int | float)
