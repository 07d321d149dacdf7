"""Naive SFT with the auxiliary confidence loss (Burns et al. 2023, arXiv 2312.09390)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class ConfidentLoss(Method):
    """The auxiliary confidence loss of weak-to-strong generalisation (arXiv 2312.09390).

    Naive SFT in which, at tokens that the student is sure of (probability `threshold` or more), its
    own prediction counts `weight` and the weak label the rest; `weight` is reached after `warmup`
    of the steps.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "dpo", "negative_sft"})

    name: Literal["confident-loss"] = "confident-loss"
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.2
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5

    def lay_out(self, program: Program) -> None:
        """Lay out Naive SFT in which the student may overrule its weak labels."""
        from macpo.agents import Policy
        from macpo.training.stages import ConfidentSFT

        teachers = program.teachers_on_ground_truth()
        student = program.team.student
        stage = ConfidentSFT(
            f"init/{student.name}/positive",
            program.untrained(student),
            program.weak_labels(teachers),
            student.sft,
            program.seed("sft", student.name),
            self.weight,
            self.warmup,
            self.threshold,
        )
        policy = Policy(student, "positive", program.add(stage))
        program.evaluate(0, {student.name: policy, **teachers})
