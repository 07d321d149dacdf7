"""How far a run is, told from its folder alone: while it goes on, after it, and after a kill.

What is read: who holds the lock, the journal, the running stage's progress, and the metrics of
finished evaluations. Nothing is written and no model library is imported, so this can be asked at
any time from another process.
"""

from __future__ import annotations

import difflib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from macpo.errors import DamagedError, RunLockedError, StoreError
from macpo.evaluation.gather import Measured, gather_metrics
from macpo.run_directory import FINAL, EarlyEnd, RunDir, RunPlan, find_runs
from macpo.store import MANIFEST, Holder, lock_holder, read_manifest, read_progress, verify

SHOWN_RUNS = 5
_PUBLISHING = ""
"""The key that a stop has while policies are handed out, which is no stage."""
_PROGRESS_KEYS = frozenset({"stage", "key", "done", "total", "seconds"})

State = Literal["running", "finished", "stopped"]


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """A stage that is done: `seconds` its last attempt took, `ended` in UTC, ISO 8601.

    One that another run did, over the same store, took no time here and ended when it was found.
    """

    name: str
    key: str
    seconds: float
    ended: str


@dataclass(frozen=True, slots=True)
class RunningStage:
    """The stage at work: `done` of `total` units, None until the first report.

    `seconds` since it started, `quiet_seconds` since its last report; `seconds_left` is None where
    it cannot be told, as for a stage that went on from a checkpoint. `numbers` are such as loss.
    """

    name: str
    key: str
    seconds: float
    done: int | None = None
    total: int | None = None
    quiet_seconds: float | None = None
    seconds_left: float | None = None
    numbers: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LastStop:
    """Where the run last stopped before its end: the stage, when (UTC), and why."""

    stage: str
    key: str
    time: str
    reason: str


@dataclass(frozen=True, slots=True)
class StatusReport:
    """What `status` found.

    `holder` is None when nobody runs it, or when who does has not said so. `total` counts the
    stages of the plan, None while the journal does not tell. `worked_seconds` is what all attempts
    took together. `metrics` has the rows of metrics.jsonl, so far, measured on `pairs` held-out
    pairs (0 where an older macpo did not write that down). `ended` says where a run ended early,
    whose `total` then counts the stages up to there. `faults` are lines on what is missing or
    damaged of finished stages and of what was handed out; a run that has some is not finished.
    `beside` are the stages that run beside `running`, on a cluster.
    """

    folder: Path
    state: State
    holder: Holder | None
    total: int | None
    finished: tuple[FinishedStage, ...]
    running: RunningStage | None
    last_stop: LastStop | None
    worked_seconds: float
    pairs: int
    metrics: tuple[Mapping[str, Any], ...]
    ended: EarlyEnd | None = None
    faults: tuple[str, ...] = ()
    beside: tuple[RunningStage, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "folder": str(self.folder)}


def status(folder: str | Path, *, thorough: bool = False) -> StatusReport:
    """Say how far a run is.

    Args:
        folder: the run directory.
        thorough: read all that is finished and compare it with its checksums; else names and sizes
            of files are compared, and the checksums of what was measured.

    Raises:
        StoreError: there is no run, or its files cannot be read.
    """
    run = RunDir(folder)
    if not run.exists:
        raise StoreError(f"{run.path}: no run here{_nearby(run.path)}")
    holding = [_who_holds(run.lock)]
    history = _read_history(run.journal())
    holding.append(_who_holds(run.lock))  # a run may begin or end while we read
    held = any(is_held for is_held, _ in holding)
    holder = holding[1][1] or holding[0][1]
    if not held:
        history.end_without_a_word()
    history.forget_stop_elsewhere()
    finished = history.finished()
    plan = run.plan()
    ended = run.ended()
    total = None if history.planned is None else len(history.planned)
    if ended is not None:
        total = ended.stages
    state: State = "running" if held else "stopped"
    done = {stage.key for stage in finished}
    damaged = _damaged(run, plan, done, thorough=thorough)
    faults = list(damaged.values())
    complete = history.stop_in_run is None and total in (None, len(finished))
    if not held and complete and run.metrics_file.is_file():
        faults += _faults_of_final(run, plan, ended, thorough=thorough)
        state = "stopped" if faults else "finished"
    measured = _measured(run, plan, done - damaged.keys())
    at_work = [_running_stage(run, history, start) for start in history.open.values() if held]
    return StatusReport(
        folder=run.path,
        state=state,
        holder=holder,
        total=total,
        finished=finished,
        running=at_work[0] if at_work else None,
        last_stop=history.stop,
        worked_seconds=history.worked_seconds,
        pairs=measured.pairs,
        metrics=tuple(row.to_json() for row in measured.rows),
        ended=ended,
        faults=tuple(faults),
        beside=tuple(at_work[1:]),
    )


