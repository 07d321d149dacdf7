"""Means, errors and win rates over answers, as pure functions of plain numbers.

Standard errors are clustered by prompt: what was observed on one prompt (both orders of a pair, for
example) counts as one piece of evidence. With mean m of n observations, of which those on prompt g
are x_gi, over G prompts:

    SE^2 = G / (G - 1) * sum_g (sum_i (x_gi - m))^2 / n^2

which is the usual s^2 / n where each prompt has one observation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

LARGEST_LOGIT = 20.0
"""Win rates of 0 and 1 have infinite logits; exp(-20) is a win rate of 2e-9."""

PRIOR_SD = 2.5
"""Of the length coefficient: weak, and enough to keep it finite where length explains all."""

MATCHED = 1.25
"""Lengths are matched when neither answer is longer than the other by more than this factor."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its standard error (None where one prompt or none is behind it), and how many."""

    mean: float
    error: float | None
    count: int


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of values, with its standard error clustered; see the module.

    Args:
        values: at least one.
        clusters: what each value was observed on, such as its prompt.
    """
    mean = fmean(values)
    sums: defaultdict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    return Estimate(mean, _clustered_error(list(sums.values()), len(values)), len(values))


def paired_difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Estimate:
    """Return the mean difference of two policies' numbers on the prompts that both have.

    Args:
        ours: by prompt.
        theirs: likewise; at least one prompt is in both.
    """
    common = [prompt for prompt in ours if prompt in theirs]
    return clustered_mean([ours[p] - theirs[p] for p in common], common)


def paired_wins(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Return, by prompt that both have, 1 where ours is greater, 0 where not, 0.5 for a tie."""
    return {
        prompt: 0.5 * (1 + (ours[prompt] > theirs[prompt]) - (ours[prompt] < theirs[prompt]))
        for prompt in ours
        if prompt in theirs
    }


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A win rate at equal lengths, and what length is worth.

    Attributes:
        win_rate: as the fit has it for answers of equal length.
        error: its standard error, clustered; None where one prompt or none is behind it.
        coefficient: of length, in logits a unit of tanh(difference / its standard deviation):
            above 0 where longer answers win more often.
    """

    win_rate: float
    error: float | None
    coefficient: float


def length_controlled(
    outcomes: Sequence[float], extra_lengths: Sequence[float], clusters: Sequence[Hashable]
) -> LengthControlled:
    """Return a length-controlled win rate, after AlpacaEval 2 (arXiv 2404.04475).

    The fit is logit P(win) = theta + phi * tanh(d / sd(d)), d the extra length of our answer, and
    the win rate is that at d = 0: sigmoid(theta). AlpacaEval's model has a term for the difficulty
    of each instruction as well, which needs many models' answers; ours has none. phi has a normal
    prior with standard deviation 2.5.

    Args:
        outcomes: 1 for a win of ours, 0 for a loss, 0.5 for a tie, or anything between.
        extra_lengths: by how much our answer is longer, in any unit.
        clusters: what each was observed on, such as its prompt.
    """
    spread = pstdev(extra_lengths)
    features = [math.tanh(d / spread) if spread else 0.0 for d in extra_lengths]
    theta, phi = fit_logistic(outcomes, features)
    rate = _sigmoid(theta)
    # The sandwich: scores of each cluster between the inverses of the curvature.
    a = b = c = 0.0
    scores: defaultdict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for outcome, x, cluster in zip(outcomes, features, clusters, strict=True):
        p = _sigmoid(theta + phi * x)
        weight = p * (1 - p)
        a, b, c = a + weight, b + weight * x, c + weight * x * x
        scores[cluster][0] += outcome - p
        scores[cluster][1] += (outcome - p) * x
    c += 1 / PRIOR_SD**2
    determinant = a * c - b * b
    if determinant <= 0:
        return LengthControlled(rate, None, phi)
    pulls = [(c * s - b * t) / determinant for s, t in scores.values()]  # each cluster's on theta
    error = _clustered_error(pulls, 1)
    return LengthControlled(rate, None if error is None else rate * (1 - rate) * error, phi)


def fit_logistic(outcomes: Sequence[float], features: Sequence[float]) -> tuple[float, float]:
    """Return (theta, phi) of the likeliest sigmoid(theta + phi x), phi's prior included.

    By Newton's method with halved steps; the function is concave. theta is kept within
    +-LARGEST_LOGIT.

    Args:
        outcomes: between 0 and 1.
        features: x of each.
    """

    def value(theta: float, phi: float) -> float:
        total = -(phi**2) / (2 * PRIOR_SD**2)
        for y, x in zip(outcomes, features, strict=True):
            z = theta + phi * x
            total += y * z - (max(z, 0.0) + math.log1p(math.exp(-abs(z))))
        return total

    theta = phi = 0.0
    best = value(theta, phi)
    for _ in range(200):
        g, h, a, b, c = 0.0, -phi / PRIOR_SD**2, 0.0, 0.0, 1 / PRIOR_SD**2
        for y, x in zip(outcomes, features, strict=True):
            p = _sigmoid(theta + phi * x)
            weight = p * (1 - p)
            g, h = g + y - p, h + (y - p) * x
            a, b, c = a + weight, b + weight * x, c + weight * x * x
        a += 1e-12  # where every outcome is certain the curvature in theta is gone
        determinant = a * c - b * b
        step = ((c * g - b * h) / determinant, (a * h - b * g) / determinant)
        scale = 1.0
        while scale > 1e-6:
            tried = (
                max(-LARGEST_LOGIT, min(LARGEST_LOGIT, theta + scale * step[0])),
                phi + scale * step[1],
            )
            if (gained := value(*tried)) > best:
                break
            scale /= 2
        else:
            return theta, phi
        theta, phi = tried
        if gained - best < 1e-13 * max(1.0, abs(best)):
            return theta, phi
        best = gained
    return theta, phi


def length_matched(
    outcomes: Sequence[float],
    lengths: Sequence[tuple[int, int]],
    clusters: Sequence[Hashable],
) -> Estimate | None:
    """Return the win rate among pairs of similar length (within MATCHED); None without any.

    Args:
        outcomes: as in `length_controlled`.
        lengths: of both answers.
        clusters: as there.
    """
    similar = [
        (outcome, cluster)
        for outcome, (a, b), cluster in zip(outcomes, lengths, clusters, strict=True)
        if max(a, b) <= MATCHED * min(a, b)
    ]
    if not similar:
        return None
    return clustered_mean([o for o, _ in similar], [c for _, c in similar])


def _clustered_error(sums: Sequence[float], count: int) -> float | None:
    groups = len(sums)
    if groups < 2:
        return None
    return math.sqrt(groups / (groups - 1) * sum(s * s for s in sums)) / count


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
