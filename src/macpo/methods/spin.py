"""SPIN: the student plays against itself (Chen et al. 2024, arXiv 2401.01335, Algorithm 1).

In every round `chosen` is the supervised answer, here the weak label, and `rejected` the student's
own answer of before the round; the loss (equation 4.7 with the logistic function) is DPO's with the
policy before the round as reference, without an SFT term.
"""

from __future__ import annotations

from macpo.config import SPINConfig
from macpo.methods.program import (
    Program,
    student_on_weak_labels,
    teachers_on_ground_truth,
    weak_labels,
)
from macpo.positives import DirectPairs


def plan_spin(program: Program, method: SPINConfig) -> None:
    """Naive SFT, then T rounds in which only the student learns."""
    teachers = teachers_on_ground_truth(program)
    labels = weak_labels(program, teachers)
    initial = student = student_on_weak_labels(program, labels)
    name = student.agent.name
    program.evaluate(0, {name: student, **teachers})
    for t in range(1, program.config.rounds + 1):
        own = program.respond(f"round-{t}", student, "student", t)
        pairs = program.add(DirectPairs(f"round-{t}/{name}/pairs", labels, own))
        student = program.contrast(t, student, pairs, initial, gamma=0.0)
        program.evaluate(t, {name: student})
