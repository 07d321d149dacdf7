"""What methods have in common in which aligned teachers judge answers to the student's prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from macpo.methods.method import Method

if TYPE_CHECKING:
    from macpo.agents import Policy
    from macpo.program import Naive, Program
    from macpo.stage import Stage


class JudgedAnswers(Method):
    """Base: teachers are aligned by DPO, and their implicit rewards judge answers.

    `answers: own` are `samples` answers of the student after Naive SFT, so that of its half the
    prompts alone are known, as everywhere else here. `answers: data` are the papers': the two
    answers that the data has to each of these prompts, one of which people preferred; which of
    them stays unknown. `teachers: first` is the papers' single weak model; `all` takes the mean of
    all teachers' rewards.
    """

    unused: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "negative_sft", "dpo.gamma", "dpo.start"}
    )

    answers: Literal["own", "data"] = "own"
    samples: Annotated[int, Field(ge=2, le=1000)] = 2
    teachers: Literal["all", "first"] = "all"

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> JudgedAnswers:
        if self.answers == "data" and "samples" in self.model_fields_set:
            raise ValueError("samples is for answers: own; remove it")
        return self

    def labelled(self, program: Program, naive: Naive) -> tuple[Stage, Stage]:
        """Lay out pairs of the best and the worst answer to each prompt, and the rewards of all."""
        from macpo.judging import RankedPairs

        answers, rewards = self.judged(program, naive)
        place = f"round-1/{naive.student.agent.name}/pairs"
        return program.add(RankedPairs(place, answers, (rewards,))), rewards

    def judged(
        self, program: Program, naive: Naive, *, times_beta: bool = True
    ) -> tuple[tuple[Stage, ...], Stage]:
        """Lay out the answers, and the aligned teachers' judgements of them.

        These are implicit rewards, beta times a log-ratio, or without `times_beta` the log-ratio.
        """
        from macpo import supervisors

        answers = self._candidates(program, naive.student)
        twins = supervisors.aligned(program, naive.teachers, self.teachers)
        if not times_beta:
            twins = [replace(pair, weight=1.0) for pair in twins]
        place = f"round-1/{naive.student.agent.name}"
        return answers, supervisors.judge(program, place, twins, answers)

    def _candidates(self, program: Program, student: Policy) -> tuple[Stage, ...]:
        from macpo import supervisors

        if self.answers == "data":
            return supervisors.unlabelled(program)
        return tuple(
            program.respond("round-1", student, "student", 1, sample=n) for n in range(self.samples)
        )
