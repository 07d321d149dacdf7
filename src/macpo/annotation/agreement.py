"""How far people agree: Krippendorff's alpha, Cohen's kappa and Fleiss' kappa for plain labels.

Each is 1 - observed disagreement / disagreement expected by chance: 1 is full agreement, 0 what
chance gives, below 0 less than that. They differ in what chance means and in whom they can compare:

    alpha           any number of people, each label may be missing
    Cohen's kappa   two people, on what both judged; chance by each one's own habits
    Fleiss' kappa   the same number of people on every item, not necessarily the same ones

Labels are nominal: a tie is as far from a win as from a loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def krippendorff_alpha(items: Sequence[Sequence[str]]) -> float | None:
    """Return Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability", nominal).

        alpha = 1 - (n - 1) * sum_u (m_u^2 - sum_c n_uc^2) / (m_u - 1) / (n^2 - sum_c n_c^2)

    over items u with m_u > 1 labels, n_uc of them c; n and n_c count all labels of these items.

    Args:
        items: the labels that each item got, in any order; what was not judged is left out.

    Returns:
        None when no item has two labels, or all labels are the same: nothing is to be expected.
    """
    paired = [Counter(labels) for labels in items if len(labels) > 1]
    totals = sum(paired, Counter[str]())
    n = totals.total()
    expected = n * n - _squares(totals)
    if not expected:
        return None
    observed = sum((c.total() ** 2 - _squares(c)) / (c.total() - 1) for c in paired)
    return 1 - (n - 1) * observed / expected


def cohen_kappa(items: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa (1960): (p_o - p_e) / (1 - p_e).

    Args:
        items: the labels of the one and of the other, for each item that both judged.

    Returns:
        None when there is no item, or both always said one and the same.
    """
    n = len(items)
    ones, others = Counter(a for a, _ in items), Counter(b for _, b in items)
    # In whole numbers, so that full agreement by chance is known exactly.
    by_chance = sum(count * others[label] for label, count in ones.items())
    if by_chance == n * n:
        return None
    agreed = sum(a == b for a, b in items)
    return (n * agreed - by_chance) / (n * n - by_chance)


def fleiss_kappa(items: Sequence[Sequence[str]]) -> float | None:
    """Return Fleiss' kappa (1971): (P - P_e) / (1 - P_e).

    Args:
        items: the labels that each item got, as many for each, two at least.

    Returns:
        None when there is no item, or all labels are the same.

    Raises:
        ValueError: items have different numbers of labels, or only one.
    """
    sizes = {len(labels) for labels in items}
    if not sizes:
        return None
    if len(sizes) > 1 or min(sizes) < 2:
        raise ValueError(f"items with {sorted(sizes)} labels; each needs as many, two at least")
    (m,) = sizes
    n = len(items) * m
    counts = [Counter(labels) for labels in items]
    expected = _squares(sum(counts, Counter[str]()))
    if expected == n * n:
        return None
    agreed = sum(_squares(count) - m for count in counts) / (n * (m - 1))
    return (agreed - expected / n**2) / (1 - expected / n**2)


def _squares(counts: Counter[str]) -> int:
    return sum(count * count for count in counts.values())
