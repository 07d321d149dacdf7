"""What of a performance gap is recovered; means and intervals are those of `macpo.estimates`."""

from __future__ import annotations


def performance_gap_recovered(
    student: float, teacher: float, ceiling: float, *, higher_is_better: bool = True
) -> float | None:
    """Return PGR = (student - teacher) / (ceiling - teacher), arXiv 2312.09390 section 3.

    0 is a student as good as its weak teacher, 1 one as good as with ground truth; it may lie
    outside of these.

    Returns:
        None when the ceiling is no better than the teacher: there is no gap to recover.
    """
    gap = ceiling - teacher if higher_is_better else teacher - ceiling
    if gap <= 0:
        return None
    return (student - teacher) / (ceiling - teacher)
