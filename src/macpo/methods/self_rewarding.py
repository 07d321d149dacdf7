"""Self-rewarding language models (Yuan et al. 2024, arXiv 2401.10020, section 2).

In every round the student answers each prompt several times, judges its own answers in words
(LLM-as-a-judge), and learns the best against the worst by DPO, the policy before the round as
reference. Its beginning is Naive SFT: no ground truth, and no data to train the judging on.
"""

from __future__ import annotations

from macpo.config import SelfRewardingConfig
from macpo.judging import Grade, RankedPairs
from macpo.methods.program import Program, naive_sft


def plan_self_rewarding(program: Program, method: SelfRewardingConfig) -> None:
    """Naive SFT, then T rounds in which only the student learns."""
    initial = student = naive_sft(program).student
    name = student.agent.name
    for t in range(1, program.config.rounds + 1):
        when = f"round-{t}"
        candidates = tuple(
            program.respond(when, student, "student", t, sample=n) for n in range(method.candidates)
        )
        grades = program.add(
            Grade(f"{when}/{name}/grades", student, candidates, method.question, method.grades)
        )
        pairs = program.add(RankedPairs(f"{when}/{name}/pairs", candidates, (grades,)))
        student = program.contrast(t, student, pairs, initial, gamma=0.0)
        program.evaluate(t, {name: student})
