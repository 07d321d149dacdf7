"""RLCD: contrastive pairs from contrasting prompts (Yang et al. 2023, arXiv 2307.12950).

The student answers once under a prompt for good and once under one for bad behaviour; the first is
chosen, the second rejected, both for the prompt without either. The paper trains a reward model
and then by reinforcement; here DPO on the pairs takes the place of both, as in the other methods.
"""

from __future__ import annotations

from macpo.config import RLCDConfig
from macpo.methods.program import Program, naive_sft
from macpo.positives import DirectPairs


def plan_rlcd(program: Program, method: RLCDConfig) -> None:
    """Naive SFT, then one training on simulated pairs."""
    student = naive_sft(program).student
    name = student.agent.name
    good, bad = (
        program.respond("round-1", student, "student", 1, system=system)
        for system in (method.positive_prompt, method.negative_prompt)
    )
    pairs = program.add(DirectPairs(f"round-1/{name}/pairs", good, bad))
    program.evaluate(1, {name: program.contrast(1, student, pairs, student, gamma=0.0)})