@dataclass(slots=True)
class _History:
    """What a journal tells, event by event.

    `planned` holds the keys of the run's stages as last laid out, `evaluating` those of
    evaluations after it, `latest` the key that each stage name last had, `attempts` how often a key
    was started. `open` are starts without an end, by key, several on a cluster; `publishing` is
    when handing out began without one.
    """

    planned: frozenset[str] | None = None
    evaluating: frozenset[str] = frozenset()
    done: dict[str, FinishedStage] = field(default_factory=dict)
    latest: dict[str, str] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    open: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    publishing: str | None = None
    stop: LastStop | None = None
    worked_seconds: float = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event in."""
        kind, key = event["event"], event.get("key", "")
        self.worked_seconds += event.get("seconds", 0.0)
        if kind == "planned":
            self.end_without_a_word()
            self.planned = frozenset(key for _, key in event["stages"])
        elif kind == "evaluating":
            self.stop = self.stop_in_run  # where an earlier evaluation stopped is past
            self.evaluating |= {key for _, key in event["stages"]}
        elif kind == "started":
            if "node" not in event or key in self.open:  # else it may run beside others
                self.end_without_a_word(key if "node" in event else None)
            self.open[key] = event
            self.latest[event["stage"]] = key
            self.attempts[key] += 1
        elif kind == "finished":
            self.open.pop(key, None)
            self.done[key] = FinishedStage(event["stage"], key, event["seconds"], event["time"])
            self._forget_stop_at(key)
        elif kind == "found":  # another run made it, or this one, killed before it could say so
            self.latest[event["stage"]] = key
            self.done[key] = FinishedStage(event["stage"], key, 0.0, event["time"])
            self._forget_stop_at(key)
        elif kind == "publishing":
            self.publishing = event["time"]
        elif kind == "published":
            self.publishing = None
            self._forget_stop_at(_PUBLISHING)
        elif kind == "stopped":
            self.open.pop(key, None)
            self.publishing = None
            self.stop = LastStop(event["stage"], key, event["time"], event["reason"])
        elif kind == "set_aside":
            self.done.pop(key, None)

    def end_without_a_word(self, only: str | None = None) -> None:
        """Take in that the process at work has ended, or that of one stage, by key."""
        ended = [start for key, start in self.open.items() if only in (None, key)]
        if ended:
            start = ended[-1]
            self.stop = _killed(start["stage"], start["key"], start["time"])
        elif self.publishing is not None:
            self.stop = _killed(FINAL, _PUBLISHING, self.publishing)
        self.publishing = None
        self.open = {key: start for key, start in self.open.items() if only not in (None, key)}

    def _forget_stop_at(self, key: str) -> None:
        """Forget where the run stopped if that is past."""
        if self.stop is not None and self.stop.key == key:
            self.stop = None

    def forget_stop_elsewhere(self) -> None:
        """Forget a stop at a stage that is none of the run's since its config changed."""
        if self.stop is None or self.planned is None or self.stop.key == _PUBLISHING:
            return
        if self.stop.key not in self.planned | self.evaluating:
            self.stop = None

    @property
    def stop_in_run(self) -> LastStop | None:
        """The last stop, unless an evaluation after the run stopped there."""
        beside = self.evaluating - (self.planned or frozenset())
        return None if self.stop is None or self.stop.key in beside else self.stop

    def finished(self) -> tuple[FinishedStage, ...]:
        """Return the stages that are done and still belong to the run, oldest first.

        After a change of the config some stages of the same names have other keys.
        """
        current = self.latest.values() if self.planned is None else self.planned
        return tuple(stage for key, stage in self.done.items() if key in current)


def _read_history(events: Sequence[Mapping[str, Any]]) -> _History:
    """Take all events of a journal in."""
    history = _History()
    for event in events:
        history.take(event)
    return history


