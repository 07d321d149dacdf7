"""Agreement: examples that were worked by hand in the literature, and a library as the oracle."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo.annotation.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha

FOUR_OBSERVERS = (
    "1  2  3  3  2  1  4  1  2  .  .  .",
    "1  2  3  3  2  2  4  1  2  5  .  3",
    ".  3  3  3  2  3  4  2  2  5  1  .",
    "1  2  3  3  2  4  4  1  2  5  1  .",
)
"""Krippendorff (2011), "Computing Krippendorff's alpha-reliability", part C: nominal .743."""

FOURTEEN_RATERS = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)
"""Ten subjects, five categories: the worked example of Wikipedia's page on Fleiss' kappa, .210."""


def units(rows: tuple[str, ...]) -> list[list[str]]:
    columns = zip(*(row.split() for row in rows), strict=True)
    return [[label for label in column if label != "."] for column in columns]


def test_alpha_of_krippendorffs_own_example_with_missing_labels() -> None:
    assert krippendorff_alpha(units(FOUR_OBSERVERS)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_by_hand() -> None:
    """Two people, three pairs: agree on a, agree on b, differ.

    Labels: 3 a, 3 b, n = 6. Observed: 4 - 2 = 2 over 1 in the one item that differs, so 2. Expected
    36 - 18 = 18 over n - 1 = 5: alpha = 1 - 5 * 2 / 18 = 4 / 9.
    """
    assert krippendorff_alpha(["aa", "bb", "ab"]) == pytest.approx(4 / 9)


def test_cohens_kappa_by_hand() -> None:
    """50 proposals: 20 both yes, 15 both no, 5 and 10 apart; p_o = .7, p_e = .5: kappa = .4."""
    items = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(items) == pytest.approx(0.4)


def test_fleiss_kappa_of_fourteen_raters() -> None:
    items = [
        [str(c) for c, count in enumerate(row) for _ in range(count)] for row in FOURTEEN_RATERS
    ]
    assert fleiss_kappa(items) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_by_hand() -> None:
    """aab and bbb: P = (1/3 + 1) / 2, P_e = (1/3)^2 + (2/3)^2 = 5/9; (2/3 - 5/9) / (4/9) = 1/4."""
    assert fleiss_kappa(["aab", "bbb"]) == pytest.approx(1 / 4)


def test_full_agreement_is_one_and_full_opposition_below_zero() -> None:
    agreed = [("a", "a"), ("b", "b"), ("c", "c")]
    opposed = [("a", "b"), ("b", "a")]
    for measure in (krippendorff_alpha, fleiss_kappa, cohen_kappa):
        assert measure(agreed) == pytest.approx(1.0)  # type: ignore[operator]
        assert measure(opposed) < 0  # type: ignore[operator]


def test_where_chance_leaves_nothing_to_disagree_on_there_is_no_number() -> None:
    for measure in (krippendorff_alpha, fleiss_kappa, cohen_kappa):
        assert measure([]) is None  # type: ignore[operator]
        assert measure([("a", "a"), ("a", "a")]) is None  # type: ignore[operator]
    assert krippendorff_alpha(["a", "b"]) is None


def test_fleiss_kappa_refuses_items_with_other_numbers_of_labels() -> None:
    with pytest.raises(ValueError, match=r"items with \[2, 3\] labels"):
        fleiss_kappa(["ab", "abb"])
    with pytest.raises(ValueError, match=r"two at least"):
        fleiss_kappa(["a", "b"])


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=0, max_size=4), min_size=1, max_size=12))
def test_alpha_is_the_librarys(items: list[list[str]]) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    ours = krippendorff_alpha(items)
    if ours is None:
        return
    counts = [[labels.count(c) for c in "abc"] for labels in items]
    theirs = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
    assert ours == pytest.approx(float(theirs))


def test_of_many_raters_alpha_and_fleiss_kappa_meet() -> None:
    """They differ by the correction for small numbers: alpha = 1 - (1 - kappa) (n - 1) / n."""
    draw = random.Random(0)
    items = [[draw.choice("abc") for _ in range(5)] for _ in range(40)]
    kappa, alpha = fleiss_kappa(items), krippendorff_alpha(items)
    assert kappa is not None
    assert alpha is not None
    n = 200
    assert math.isclose(1 - alpha, (1 - kappa) * (n - 1) / n)
