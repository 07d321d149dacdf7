"""What is known of metrics, and that it is known of all that the code writes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from macpo.config import load_config
from macpo.errors import ConfigError
from macpo.metrics import (
    METRICS,
    Metric,
    in_order,
    is_registered,
    metric,
    register_metric,
    registered,
)
from macpo.run_directory import MetricRow
from macpo.runner import run
from tests.runs import write_config
from tests.test_resume import Quiet


def assert_known(rows: list[MetricRow]) -> None:
    """Check that every metric is registered, and every value one that it can have."""
    assert [row.metric for row in rows if not is_registered(row.metric)] == []
    for row in rows:
        low, high = metric(row.metric).range
        assert low <= row.value <= high, row


def test_metrics_of_a_run_are_registered(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1"])

    rows = run(config, tmp_path / "run", Quiet()).metrics

    assert_known(rows)
    assert {row.metric for row in rows} == {
        *("preference_accuracy", "gold_perplexity"),
        *("answer_tokens", "answers_finished", "answer_repetition", "answer_copying"),
        *("distinct_1", "distinct_2", "compression_ratio"),
        *("pair_likeness", "longer_chosen"),
        *("train_loss", "train_margin", "train_chosen_logratio", "train_rejected_logratio"),
    }


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("preference_accuracy", 0.625, "62.5 %"),
        ("oracle_helpfulness", 1.0, "100.0 %"),
        ("answer_tokens", 31.26, "31.3"),
        ("gold_perplexity", 12.3456, "12.35"),
        ("gold_perplexity", 2178000.0, "2.178e+06"),
        ("oracle_kinds", 110, "110"),
        ("train_loss", 0.123456, "0.1235"),
        ("pgr_preference_accuracy", -0.6912, "-0.6912"),
        ("chosen_virtues", 0.5, "50.0 %"),
    ],
)
def test_values_are_written_in_the_units_of_their_metric(
    name: str, value: float, written: str
) -> None:
    assert metric(name).format(value) == written


def test_prefixes_derive_from_the_metric_that_is_named_after_them() -> None:
    gap, hidden = metric("pgr_preference_accuracy"), metric("pgr_oracle_kinds")
    assert (gap.title, gap.unit, gap.better) == ("PGR of preference accuracy", "number", "higher")
    assert (gap.shown, hidden.shown) == ("comparisons", "named")
    assert gap.range == (-math.inf, math.inf)

    training = metric("train_gold_perplexity")
    assert (training.title, training.unit) == ("gold perplexity in training", "perplexity")
    assert (training.better, training.shown) == ("neither", "named")
    assert metric("rejected_answer_tokens").title == "tokens in an answer of rejected answers"


def test_metric_of_its_own_name_is_no_derived_one() -> None:
    assert metric("train_loss").title == "training loss"
    assert metric("chosen_score").unit == "share"


def test_metric_that_nobody_registered_is_told_from_its_name() -> None:
    found = metric("my_own_score")

    assert (found.title, found.unit, found.better) == ("my own score", "number", "neither")
    assert found.shown == "everywhere"
    assert found.format(0.5) == "0.5"
    assert not is_registered("my_own_score")
    assert not is_registered("train_my_own_score")
    assert metric("pgr_my_own_score").title == "PGR of my own score"


def test_order_is_that_of_registration_then_as_given() -> None:
    asked = ["zeal", "oracle_kinds", "answer_tokens", "ardour", "preference_accuracy", "zeal"]

    assert [found.name for found in in_order(asked)] == [
        *("preference_accuracy", "answer_tokens", "oracle_kinds"),
        *("zeal", "ardour"),
    ]


def test_metric_can_be_registered_once(request: pytest.FixtureRequest) -> None:
    mine = Metric("politeness", "politeness", "share", better="higher")
    register_metric(mine)
    request.addfinalizer(lambda: METRICS.unregister("politeness"))
    register_metric(mine)

    assert metric("politeness") is mine
    assert registered()[-1] is mine
    with pytest.raises(
        ConfigError, match=r"metric 'politeness' is registered twice, by Metric\(name"
    ):
        register_metric(Metric("politeness", "rudeness", "share", better="lower"))


def test_metric_with_an_unknown_side_is_refused() -> None:
    with pytest.raises(ValueError, match="metric x: better is 'bigger'; write one of higher, low"):
        Metric("x", "x", better="bigger")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric x: shown is 'never'; write one of everywhere"):
        Metric("x", "x", shown="never")  # type: ignore[arg-type]


def test_registered_metrics_say_what_they_mean() -> None:
    assert [found.name for found in registered() if not found.meaning] == []
    titles = [found.title for found in registered()]
    assert len(set(titles)) == len(titles)


def test_documentation_lists_the_registered_metrics() -> None:
    page = Path(__file__).parents[1] / "docs" / "compare.md"
    section = (
        page.read_text(encoding="utf-8").partition("## The metrics\n")[2].partition("\n## ")[0]
    )
    sides = ("chosen_", "rejected_")
    rows = [
        f"| `{m.name}` | {m.unit} | {'' if m.better == 'neither' else m.better} | {m.meaning} |"
        for m in registered()
        if not m.name.startswith(sides)
    ]

    listed = [line for line in section.splitlines() if line.startswith("| `")]
    assert listed[: len(rows)] == rows
    assert [line.split("`")[1] for line in listed[len(rows) :]] == [
        *("chosen_METRIC", "rejected_METRIC", "pgr_METRIC"),
    ]
    for side in sides:
        last = next(line for line in listed if line.startswith(f"| `{side}"))
        names = [m.name for m in registered() if m.name.startswith(side)]
        assert re.findall(rf"`({side}[a-z_]+)`", last) == names
