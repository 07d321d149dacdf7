"""A run as it was written down, laid out for evaluators: its stages by their keys, none to be run.

An evaluation after the run reads what is there. So it builds on plan.json and not on the config,
which a later version of macpo might lay out in another way, and asks for no model before an
evaluator does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, NoReturn

from macpo.agents import Agent, Policy, assemble_team
from macpo.config import RunConfig
from macpo.errors import ModelError
from macpo.evaluation.evaluator import Subject
from macpo.run_directory import PlannedPolicy, PlannedStage, RunPlan
from macpo.stage import Stage, StageContext


@dataclass(frozen=True, eq=False)
class RecordedStage(Stage):
    """A stage of a run, known by its key alone, for stages that read its artifact."""

    kind: ClassVar[str] = "recorded"

    planned: PlannedStage

    @property
    def key(self) -> str:
        """Its content key, as the run wrote it down."""
        return self.planned.key

    def run(self, context: StageContext) -> NoReturn:
        """Not to be called: its artifact is there, or it is none of an evaluation's inputs."""
        raise AssertionError(f"{self.name} belongs to the run")


class RecordedTeam:
    """The agents of a run, whose models are looked for when the first one is asked for.

    Args:
        config: of the run, as it was resolved.
        plan: as it was written down.
    """

    def __init__(self, config: RunConfig, plan: RunPlan) -> None:
        self._config = config
        self._plan = plan

    @cached_property
    def agents(self) -> dict[str, Agent]:
        """All of them by name.

        Raises:
            ModelError: a model cannot be had.
        """
        team = assemble_team(self._config, self._config.dtype, fetch=True)
        return {agent.name: agent for agent in team.agents}

    def policy(self, planned: PlannedPolicy) -> Policy:
        """Return a policy of the run; its weights need not be there.

        Raises:
            ModelError: its base model is not here, or is another one now.
        """
        agent = self.agents[planned.policy]
        if planned.trained is None:
            return Policy(agent, "positive")
        trained = self._plan.stage(planned.trained)
        if trained.identity["start"]["agent"]["base"] != agent.identity()["base"]:
            raise ModelError(
                f"{agent.name}: {agent.base.name} is another model now than when the run was made; "
                "bring the former one back, or run the config again"
            )
        return Policy(agent, "positive", RecordedStage(trained.name, trained))


def recorded_subjects(
    plan: RunPlan,
    dtype: str,
    measured: Callable[[PlannedPolicy], bool],
    find_policy: Callable[[PlannedPolicy], Policy],
) -> list[tuple[PlannedPolicy, Subject]]:
    """Return whom evaluators may measure of a run, in the plan's order.

    Args:
        plan: the run's, as it was written down.
        dtype: of its models.
        measured: whether the config wants a policy measured.
        find_policy: finds the model behind a policy, if an evaluator asks for it.
    """
    stages = {stage.key: RecordedStage(stage.name, stage) for stage in plan.stages}
    data = next(stage for stage in stages.values() if stage.planned.kind == "data")
    first: dict[str, Subject] = {}
    found = []
    for policy in filter(measured, plan.policies):
        answers = plan.answers(policy, "test")
        pairs = None if policy.trained is None else plan.stage(policy.trained).input("pairs")
        when = f"round-{policy.round}" if policy.round else "init"
        subject = Subject(
            place=f"{when}/{policy.policy}",
            agent=policy.policy,
            round=policy.round,
            dtype=dtype,
            data=data,
            answers=stages[answers[0].key] if answers else None,
            pairs=None if pairs is None else stages[pairs],
            first=first.get(policy.policy),
            find_policy=partial(find_policy, policy),
        )
        if policy.round == 0:
            first[policy.policy] = subject
        found.append((policy, subject))
    return found
