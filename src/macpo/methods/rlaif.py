"""RLAIF: feedback from the weak teachers (Lee et al. 2023, arXiv 2309.00267).

In every round the student answers each prompt twice, every teacher says which answer is better
(both orders, averaged; or by grading each), and the student learns the one against the other. The
paper trains a reward model and then by reinforcement; here DPO on the labels takes the place of
both, as in the other methods.
"""

from __future__ import annotations

from macpo.agents import Policy
from macpo.config import RLAIFConfig
from macpo.judging import Compare, Grade, RankedPairs
from macpo.methods.program import Program, naive_sft
from macpo.stage import Stage


def plan_rlaif(program: Program, method: RLAIFConfig) -> None:
    """Naive SFT, then T rounds in which only the student learns."""
    naive = naive_sft(program)
    student = naive.student
    name = student.agent.name
    for t in range(1, program.config.rounds + 1):
        when = f"round-{t}"
        one, other = (program.respond(when, student, "student", t, sample=n) for n in (0, 1))
        labels = tuple(
            program.add(_labels(f"{when}/{judge}/labels", policy, one, other, method))
            for judge, policy in naive.teachers.items()
        )
        pairs = program.add(RankedPairs(f"{when}/{name}/pairs", (one, other), labels))
        student = program.contrast(t, student, pairs, naive.student, gamma=0.0)
        program.evaluate(t, {name: student})


def _labels(name: str, judge: Policy, one: Stage, other: Stage, method: RLAIFConfig) -> Stage:
    """Let a teacher judge both answers to every prompt."""
    if method.judging == "grade":
        return Grade(name, judge, (one, other), method.asked, method.grades)
    return Compare(name, judge, one, other, method.asked, method.labels)
