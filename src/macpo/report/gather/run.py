"""The order in which a report is gathered: of a run that finished, goes on, stopped, or is old."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from macpo.config import RunConfig
from macpo.errors import MacpoError
from macpo.evaluation.collapse import read_signs
from macpo.report.data import Alert, Curve, Provenance, RunReport, Sign, Transcripts
from macpo.report.gather.failures import failures
from macpo.report.gather.filters import filter_rounds
from macpo.report.gather.finished import Finished, finished_stages
from macpo.report.gather.measurements import changes, curves
from macpo.report.gather.origin import provenance
from macpo.report.gather.people import judged_sides
from macpo.report.gather.work import cost, judges_cost, stage_rows, training_logs
from macpo.report.result import STUDENT
from macpo.report.transcripts import gather_transcripts
from macpo.run_directory import COLLAPSE, EarlyEnd, RunDir, RunPlan
from macpo.run_status import StatusReport, status

Found = TypeVar("Found")


def gather_run(folder: str | Path) -> RunReport:
    """Gather what a report shows of a run.

    Args:
        folder: the run directory.

    Raises:
        StoreError: there is no run, or its journal cannot be read.
    """
    return _Gathering(RunDir(folder), status(folder)).report()


class _Gathering:
    """One call of `gather_run`."""

    def __init__(self, run: RunDir, state: StatusReport) -> None:
        self.run = run
        self.state = state
        self.faults: list[str] = []

    def report(self) -> RunReport:
        """Return the report; each part is there or its fault is."""
        measured = self._all(
            "the measurements", lambda: curves(self.run, self.plan, self.state.metrics)
        )
        agents = tuple(dict.fromkeys(s.agent for curve in measured for s in curve.series))
        transcripts = self._try(
            "the answers to test prompts", lambda: self._transcripts(measured), Transcripts()
        )
        stages = self._all(
            "the stages", lambda: stage_rows(self.state.finished, self.plan, self.done)
        )
        filters = self._all("the filter", lambda: filter_rounds(self.done, self.seed))
        logs = self._all("the training logs", lambda: training_logs(self.done))
        counted = self._all("the failures", lambda: failures(self.done, self.journal))
        signs = self._all("the signs of collapse", self._signs)
        checked = sum(found.stage.kind == COLLAPSE for found in self.done)
        stop = self.state.last_stop
        return RunReport(
            name=self.config.name if self.config is not None else self.run.path.resolve().name,
            folder=str(self.run.path.resolve()),
            state=self.state.state,
            stages_done=len(self.state.finished),
            stages_total=self.state.total,
            worked_seconds=self.state.worked_seconds,
            last_stop="" if stop is None else f"{stop.stage}: {stop.reason}",
            rounds=max((p.round for c in measured for s in c.series for p in s.points), default=0),
            student=STUDENT,
            agents=agents,
            pairs=self.state.pairs,
            curves=measured,
            changes=tuple(changes(measured, self.ended)),
            judgments=self._all("people's judgments", lambda: judged_sides(self.run)),
            filters=filters,
            logs=logs,
            signs=signs,
            checked=checked,
            alerts=tuple(self._alerts()),
            failures=counted,
            stages=stages,
            cost=cost(stages, self.state.worked_seconds) | judges_cost(self.state.metrics),
            transcripts=transcripts,
            provenance=self._provenance(),
            notes=tuple(self._notes()),
            faults=tuple(self.faults),
        )

    def _try(self, what: str, gather: Callable[[], Found], otherwise: Found) -> Found:
        """Gather a part; one that cannot be read is noted instead."""
        try:
            return gather()
        except (MacpoError, OSError, ValueError, KeyError, TypeError) as error:
            self.faults.append(f"{what} could not be read: {error}")
            return otherwise

    def _all(self, what: str, gather: Callable[[], Iterable[Found]]) -> tuple[Found, ...]:
        """Gather a part that is a list; one that cannot be read is empty, and noted."""
        return self._try(what, lambda: tuple(gather()), ())

    @cached_property
    def config(self) -> RunConfig | None:
        """The config as it was resolved; None where it cannot be read by this version."""
        return self._try("the config", self.run.config, None)

    @cached_property
    def plan(self) -> RunPlan | None:
        """What the run consists of; None of an older macpo's."""
        return self._try("the plan", self.run.plan, None)

    @cached_property
    def ended(self) -> EarlyEnd | None:
        """Where signs of collapse ended the run; None if they did not."""
        return self._try("what ended the run", self.run.ended, None)

    @cached_property
    def journal(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        return self.run.journal()

    @cached_property
    def done(self) -> list[Finished]:
        """The stages whose artifacts are there."""
        return [] if self.plan is None else finished_stages(self.run, self.plan)

    @cached_property
    def seed(self) -> int:
        """The run's; 0 where its config cannot be read."""
        return 0 if self.config is None else self.config.seed

    def _notes(self) -> Iterator[str]:
        """Yield what has to be known of the run as a whole."""
        if self.plan is None:
            yield (
                "An older macpo made this run and wrote no plan: answers, filter and training are "
                "not shown. Run its config again, which finds what is done and writes one."
            )
        if self.ended is not None:
            yield (
                f"Signs of collapse ended the run after round {self.ended.round}; the policies "
                f"that it hands out, and that are compared here, are those of round "
                f"{self.ended.kept}."
            )
        if self.config is not None:
            from macpo.backends import find_backend

            with suppress(MacpoError):
                caution = find_backend(self.config.generation.backend).caution
                if caution:
                    yield caution

    def _transcripts(self, shown: Sequence[Curve]) -> Transcripts:
        if self.plan is None:
            return Transcripts()
        return gather_transcripts(self.run, self.plan, shown, STUDENT, self.seed)

    def _signs(self) -> Iterator[Sign]:
        """Yield the signs of collapse that were found, round by round."""
        for done in self.done:
            if done.stage.kind == COLLAPSE:
                for sign in read_signs(done.folder):
                    yield Sign(sign.policy, sign.round, sign.name, sign.text, sign.ends)

    def _alerts(self) -> Iterator[Alert]:
        """Yield what the run warned of, each once, as last told."""
        told = {
            (event.get("title", ""), event.get("text", "")): event["time"]
            for event in self.journal
            if event["event"] == "alert"
        }
        for (title, text), time in told.items():
            yield Alert(time, title, text)

    def _provenance(self) -> Provenance:
        """Return how the run was made."""
        resolved = self._try("run.json", self.run.resolved, None)
        return provenance(self.run, self.config, resolved, self.plan, self.done, self.journal)
