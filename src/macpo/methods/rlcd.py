"""RLCD: contrastive pairs from contrasting prompts (Yang et al. 2023, arXiv 2307.12950).

The student answers once under a prompt for good and once under one for bad behaviour; the first is
chosen, the second rejected, both for the prompt without either. The paper trains a reward model
and then by reinforcement; here DPO on the pairs takes the place of both, as in the other methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from macpo.config.values import Text
from macpo.methods.method import Method, register_method
from macpo.methods.wording import BAD_BEHAVIOUR, GOOD_BEHAVIOUR

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class RLCD(Method):
    """RLCD (arXiv 2307.12950): pairs from two prompts, one for good and one for bad behaviour."""

    unused: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "negative_sft", "dpo.gamma", "dpo.start"}
    )

    name: Literal["rlcd"] = "rlcd"
    positive_prompt: Text = GOOD_BEHAVIOUR
    negative_prompt: Text = BAD_BEHAVIOUR

    def lay_out(self, program: Program) -> None:
        """Naive SFT, then one training on simulated pairs."""
        student = program.naive_sft().student
        name = student.agent.name
        good, bad = (
            program.respond("round-1", student, "student", 1, system=system)
            for system in (self.positive_prompt, self.negative_prompt)
        )
        pairs = program.pair(1, name, good, bad)
        program.evaluate(1, {name: program.contrast(1, student, pairs, student, gamma=0.0)})
