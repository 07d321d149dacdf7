"""Naive SFT: teachers on ground truth, the student on the first teacher's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class NaiveSFT(Method):
    """The student learns the weak labels by SFT, and that is all.

    The weak-to-strong baseline of Burns et al. 2023 (arXiv 2312.09390), section 3.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "dpo", "negative_sft"})

    name: Literal["naive-sft"] = "naive-sft"

    def lay_out(self, program: Program) -> None:
        """Lay out round 0, with which the other methods begin."""
        program.naive_sft()
