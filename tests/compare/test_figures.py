"""Figures are PNG files of what the table shows, and their lines are the means."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from macpo.compare import Comparison, Results, Row, Saving, draw_figures
from macpo.compare.drawing import COLOURS, style
from macpo.compare.figures import _over_rounds
from macpo.estimates import estimate
from tests.compare.files import designed
from tests.compare.test_results import MACPO, METHODS, rows

PNG = b"\x89PNG\r\n\x1a\n"


def compared(folder: Path, **keys: object) -> Comparison:
    design = designed(folder, methods=METHODS, seeds=[1, 2, 3], **keys)
    found = rows()
    if len(design.settings) > 1:
        found = [
            Row(setting, r.method, r.seed, r.policy, r.round, r.metric, r.value)
            for setting in design.settings
            for r in found
        ]
    results = Results(design, found)
    return Comparison(folder, design, results, design.cells, (), Saving(1, 1, 1.0, 1.0))


def test_every_metric_of_the_table_has_a_figure(tmp_path: Path) -> None:
    written = draw_figures(compared(tmp_path))

    assert [path.name for path in written] == [
        "preference_accuracy.png",
        "pgr_preference_accuracy.png",
    ]
    assert all(path.read_bytes().startswith(PNG) for path in written)
    assert "matplotlib.pyplot" not in sys.modules


def test_settings_have_a_panel_each_and_a_figure_of_their_own(tmp_path: Path) -> None:
    settings = {
        "k1": {"sampling.top_k": 1},
        "k2": {},
        "k3": {"sampling.top_k": 3},
        "k4": {"sampling.top_k": 4},
    }
    comparison = compared(tmp_path, settings=settings)
    figure = _over_rounds(comparison, "student", "preference_accuracy")

    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["k1", "k2", "k3", "k4"]
    assert figure.get_supxlabel().startswith("round")
    assert figure.get_supylabel() == "preference accuracy, student"
    assert (tmp_path / "figures" / "preference_accuracy-settings.png") in draw_figures(comparison)


def test_lines_are_the_means_and_bands_the_intervals(tmp_path: Path) -> None:
    panel = _over_rounds(compared(tmp_path), "student", "preference_accuracy").axes[0]

    lines = {line.get_label(): line for line in panel.get_lines()}
    by_round = [estimate([values[t] for values in MACPO.values()]) for t in range(3)]
    assert list(lines["macpo"].get_xdata()) == [0, 1, 2]
    assert list(lines["macpo"].get_ydata()) == pytest.approx([found.mean for found in by_round])
    band = panel.collections[0].get_paths()[0].vertices
    assert max(y for _, y in band) == pytest.approx(
        max(found.mean + (found.half_width or 0) for found in by_round)
    )
    assert list(lines["naive"].get_xdata()) == [0]


def test_figures_of_an_earlier_call_go(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()

    draw_figures(compared(tmp_path))

    assert not (tmp_path / "figures" / "old.png").exists()


def test_twenty_methods_are_told_apart() -> None:
    styles = [style(number) for number in range(20)]

    looks = {(look["color"], look["linestyle"]) for look in styles}
    assert len(looks) == 20
    assert len({look["color"] for look in styles[: len(COLOURS)]}) == len(COLOURS)


def test_perplexities_far_apart_have_a_logarithmic_axis(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    found = [
        Row("default", "macpo", seed, "student", t, name, value)
        for seed in (1, 2, 3)
        for t, value in enumerate((2.0, 60.0))
        for name in ("gold_perplexity", "answer_tokens")
    ]
    apart = replace(comparison, results=Results(comparison.design, found))

    scales = {
        name: _over_rounds(apart, "student", name).axes[0].get_yscale()
        for name in ("gold_perplexity", "answer_tokens")
    }
    assert scales == {"gold_perplexity": "log", "answer_tokens": "linear"}
