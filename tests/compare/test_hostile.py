"""Names and reasons that others wrote, on everything that a comparison shows: text, and no more.

Labels of methods and settings are names of folders; metrics and policies come from files of runs
and from plugins, reasons from wherever something failed.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from macpo.compare import Comparison, Design, Failure, Results, Row, Saving, render_comparison
from macpo.compare.comparison import write_results
from macpo.compare.figures import draw_figures
from macpo.compare.markdown import write_tables
from macpo.compare.page import write_comparison_report
from tests.compare.files import designed
from tests.compare.test_table import text_of
from tests.report.test_page import Elements

EVIL = (
    "<script>window.evil = 1</script>",
    "\"' onmouseover=window.evil=1 x='",
    "[click](javascript:window.evil=1) ![x](http://evil.example/x.png)",
    "\u202egnp.exe\u2066 \x1b]0;title\x07\x1b[31mred\x1b[2J \x9b31m",
    "[red]red[/red] [/] [bold",
    "=HYPERLINK(evil) | a | b |\n| c |",
    "@SUM(A1)",
    "$\\frac{evil$ {{ 7 * 7 }} `code`",
    "../../evil/" + "W" * 300,
)
DRAWN = EVIL[-2:]
"""What matplotlib or a file's name could stumble over; a figure takes half a second."""

ACTED_ON = set("\x1b\x9b\x07\u202e\u2066")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison in whose results everything is hostile that can be, written out."""
    folder = tmp_path_factory.mktemp("hostile")
    design = designed(folder, seeds=[1, 2])
    rows = [
        Row("default", cell.method, cell.seed, policy, t, evil, 0.1 * cell.seed + t)
        for cell in design.cells[:-1]
        for evil in EVIL
        for policy in ("student", EVIL[0], EVIL[5])
        for t in (0, 1)
    ]
    found = _compared(folder, design, rows)
    write_results(found)
    write_tables(found)
    draw_figures(_compared(folder, design, [row for row in rows if row.metric in DRAWN]))
    write_comparison_report(folder)
    return found


def _compared(folder: Path, design: Design, rows: list[Row]) -> Comparison:
    failure = Failure(design.cells[-1], " ".join(EVIL))
    results = Results(design, rows)
    return Comparison(folder, design, results, design.cells[:-1], (failure,), Saving(3, 5, 5, 9))


def test_page_has_no_element_of_theirs(shown: Comparison) -> None:
    text = (shown.folder / "report.html").read_text(encoding="utf-8")
    page = Elements(text)
    assert "window.evil" in text  # shown, as text
    assert not any("evil" in script for script in page.scripts)
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "base", "form", "img")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:", "http"))
            assert "evil" not in (attributes.get(name) or "")


def test_tables_in_markdown_have_no_mark_of_theirs(shown: Comparison) -> None:
    text = (shown.folder / "tables.md").read_text(encoding="utf-8")
    assert "window.evil" in text
    assert "<script" not in text
    assert "](" not in text
    assert not set(text) & ACTED_ON
    columns = {
        line.replace("\\|", "").count("|") for line in text.split("\n") if line.startswith("|")
    }
    assert columns == {4 + len(EVIL), 4}  # after the last round, and round by round
    kinds = {line[:2] for line in text.split("\n") if line}
    assert kinds == {"# ", "##", "| ", "- "}


def test_table_for_spreadsheets_has_no_formula(shown: Comparison) -> None:
    with (shown.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(shown.results.rows)
    texts = {row[name] for row in table for name in ("policy", "metric")}
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
    assert {text.removeprefix("'") for text in texts} == {"student", *EVIL}
    lines = (shown.folder / "results.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert {json.loads(line)["metric"] for line in lines} == set(EVIL)


def test_terminal_shows_every_character_that_it_does_not_act_on(shown: Comparison) -> None:
    text = text_of(render_comparison(shown, 2000), 2000)
    assert not set(text) & ACTED_ON
    packed = "".join(text.split())
    assert "[red]red[/red][/][bold" in packed
    assert packed.count("window.evil=1") >= 3


def test_figures_take_any_name(shown: Comparison) -> None:
    figures = list((shown.folder / "figures").iterdir())
    assert len(figures) == len(DRAWN)
    assert all(path.suffix == ".png" for path in figures)


def test_metrics_that_would_share_a_file_have_two(tmp_path: Path) -> None:
    design = designed(tmp_path, seeds=[1])
    rows = [
        Row("default", cell.method, 1, "student", 0, name, 0.5)
        for cell in design.cells
        for name in ("mine/a", "mine:a")
    ]
    drawn = draw_figures(_compared(tmp_path, design, rows))
    assert sorted(path.name for path in drawn) == ["mine-a-.png", "mine-a.png"]
