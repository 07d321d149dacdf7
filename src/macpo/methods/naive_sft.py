"""Naive SFT: teachers on ground truth, the student on the first teacher's answers."""

from __future__ import annotations

from macpo.config import NaiveSFTConfig
from macpo.methods.program import Program, naive_sft


def plan_naive_sft(program: Program, method: NaiveSFTConfig) -> None:
    """Lay out the weak-to-strong baseline of Burns et al. 2023 (arXiv 2312.09390), section 3."""
    naive_sft(program)
