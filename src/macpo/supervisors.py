"""Weak teachers as supervisors: pairs of twins that judge answers by their log-ratio.

Twins are two policies of one teacher. What the better of them says more readily than the other one
is good in that teacher's eyes, and nobody needs to ask it in words (`macpo.judging.LogRatios`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from macpo.agents import Policy
from macpo.data.stages import DatasetPairs, UnlabelledAnswers
from macpo.judging import Aggregate, LogRatios
from macpo.program import Program
from macpo.scoring import ScorePairs, ScoreResponses
from macpo.stage import Stage
from macpo.training.stages import TrainDPO

Supervisors = Literal["all", "first"]
"""Which teachers judge."""


@dataclass(frozen=True, slots=True)
class Twins:
    """Two policies of one teacher, and the weight of their log-ratio."""

    better: Policy
    worse: Policy
    weight: float = 1.0


def aligned(
    program: Program, teachers: Mapping[str, Policy], which: Supervisors = "all"
) -> list[Twins]:
    """Align teachers by DPO on the labels of their half; the worse twin is who they were before.

    By each teacher's `dpo` section, without an SFT term and with the teacher after SFT as reference
    whatever `dpo.reference` says of the rounds: the log-ratio to that reference, times beta, is
    then the reward that DPO fits to the labels, and beta is the weight.

    Args:
        program: gets the stages.
        teachers: after SFT, by name.
        which: all of them, or the first alone.
    """
    pairs = program.add(DatasetPairs("init/teacher-pairs", program.data, "teacher"))
    chosen = [teachers[agent.name] for agent in program.team.teachers]
    return [
        Twins(_align(program, teacher, pairs), teacher, teacher.agent.dpo.beta)
        for teacher in (chosen if which == "all" else chosen[:1])
    ]


def _align(program: Program, teacher: Policy, pairs: Stage) -> Policy:
    """Train a teacher by DPO on labelled pairs."""
    agent = teacher.agent
    masks = agent.dpo.end_of_turn == "mask"
    name = f"init/{agent.name}/reference"
    reference = program.add(ScorePairs(name, teacher, pairs, without_ends=masks))
    config = agent.dpo.model_copy(update={"gamma": 0.0})
    seed = program.seed("align", agent.name)
    stage = TrainDPO(f"init/{agent.name}/aligned", teacher, pairs, reference, config, seed)
    return Policy(agent, "positive", program.add(stage))


def judge(
    program: Program,
    place: str,
    twins: Iterable[Twins],
    answers: Sequence[Stage],
    aggregate: Aggregate = "mean",
) -> Stage:
    """Let twins judge answers by their weighted log-ratios.

    Args:
        program: gets the stages.
        place: first part of their names, such as `round-2`.
        twins: who judge.
        answers: answering stages on the same prompts.
        aggregate: what the twins' numbers become.

    Returns:
        The stage with one judgement for each answer.
    """
    answers, twins = tuple(answers), list(twins)
    ours, theirs = (
        tuple(
            program.add(ScoreResponses(f"{place}/{who.agent.name}/{side}-scores", who, answers))
            for who in policies
        )
        for side, policies in (
            ("better", [pair.better for pair in twins]),
            ("worse", [pair.worse for pair in twins]),
        )
    )
    weights = tuple(pair.weight for pair in twins)
    return program.add(LogRatios(f"{place}/log-ratios", answers, ours, theirs, weights, aggregate))


def unlabelled(program: Program) -> tuple[Stage, Stage]:
    """Return the two answers of the data to each of the student's prompts, without their labels."""
    first, second = (
        program.add(UnlabelledAnswers(f"init/unlabelled-{n}", program.data, "student", n))
        for n in (0, 1)
    )
    return first, second
