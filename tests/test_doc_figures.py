"""The figures of the documentation are drawn out of numbers that the log of results has."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from macpo.metrics import is_registered

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
NAMES = ("main", "ablations", "twelve-rounds", "references", "recipe", "front", "drift")
LARGEST = 150_000  # bytes


@pytest.fixture(scope="module")
def draw() -> Any:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("draw_doc_figures", FOLDER / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_figures_are_there_and_small(draw: Any) -> None:
    assert tuple(draw.FIGURES) == NAMES
    for name in NAMES:
        assert (FOLDER / f"{name}.svg").read_text().count("<svg ") == 1
        assert (FOLDER / f"{name}.svg").stat().st_size < LARGEST


def test_equal_numbers_draw_equal_files(
    draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {path.name: path.read_bytes() for path in draw.draw(tmp_path)}
    twice = ("main", "front")  # every kind of mark that there is
    monkeypatch.setattr(draw, "FIGURES", {name: draw.FIGURES[name] for name in twice})
    again = {path.name: path.read_bytes() for path in draw.draw(tmp_path)}

    assert set(first) == {f"{name}.svg" for name in NAMES}
    assert again == {f"{name}.svg": first[f"{name}.svg"] for name in twice}


def test_lines_are_the_numbers(draw: Any) -> None:
    numbers = draw.read_numbers(FOLDER / "references.csv")
    panel = draw.references_figure(numbers).axes[1]

    drawn = {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}
    expected = [n.mean for n in numbers if (n.method, n.metric) == ("initial, 3", "oracle_score")]
    assert len(expected) == 10
    assert drawn["gamma 3"] == expected


@pytest.mark.parametrize("name", NAMES)
def test_numbers_occur_in_the_log(draw: Any, name: str) -> None:
    log = (FOLDER.parent / "results-log.md").read_text(encoding="utf-8")
    written = set(re.findall(r"[\d.]+", log.replace(",", "")))
    for number in draw.read_numbers(FOLDER / f"{name}.csv"):
        assert is_registered(number.metric)
        assert not number.against or number.against == "MACPO"
    for line in (FOLDER / f"{name}.csv").read_text().splitlines()[1:]:
        for value in filter(None, line.split(",")[-2:]):
            forms = {value, value.lstrip("-").replace("0.", ".", 1), f"{100 * float(value):g}"}
            forms |= {f"{abs(float(value)):.2f}".lstrip("0"), f"{abs(float(value)):.1f}"}
            assert forms & written, line
