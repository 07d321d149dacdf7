"""Naive SFT with the auxiliary confidence loss (Burns et al. 2023, arXiv 2312.09390)."""

from __future__ import annotations

from macpo.agents import Policy
from macpo.config import ConfidentConfig
from macpo.methods.program import Program, teachers_on_ground_truth, weak_labels
from macpo.training.stages import ConfidentSFT


def plan_confident_loss(program: Program, method: ConfidentConfig) -> None:
    """Lay out Naive SFT in which the student may overrule its weak labels."""
    teachers = teachers_on_ground_truth(program)
    student = program.team.student
    stage = ConfidentSFT(
        f"init/{student.name}/positive",
        Policy(student, "positive"),
        weak_labels(program, teachers),
        student.sft,
        program.seed("sft", student.name),
        method.weight,
        method.warmup,
        method.threshold,
    )
    policy = Policy(student, "positive", program.add(stage))
    program.evaluate(0, {student.name: policy, **teachers})
