"""The strong ceiling: the student on ground truth, SFT and then DPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from macpo.config.training import OF_CONTRAST
from macpo.config.values import Flag
from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class Ceiling(Method):
    """The student learns ground truth, which weak supervision must do without.

    SFT on the good answers of the student half, then with `dpo: true` one round of DPO on its
    pairs.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "negative_sft", "dpo.start"})
    knows_ground_truth: ClassVar[bool] = True

    name: Literal["ceiling"] = "ceiling"
    dpo: Flag = True

    @property
    def idle(self) -> dict[str, str]:
        """See `MethodConfig.idle`."""
        keys = (*OF_CONTRAST, "dpo.anchor")
        return {} if self.dpo else dict.fromkeys(keys, "method.dpo: false")

    def lay_out(self, program: Program) -> None:
        """Lay out what the student reaches when its own half's labels may be used."""
        from macpo.data.stages import DatasetPairs

        student = program.untrained(program.team.student)
        tuned = program.fine_tune_on_dataset(student, "positive", "student")
        name = student.agent.name
        program.evaluate(0, {name: tuned, **program.teachers_on_ground_truth()})
        if self.dpo:
            pairs = program.add(DatasetPairs(f"round-1/{name}/pairs", program.data, "student"))
            program.evaluate(1, {name: program.contrast(1, tuned, pairs, tuned)})
