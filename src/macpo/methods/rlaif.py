"""RLAIF: feedback from the weak teachers (Lee et al. 2023, arXiv 2309.00267).

In every round the student answers each prompt twice, every teacher says which answer is better
(both orders, averaged; or by grading each), and the student learns the one against the other. The
paper trains a reward model and then by reinforcement; here DPO on the labels takes the place of
both, as in the other methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from macpo.config.values import Text
from macpo.methods.method import Method, register_method
from macpo.methods.wording import CHOOSE, GRADE, GRADES, Prose, with_places

if TYPE_CHECKING:
    from macpo.agents import Policy
    from macpo.program import Program
    from macpo.stage import Stage


@register_method
class RLAIF(Method):
    """RLAIF (arXiv 2309.00267): the teachers say which of two student's answers is better.

    With `judging: compare`, `question` (with `{conversation}` or `{question}`, `{first}` and
    `{second}`) asks for one of two `labels`; with `judging: grade` it asks for the grade of one
    answer (as self-rewarding does), and the higher one of the two wins.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"negative_sft", "dpo.gamma"})

    name: Literal["rlaif"] = "rlaif"
    judging: Literal["compare", "grade"] = "compare"
    question: Prose | None = None
    labels: tuple[Text, Text] = ("A", "B")
    grades: Annotated[tuple[Text, ...], Field(min_length=2)] = GRADES

    @property
    def asked(self) -> str:
        """The question that is asked."""
        return self.question or (CHOOSE if self.judging == "compare" else GRADE)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> RLAIF:
        other = {"compare": "grade", "grade": "compare"}[self.judging]
        option = {"compare": "grades", "grade": "labels"}[self.judging]
        if option in self.model_fields_set:
            raise ValueError(f"{option} is for judging: {other}; remove it")
        return self

    @field_validator("question")
    @classmethod
    def _has_its_places(cls, value: str | None, info: ValidationInfo) -> str | None:
        compares = info.data.get("judging") == "compare"
        places = ("first", "second") if compares else ("answer",)
        return None if value is None else with_places(value, *places)

    def lay_out(self, program: Program) -> None:
        """Naive SFT, then T rounds in which only the student learns."""
        from macpo.judging import RankedPairs

        naive = program.naive_sft()
        student = naive.student
        name = student.agent.name
        for t in range(1, program.config.rounds + 1):
            when = f"round-{t}"
            one, other = (program.respond(when, student, "student", t, sample=n) for n in (0, 1))
            labels = tuple(
                program.add(self._labels(f"{when}/{judge}/labels", policy, one, other))
                for judge, policy in naive.teachers.items()
            )
            pairs = program.add(RankedPairs(f"{when}/{name}/pairs", (one, other), labels))
            student = program.contrast(t, student, pairs, naive.student, gamma=0.0)
            program.evaluate(t, {name: student})

    def _labels(self, name: str, judge: Policy, one: Stage, other: Stage) -> Stage:
        """Let a teacher judge both answers to every prompt."""
        from macpo.judging import Compare, Grade

        if self.judging == "grade":
            return Grade(name, judge, (one, other), self.asked, self.grades)
        return Compare(name, judge, one, other, self.asked, self.labels)
