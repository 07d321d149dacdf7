"""SPIN: the student plays against itself (Chen et al. 2024, arXiv 2401.01335, Algorithm 1).

In every round `chosen` is the supervised answer, here the weak label, and `rejected` the student's
own answer of before the round; the loss (equation 4.7 with the logistic function) is DPO's with the
policy before the round as reference, without an SFT term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class SPIN(Method):
    """SPIN (arXiv 2401.01335): weak labels against the student's own answers, iterated DPO."""

    unused: ClassVar[frozenset[str]] = frozenset({"negative_sft", "dpo.gamma"})

    name: Literal["spin"] = "spin"

    def lay_out(self, program: Program) -> None:
        """Naive SFT, then T rounds in which only the student learns."""
        naive = program.naive_sft()
        student = naive.student
        name = student.agent.name
        for t in range(1, program.config.rounds + 1):
            own = program.respond(f"round-{t}", student, "student", t)
            pairs = program.pair(t, name, naive.labels, own)
            student = program.contrast(t, student, pairs, naive.student, gamma=0.0)
            program.evaluate(t, {name: student})
