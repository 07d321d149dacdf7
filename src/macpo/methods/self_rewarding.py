"""Self-rewarding language models (Yuan et al. 2024, arXiv 2401.10020, section 2).

In every round the student answers each prompt several times, judges its own answers in words
(LLM-as-a-judge), and learns the best against the worst by DPO, the policy before the round as
reference. Its beginning is Naive SFT: no ground truth, and no data to train the judging on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from macpo.config.values import Text
from macpo.methods.method import Method, register_method
from macpo.methods.wording import GRADE, GRADES, Prose, with_places

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class SelfRewarding(Method):
    """Self-rewarding (arXiv 2401.10020): the student judges its own candidates, iterated DPO.

    `question` (with `{conversation}` or `{question}`, its last turn, and `{answer}`) asks for one
    of `grades`, worst first.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"negative_sft", "dpo.gamma"})

    name: Literal["self-rewarding"] = "self-rewarding"
    candidates: Annotated[int, Field(ge=2, le=1000)] = 4
    question: Prose = GRADE
    grades: Annotated[tuple[Text, ...], Field(min_length=2)] = GRADES

    @field_validator("question")
    @classmethod
    def _has_its_places(cls, value: str) -> str:
        return with_places(value, "answer")

    def lay_out(self, program: Program) -> None:
        """Naive SFT, then T rounds in which only the student learns."""
        from macpo.judging import Grade, RankedPairs

        initial = student = program.naive_sft().student
        name = student.agent.name
        for t in range(1, program.config.rounds + 1):
            when = f"round-{t}"
            candidates = tuple(
                program.respond(when, student, "student", t, sample=n)
                for n in range(self.candidates)
            )
            grades = program.add(
                Grade(f"{when}/{name}/grades", student, candidates, self.question, self.grades)
            )
            pairs = program.add(RankedPairs(f"{when}/{name}/pairs", candidates, (grades,)))
            student = program.contrast(t, student, pairs, initial, gamma=0.0)
            program.evaluate(t, {name: student})
