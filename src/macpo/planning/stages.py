"""The stages of a plan: what each has to do, and how long that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from macpo.config import RunConfig
from macpo.planning.cards import Hardware
from macpo.planning.costs import flops
from macpo.planning.memory import Model
from macpo.planning.placement import Placement
from macpo.planning.recorded import Recorded, StageState
from macpo.planning.times import Asked, loading_seconds, stage_seconds
from macpo.program import Plan
from macpo.work import Known, Work


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its state, its work, and what that takes.

    `work` is None when the sizes of the splits are not known; `operations` also when the number of
    the model's weights is not. `seconds` is what the stage took if it is done, else an estimate:
    see `PlanReport.paced`.
    """

    name: str
    kind: str
    key: str
    agent: str | None
    state: StageState
    work: Work | None
    operations: float | None
    seconds: float | None


def stage_plans(
    layout: Plan,
    recorded: Recorded,
    known: Known | None,
    models: Mapping[str, Model | None],
) -> list[StagePlan]:
    """Describe the stages; of time only what is recorded."""
    found = []
    for stage in layout:
        agent = stage.agent
        work = None if known is None else stage.work(known)
        model = None if agent is None else models[agent.name]
        operations: float | None = None
        if agent is None:
            operations = 0.0
        elif work is not None and model is not None:
            operations = _operations(work, model)
        found.append(
            StagePlan(
                name=stage.name,
                kind=stage.kind,
                key=stage.key,
                agent=None if agent is None else agent.name,
                state=recorded.state(stage),
                work=work,
                operations=operations,
                seconds=recorded.seconds(stage),
            )
        )
    return found


def _operations(work: Work, model: Model) -> float:
    """Return the operations of a stage; without a shape all weights count for every token."""
    if model.shape is None:
        return flops(work, model.parameters, model.tuning)
    return flops(work, model.shape.met, model.tuning, model.shape.head)


def pace_of(stages: Sequence[StagePlan]) -> dict[str, float]:
    """Return the seconds an operation took, by kind of stage, over those that are done."""
    seconds: dict[str, float] = {}
    operations: dict[str, float] = {}
    for stage in stages:
        if stage.seconds is not None and stage.operations:
            seconds[stage.kind] = seconds.get(stage.kind, 0.0) + stage.seconds
            operations[stage.kind] = operations.get(stage.kind, 0.0) + stage.operations
    return {kind: seconds[kind] / operations[kind] for kind in seconds}


@dataclass(frozen=True, slots=True)
class Clock:
    """Estimates the times of stages that are not done."""

    config: RunConfig
    hardware: Hardware
    models: Mapping[str, Model | None]
    placements: Mapping[str, Placement]
    known: Known | None
    utilisation: float | None
    recomputes: bool

    def timed(self, stage: StagePlan, pace: Mapping[str, float]) -> StagePlan:
        """Add the estimated time of a stage that is not done.

        Args:
            stage: as planned.
            pace: seconds an operation took, by kind of stage.
        """
        if stage.state == "done" or stage.operations is None:
            return stage
        if not stage.operations:
            return replace(stage, seconds=0.0)
        if stage.kind in pace:
            return replace(stage, seconds=stage.operations * pace[stage.kind])
        model, placement = self._of(stage)
        assert stage.work is not None
        assert stage.agent is not None
        assert self.known is not None
        asked = Asked(stage.work, self.known.lengths[stage.agent].prompt)
        seconds = stage_seconds(
            asked,
            model,
            placement,
            self.hardware,
            pack_tokens=self.config.engine.pack_tokens,
            utilisation=self.utilisation,
            recomputes=self.recomputes,
        )
        return replace(stage, seconds=seconds)

    def loading(self, stages: Sequence[StagePlan]) -> float:
        """Estimate the seconds in which bases are loaded for the stages to run."""
        uses = []
        for stage in stages:
            if stage.state == "done" or not stage.operations or stage.agent is None:
                continue
            model, placement = self._of(stage)
            assert stage.work is not None
            busy = placement.answering if stage.work.written else placement.training
            uses.append((stage.agent, busy.way, model.read_gib))
        return loading_seconds(uses)

    def _of(self, stage: StagePlan) -> tuple[Model, Placement]:
        """Return the model of a stage that has operations, and where it is."""
        assert stage.agent is not None
        model = self.models[stage.agent]
        assert model is not None
        return model, self.placements[stage.agent]
