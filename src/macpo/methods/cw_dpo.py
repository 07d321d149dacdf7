"""CW-DPO: WS-DPO weighed by confidence (Afzali et al. 2026, arXiv 2603.04968, equations 7 and 8).

A weak model says which of two answers is better, and each pair's DPO loss counts
2 (sigmoid(r(y+) - r(y-)) - 1/2): nothing where its rewards are equal, near 1 where it is sure.

Taken where our setting differs: the weak model's reward is the implicit one of a teacher after DPO,
with several teachers their mean (the paper puts a scalar head on a weak model and fits it by the
same Bradley-Terry loss); student, answers and reference are as in WS-DPO. The equations were read
in summaries of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from macpo.methods.judged_answers import JudgedAnswers
from macpo.methods.method import register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class CWDPO(JudgedAnswers):
    """CW-DPO (arXiv 2603.04968): WS-DPO whose pairs count as much as the teachers are sure."""

    name: Literal["cw-dpo"] = "cw-dpo"

    def lay_out(self, program: Program) -> None:
        """Naive SFT, teachers aligned, then one training on pairs that they labelled and weigh."""
        naive = program.naive_sft()
        student, name = naive.student, naive.student.agent.name
        pairs, rewards = self.labelled(program, naive)
        trained = program.contrast(1, student, pairs, student, gamma=0.0, judgements=rewards)
        program.evaluate(1, {name: trained})
