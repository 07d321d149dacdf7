"""Means, intervals and PGR against numbers worked by hand and from tables."""

from __future__ import annotations

import math

import pytest

from macpo.compare.stats import performance_gap_recovered
from macpo.estimates import (
    Estimate,
    clustered,
    estimate,
    paired_difference,
    quantile,
    share_bound,
    student_t_quantile,
)

TABLE = {
    1: 12.706205,
    2: 4.302653,
    3: 3.182446,
    4: 2.776445,
    5: 2.570582,
    6: 2.446912,
    9: 2.262157,
    10: 2.228139,
    29: 2.045230,
    30: 2.042272,
    120: 1.979930,
}
"""The 97.5 % quantile of Student's t as printed tables have it, by degrees of freedom."""


def test_quantiles_are_read_off_a_straight_line() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([7.0], 0.95) == 7.0


@pytest.mark.parametrize("freedom", TABLE)
def test_quantile_is_that_of_the_tables(freedom: int) -> None:
    assert student_t_quantile(freedom) == pytest.approx(TABLE[freedom], abs=1e-6)


def test_quantile_has_a_closed_form_at_one_and_two_degrees_of_freedom() -> None:
    # Cauchy: tan(pi * 0.475). At two: 2 (p - 1/2) sqrt(2 / (4 p (1 - p))), p = 0.975.
    assert student_t_quantile(1) == pytest.approx(math.tan(math.pi * 0.475), abs=1e-9)
    assert student_t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / 0.0975), abs=1e-9)


def test_quantile_nears_the_normal_ones() -> None:
    assert student_t_quantile(20_000) == pytest.approx(1.959964, abs=2e-4)


def test_estimate_of_three_seeds() -> None:
    # Mean 2, deviations -1, 0, 1, variance 2 / 2 = 1: half-width 4.302653 / sqrt(3).
    found = estimate([1.0, 2.0, 3.0])

    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert not found.excludes_zero
    assert found.to_json()["interval"] == pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    found = estimate([0.5])

    assert found == Estimate(0.5, None, 1)
    assert not found.excludes_zero
    assert found.to_json()["interval"] is None


def test_no_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_pairing_finds_a_difference_that_the_means_hide() -> None:
    # Seeds differ by 0.1 to 0.2, the methods by 0.02 in each of them, give or take 0.001.
    ours, theirs = [0.52, 0.621, 0.819], [0.5, 0.6, 0.8]

    difference = paired_difference(ours, theirs)

    assert difference.mean == pytest.approx(0.02)
    assert difference.half_width == pytest.approx(4.302653 * 0.001 / math.sqrt(3), abs=1e-6)
    assert difference.excludes_zero
    apart = estimate(ours)
    assert apart.half_width is not None
    assert apart.half_width > 0.3


def test_equal_values_do_not_differ() -> None:
    assert paired_difference([0.1, 0.7], [0.1, 0.7]) == Estimate(0.0, 0.0, 2)
    assert not paired_difference([0.1, 0.7], [0.1, 0.7]).excludes_zero


def test_pairs_need_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("student", "teacher", "ceiling", "recovered"),
    [(0.6, 0.5, 0.7, 0.5), (0.5, 0.5, 0.7, 0.0), (0.8, 0.5, 0.7, 1.5), (0.4, 0.5, 0.7, -0.5)],
)
def test_gap_recovered(student: float, teacher: float, ceiling: float, recovered: float) -> None:
    assert performance_gap_recovered(student, teacher, ceiling) == pytest.approx(recovered)


def test_gap_of_a_metric_that_is_better_when_lower() -> None:
    # Teacher 40, ceiling 20, student 25: 15 of 20 are recovered.
    recovered = performance_gap_recovered(25, 40, 20, higher_is_better=False)

    assert recovered == pytest.approx(0.75)


@pytest.mark.parametrize(("ceiling", "higher"), [(0.5, True), (0.4, True), (0.6, False)])
def test_no_gap_has_no_recovered_share(ceiling: float, higher: bool) -> None:
    assert performance_gap_recovered(0.6, 0.5, ceiling, higher_is_better=higher) is None


def test_clusters_of_one_give_the_ordinary_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    found = clustered({str(i): [v] for i, v in enumerate(values)})
    assert found.mean == estimate(values).mean
    assert found.half_width == pytest.approx(estimate(values).half_width)


def test_values_that_belong_together_count_as_one() -> None:
    # Residuals -1/2 and 1/2, twice each: sums -1 and 1; 2/1 * (1 + 1) / 16 = 1/4, t(1) = 12.706.
    found = clustered({"a": [0.0, 0.0], "b": [1.0, 1.0]})
    assert found == Estimate(0.5, pytest.approx(12.706205 / 2), 2)
    assert clustered({"a": [0.0, 1.0]}) == Estimate(0.5, None, 1)
    with pytest.raises(ValueError, match="no values"):
        clustered({})


def test_no_share_varies_more_than_its_bound() -> None:
    # 30 of 40: sqrt(3/4 * 1/4 / 40) = 0.06847, and t(39) = 2.0227.
    assert share_bound(0.75, 40) == pytest.approx(0.06847 * 2.0227, rel=1e-3)
    assert share_bound(1.0, 40) == 0
