"""Statistics of evaluations, each against its closed form or brute force."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest

from macpo.evaluation.statistics import (
    LARGEST_LOGIT,
    PRIOR_SD,
    clustered_mean,
    fit_logistic,
    length_controlled,
    length_matched,
    paired_difference,
    paired_wins,
)


def test_error_with_one_observation_a_prompt_is_the_textbook_one() -> None:
    values = [0.0, 1.0, 0.5, 1.0, 1.0]
    found = clustered_mean(values, range(5))
    assert found.mean == pytest.approx(0.7)
    assert found.error == pytest.approx(stdev(values) / math.sqrt(5))
    assert found.count == 5


def test_repeating_every_observation_is_no_new_evidence() -> None:
    values, prompts = [0.0, 1.0, 0.25, 0.75, 1.0], list("abcde")
    once = clustered_mean(values, prompts)
    thrice = clustered_mean(values * 3, prompts * 3)
    assert thrice.mean == pytest.approx(once.mean)
    assert once.error is not None
    assert thrice.error == pytest.approx(once.error)


def test_clustered_error_is_that_of_the_definition() -> None:
    # m = 0.5; sums of deviations: a: 1.0, b: -0.5, c: -0.5; SE^2 = 3/2 * 1.5 / 16
    found = clustered_mean([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c"])
    assert found.error == pytest.approx(math.sqrt(3 / 2 * 1.5 / 16))


def test_one_prompt_has_no_error() -> None:
    assert clustered_mean([1.0, 0.0], ["a", "a"]).error is None


def test_paired_difference_is_over_common_prompts() -> None:
    found = paired_difference({"a": 3.0, "b": 1.0, "c": 9.0}, {"b": 2.0, "a": 1.0, "d": 7.0})
    assert found.mean == pytest.approx(0.5)
    assert found.error == pytest.approx(stdev([2.0, -1.0]) / math.sqrt(2))
    assert found.count == 2


def test_pairing_removes_what_prompts_have_in_common() -> None:
    hard = {str(i): float(i) for i in range(50)}
    better = {prompt: value + 1 for prompt, value in hard.items()}
    found = paired_difference(better, hard)
    assert (found.mean, found.error) == (pytest.approx(1.0), pytest.approx(0.0))


def test_paired_wins_count_ties_half() -> None:
    ours, theirs = {"a": 1.0, "b": 2.0, "c": 0.0}, {"a": 0.0, "b": 2.0, "c": 1.0, "d": 3.0}
    assert paired_wins(ours, theirs) == {"a": 1.0, "b": 0.5, "c": 0.0}


def test_logistic_fit_is_the_maximum_that_a_grid_finds() -> None:
    rng = random.Random(3)
    features = [rng.uniform(-1, 1) for _ in range(40)]
    outcomes = [rng.choice((0.0, 0.5, 1.0)) if x < 0 else 1.0 for x in features]

    def value(theta: float, phi: float) -> float:
        total = -(phi**2) / (2 * PRIOR_SD**2)
        for y, x in zip(outcomes, features, strict=True):
            p = 1 / (1 + math.exp(-(theta + phi * x)))
            total += y * math.log(p) + (1 - y) * math.log(1 - p)
        return total

    theta, phi = fit_logistic(outcomes, features)
    steps = [i / 1000 for i in range(-20, 21)]
    nearby = max((value(theta + a, phi + b), a, b) for a in steps for b in steps)
    assert nearby[1:] == (0.0, 0.0)


def test_without_length_differences_the_controlled_rate_is_the_plain_one() -> None:
    outcomes, prompts = [1.0, 0.0, 1.0, 0.5, 1.0, 1.0], [0, 0, 1, 2, 3, 3]
    found = length_controlled(outcomes, [7.0] * 6, prompts)
    plain = clustered_mean(outcomes, prompts)
    assert found.win_rate == pytest.approx(plain.mean)
    assert found.error == pytest.approx(plain.error)
    assert found.coefficient == 0


def test_a_judge_that_only_counts_words_is_seen_through() -> None:
    """The same quality, one policy longer four times out of five, and the longer answer wins."""
    rng = random.Random(1)
    extra = [rng.gauss(120, 100) for _ in range(400)]
    outcomes = [float(rng.random() < 1 / (1 + math.exp(-d / 60))) for d in extra]
    plain = fmean(outcomes)
    found = length_controlled(outcomes, extra, range(400))
    assert plain > 0.75
    assert found.coefficient > 1
    assert found.error is not None
    assert abs(found.win_rate - 0.5) < 3 * found.error
    assert found.error < 0.1


def test_error_of_the_controlled_rate_is_about_that_of_many_samples() -> None:
    rng = random.Random(5)

    def sample() -> tuple[float, float]:
        extra = [rng.gauss(30, 50) for _ in range(80)]
        outcomes = [float(rng.random() < 1 / (1 + math.exp(-(0.4 + d / 50)))) for d in extra]
        found = length_controlled(outcomes, extra, range(80))
        assert found.error is not None
        return found.win_rate, found.error

    rates, errors = zip(*(sample() for _ in range(150)), strict=True)
    assert fmean(errors) == pytest.approx(stdev(rates), rel=0.25)


@pytest.mark.parametrize(("outcome", "rate"), [(1.0, 1.0), (0.0, 0.0)])
def test_certain_outcomes_have_finite_fits(outcome: float, rate: float) -> None:
    found = length_controlled([outcome] * 5, [1.0, -3.0, 2.0, 0.0, 5.0], range(5))
    assert found.win_rate == pytest.approx(rate, abs=1e-6)
    assert math.isfinite(found.coefficient)
    assert LARGEST_LOGIT == 20


def test_matched_rate_is_of_pairs_of_similar_length() -> None:
    outcomes, lengths = [1.0, 0.0, 1.0, 0.0], [(100, 125), (100, 126), (0, 0), (50, 10)]
    found = length_matched(outcomes, lengths, range(4))
    assert found is not None
    assert (found.mean, found.count) == (1.0, 2)
    assert length_matched([1.0], [(1, 9)], [0]) is None
