"""The strong ceiling: the student on ground truth, SFT and then DPO."""

from __future__ import annotations

from macpo.agents import Policy
from macpo.config import CeilingConfig
from macpo.data.stages import DatasetPairs
from macpo.methods.program import Program, teachers_on_ground_truth


def plan_ceiling(program: Program, method: CeilingConfig) -> None:
    """Lay out what the student reaches when its own half's labels may be used."""
    student = Policy(program.team.student, "positive")
    tuned = program.fine_tune_on_dataset(student, "positive", "student")
    name = student.agent.name
    program.evaluate(0, {name: tuned, **teachers_on_ground_truth(program)})
    if method.dpo:
        pairs = program.add(DatasetPairs(f"round-1/{name}/pairs", program.data, "student"))
        program.evaluate(1, {name: program.contrast(1, tuned, pairs, tuned)})