def _killed(stage: str, key: str, time: str) -> LastStop:
    """Describe the end of a stage that left no word."""
    reason = "killed: the process ended without a word (kill -9, out of memory, full disk, power)"
    return LastStop(stage, key, time, reason)


def _damaged(
    run: RunDir, plan: RunPlan | None, done: set[str], *, thorough: bool
) -> dict[str, str]:
    """Return lines on finished stages whose artifacts are not as they were committed, by key.

    Those that measure somebody are read whole in any case: their numbers are shown.
    """
    if plan is None:
        return {}
    measuring = {key for policy in plan.policies for key in policy.measured}
    found = {}
    for stage in plan.stages:
        if stage.key in done:
            exact = thorough or stage.key in measuring
            for line in _fault(run.artifact(stage), stage.name, thorough=exact):
                found[stage.key] = line
    return found


def _faults_of_final(
    run: RunDir, plan: RunPlan | None, ended: EarlyEnd | None, *, thorough: bool
) -> list[str]:
    """Return lines on policies that are not handed out as the plan has them."""
    if plan is None:
        return []
    faults = []
    for name in dict.fromkeys(policy.policy for policy in plan.policies):
        folder, shown = run.final / name, f"{FINAL}/{name}"
        faults += (found := _fault(folder, shown, thorough=thorough))
        trained = plan.policy(name, ended=ended).trained
        if not found and read_manifest(folder).fields.get("weights") != (trained or ""):
            faults.append(f"{shown} is another policy than the run's last")
    return faults


def _fault(folder: Path, shown: str, *, thorough: bool) -> list[str]:
    """Return a line, if a committed folder is not as it was."""
    if not (folder / MANIFEST).is_file():
        return [f"{shown} is missing"]
    try:
        verify(folder, sizes_only=not thorough)
    except DamagedError as error:
        return [error.fault.replace(str(folder), shown, 1)]
    return []


def _who_holds(lock: Path) -> tuple[bool, Holder | None]:
    """Return whether somebody holds the run, and who, if he says so."""
    try:
        holder = lock_holder(lock)
    except RunLockedError:
        return True, None
    return holder is not None, holder


def _running_stage(run: RunDir, history: _History, start: Mapping[str, Any]) -> RunningStage:
    """Describe a stage at work."""
    began = datetime.fromisoformat(start["time"].replace("Z", "+00:00"))
    seconds = max((datetime.now(UTC) - began).total_seconds(), 0.0)
    stage = RunningStage(start["stage"], start["key"], seconds)
    file = run.progress_of(stage.key) if "node" in start else run.progress_file
    progress = read_progress(file)
    if progress is None or progress.get("key") != stage.key:
        return stage
    units = [progress.get(name) for name in ("done", "total", "seconds")]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in units):
        return stage  # somebody else wrote it
    try:
        quiet = max(time.time() - file.stat().st_mtime, 0.0)
    except OSError:  # it ended just now
        return stage
    done, total, at_work = progress["done"], progress["total"], progress["seconds"]
    left = None
    if done and history.attempts[stage.key] == 1:
        left = max(at_work * (total - done) / done - quiet, 0.0)
    numbers = {k: v for k, v in progress.items() if k not in _PROGRESS_KEYS}
    return replace(
        stage, done=done, total=total, quiet_seconds=quiet, seconds_left=left, numbers=numbers
    )


def _measured(run: RunDir, plan: RunPlan | None, done: set[str]) -> Measured:
    """Return what was measured so far."""
    if plan is None:
        return Measured(tuple(run.metrics()), pairs=0)
    return gather_metrics(run, plan, done)


def _nearby(folder: Path) -> str:
    """Name the runs that may have been meant."""
    runs = find_runs(folder, folder.parent, Path("runs"))
    if not runs:
        return "; start one with: macpo run CONFIG"
    by_name = {run.name: run for run in reversed(runs)}
    near = difflib.get_close_matches(folder.name, by_name, n=1)
    if near:
        return f"; did you mean {by_name[near[0]]}?"
    more = f" and {len(runs) - SHOWN_RUNS} more" if len(runs) > SHOWN_RUNS else ""
    return f"; runs nearby: {', '.join(map(str, runs[:SHOWN_RUNS]))}{more}"
