"""Drawing: right places, right words, no text that becomes markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from macpo.metrics import metric
from macpo.report.charts import (
    COLOURS,
    Scale,
    colour_of,
    curve_chart,
    filter_chart,
    round_tip,
    share_bar,
    steps_chart,
    ticks,
)
from macpo.report.data import Curve, FilterRound, Point, Series, Spread, TrainingLog
from tests.report.pages import curve

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.44, 0.81, [0.5, 0.6, 0.7, 0.8]),
        (28.0, 73.0, [30, 40, 50, 60, 70]),
        (3.0, 3.0, [3.0]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
    ],
)
def test_ticks_are_round_numbers_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_scale_is_a_straight_line() -> None:
    assert [Scale(0, 10, 100, 0)(v) for v in (0, 5, 10)] == [100, 50, 0]
    assert Scale(1, 1, 0, 10)(1) == 5


def test_student_is_drawn_last_with_its_interval_inside_the_metrics_range() -> None:
    drawn = curve("preference_accuracy", 0.9, 1.0, half=0.2)
    picture = ET.fromstring(curve_chart(drawn, ["student", "weak"], "student"))
    lines = [e for e in picture.iter() if "line" in (e.get("class") or "").split()]
    assert [line.get("class") for line in lines] == ["line c1", "line c0 main"]
    (band,) = [e for e in picture.iter() if (e.get("class") or "").startswith("band")]
    heights = [float(place.split(",")[1]) for place in (band.get("points") or "").split()]
    assert min(heights) >= 0
    assert len(heights) == 4


def test_hovering_over_a_round_tells_everybodys_values() -> None:
    drawn = curve("preference_accuracy", 0.5, 0.625)
    assert round_tip(drawn, 1) == "round 1\nstudent: 62.5 % (± 5.0 %)\nweak: 50.0 %"
    assert round_tip(drawn, 0).startswith("before the first round\n")


def test_single_round_has_a_whisker_for_its_interval() -> None:
    picture = curve_chart(curve("preference_accuracy", 0.5), ["student", "weak"], "student")
    assert 'class="whisker c0"' in picture
    ET.fromstring(picture)


def test_names_with_markup_stay_text() -> None:
    name = "</text><script>x</script>\"'"
    points = (Point(0, 0.5), Point(1, 0.6))
    drawn = Curve(metric(name), (Series(name, points),), of_answers=False)
    spread = Spread(name, 1, 1, (1.0, 2.0, 3.0, 4.0, 5.0), 2.0)
    log = TrainingLog(name, name, 1, (1, 2), {name: (1.0, 2.0)})
    for picture in (
        curve_chart(drawn, [name], name),
        filter_chart(FilterRound(1, name, name, 1, (spread,), ()), (1, 9), [name]),
        share_bar([(name, 1.0, "c0", name)]),
        steps_chart([log], name, "c0"),
    ):
        assert not [e for e in ET.fromstring(picture).iter() if e.tag.endswith("script")]


def test_filter_axis_is_logarithmic_and_shared() -> None:
    spreads = tuple(
        Spread(name, 9, 4, (m / 4, m / 2, m, 2 * m, 4 * m), m)
        for name, m in (("a", 4.0), ("b", 16.0))
    )
    picture = ET.fromstring(
        filter_chart(FilterRound(1, "s", "perplexity", 9, spreads, ()), (1, 64), ["s", "a", "b"])
    )
    medians = [float(e.get("x1") or 0) for e in picture.iter() if e.get("class") == "median"]
    ends = [float(e.get("x1") or 0) for e in picture.iter() if e.get("class") == "stroke"]
    assert medians[1] - medians[0] == pytest.approx(
        ends[1] - ends[0], abs=0.2
    )  # a factor of 4 each


def test_steps_of_stages_follow_one_another() -> None:
    logs = [TrainingLog("t", "s", t, (1, 2), {"loss": (2.0, 1.0)}) for t in (1, 2)]
    picture = ET.fromstring(steps_chart(logs, "loss", "c0"))
    tips = [e.get("data-tip") for e in picture.iter() if e.get("data-tip")]
    assert tips[2] == "round 2, step 1 loss 2"  # XML reads a line break as a space
    places = [float(e.get("cx") or 0) for e in picture.iter() if e.get("data-tip")]
    assert places == sorted(places)
    assert len(set(places)) == 4
    assert steps_chart(logs, "margin", "c0") == ""


def test_colours_come_round_without_the_students() -> None:
    agents = [f"a{i}" for i in range(20)]
    found = [colour_of(agent, agents) for agent in agents]
    assert found[0] == "c0"
    assert found.count("c0") == 1
    assert set(found) == {f"c{i}" for i in range(COLOURS)}
