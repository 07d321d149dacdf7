"""SPIN: the student plays against itself (Chen et al. 2024, arXiv 2401.01335, Algorithm 1).

In every round `chosen` is the supervised answer, here the weak label, and `rejected` the student's
own answer of before the round; the loss (equation 4.7 with the logistic function) is DPO's with the
policy before the round as reference, without an SFT term.
"""

from __future__ import annotations

from macpo.config import SPINConfig
from macpo.methods.program import Program, naive_sft
from macpo.positives import DirectPairs


def plan_spin(program: Program, method: SPINConfig) -> None:
    """Naive SFT, then T rounds in which only the student learns."""
    naive = naive_sft(program)
    student = naive.student
    name = student.agent.name
    for t in range(1, program.config.rounds + 1):
        own = program.respond(f"round-{t}", student, "student", t)
        pairs = program.add(DirectPairs(f"round-{t}/{name}/pairs", naive.labels, own))
        student = program.contrast(t, student, pairs, naive.student, gamma=0.0)
        program.evaluate(t, {name: student})
