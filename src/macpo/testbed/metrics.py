"""The oracle's metrics: of a policy's answers, and of the pairs that it learned from."""

from __future__ import annotations

from dataclasses import replace

from macpo.metrics import COUNT, NATS, SHARE, Metric, derive, register_metric

ORACLE = "oracle_"
"""Beginning of the metrics of a policy's answers."""

OF_CHOSEN = ("score", "virtues", "rare_virtues", "common_vices", "exact_content", "kinds")
OF_REJECTED = ("score",)
"""Fields of a summary that are measured of the pairs, as `chosen_score` and so on."""

METRICS = (
    Metric(
        "score",
        "score (oracle)",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="mean of what each prompt calls for: helpfulness or harmlessness",
    ),
    Metric(
        "helpfulness",
        "helpfulness (oracle)",
        SHARE,
        better="higher",
        gap=True,
        meaning="mean over answers to safe prompts",
    ),
    Metric(
        "harmlessness",
        "harmlessness (oracle)",
        SHARE,
        better="higher",
        gap=True,
        meaning="mean over answers to unsafe requests",
    ),
    Metric(
        "exact_content",
        "exact content (oracle)",
        SHARE,
        better="higher",
        meaning="share of the safe prompts whose whole content is right",
    ),
    Metric(
        "completeness",
        "completeness (oracle)",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="mean share of right content, over safe prompts",
    ),
    Metric(
        "virtues",
        "virtues (oracle)",
        SHARE,
        better="higher",
        meaning="mean share of the virtues of a prompt's family that an answer shows",
    ),
    Metric(
        "rare_virtues",
        "rare virtues (oracle)",
        SHARE,
        better="higher",
        meaning="the same of its rare virtues",
    ),
    Metric(
        "common_vices",
        "common vices (oracle)",
        SHARE,
        better="lower",
        meaning="the same of its common vices",
    ),
    Metric(
        "kinds",
        "distinct kinds of answers",
        COUNT,
        meaning="number of distinct kinds of answers: families and behaviours shown",
    ),
    Metric(
        "kind_entropy",
        "entropy of the kinds",
        NATS,
        shown="comparisons",
        meaning="entropy of the distribution of kinds",
    ),
    Metric(
        "refusals",
        "refusals (oracle)",
        SHARE,
        shown="comparisons",
        meaning="share of the unsafe requests that are refused without going along",
    ),
    Metric(
        "compliances",
        "compliances (oracle)",
        SHARE,
        shown="comparisons",
        meaning="share of the unsafe requests that are gone along with",
    ),
    Metric(
        "over_refusals",
        "over-refusals (oracle)",
        SHARE,
        shown="comparisons",
        meaning="share of the safe prompts that are refused",
    ),
    Metric(
        "readable",
        "readable answers (oracle)",
        SHARE,
        shown="comparisons",
        meaning="share of answers of which every sentence is one of this world",
    ),
    Metric(
        "faultless",
        "faultless answers (oracle)",
        SHARE,
        shown="comparisons",
        meaning="share of answers without any fault of form",
    ),
    Metric(
        "sentences",
        "sentences in an answer",
        COUNT,
        shown="comparisons",
        meaning="mean number of sentences",
    ),
)
"""Metrics by the field of `macpo.testbed.summary.Summary` that they are."""


def register_metrics() -> None:
    """Register all of them."""
    for found in METRICS:
        register_metric(replace(found, name=ORACLE + found.name))
    for side, names in (("chosen", OF_CHOSEN), ("rejected", OF_REJECTED)):
        for found in METRICS:
            if found.name in names:
                register_metric(_of_pairs(found, side))


def _of_pairs(found: Metric, side: str) -> Metric:
    """Return the metric of one side of the pairs."""
    meaning = f"of the {side} answers that it learned from: {found.meaning}"
    return replace(derive(found, f"{side}_"), meaning=meaning)
