"""WS-DPO: a weak model's implicit reward labels pairs (Tao and Li 2024, arXiv 2409.08813).

The weak model is aligned by DPO on labelled pairs (section 3.1). Of two answers it then prefers the
one of higher implicit reward, beta (log pi_w(y) - log pi_ref(y)), and the student learns these
labels by DPO.

Taken where the paper leaves room or our setting differs: the student starts from Naive SFT, as in
all methods here, and that policy is its reference; answers are its own by default, since no method
here but the ceiling sees the data's answers to its half, and `answers: data` is the paper's; with
several teachers the mean of their rewards labels; of more than two answers the best is paired with
the worst. The paper was read in summaries and not in full: its section is cited from these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from macpo.methods.judged_answers import JudgedAnswers
from macpo.methods.method import register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class WSDPO(JudgedAnswers):
    """WS-DPO (arXiv 2409.08813): the student learns pairs that aligned teachers have labelled."""

    name: Literal["ws-dpo"] = "ws-dpo"

    def lay_out(self, program: Program) -> None:
        """Naive SFT, teachers aligned, then one training on pairs that they labelled."""
        naive = program.naive_sft()
        student, name = naive.student, naive.student.agent.name
        pairs, _ = self.labelled(program, naive)
        program.evaluate(1, {name: program.contrast(1, student, pairs, student, gamma=0.0)})
