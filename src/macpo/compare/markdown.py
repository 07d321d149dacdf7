"""A comparison's tables as Markdown, to be read beside the figures and pasted into a report.

The student and the teachers' mean after each method's last round, and every metric round by round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from macpo.agents import STUDENT
from macpo.compare.comparison import Comparison
from macpo.compare.design import TEACHERS
from macpo.compare.table import cell_text, legend_lines, note_lines, saving_lines
from macpo.metrics import metric
from macpo.report.text import plain_line
from macpo.store import write_text_atomic
from macpo.words import in_markdown

TABLES_FILE = "tables.md"


def write_tables(comparison: Comparison) -> Path:
    """Write tables.md into the comparison's folder; returns its path.

    Raises:
        StoreError: it cannot be written.
    """
    path = comparison.folder / TABLES_FILE
    text = "\n".join(markdown_lines(comparison)) + "\n"
    write_text_atomic(path, text, durable=True)
    return path


def markdown_lines(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of tables.md."""
    yield f"# {comparison.design.name}"
    for policy in (STUDENT, TEACHERS):
        metrics = comparison.results.metrics(policy)
        if not metrics:
            continue
        yield from ("", f"## {policy}, last round", "")
        yield from _last_round(comparison, policy, metrics)
        for name in metrics:
            rows = list(_each_round(comparison, policy, name))
            if rows:
                title = _shown(metric(name).title)
                yield from ("", f"## {policy}, each round: {title}", "", *rows)
    yield from ("", *(f"- {line}" for line in legend_lines(comparison, STUDENT, None)))
    yield from (f"- {_shown(line)}" for line in note_lines(comparison, STUDENT))
    for failure in comparison.failures:
        where = comparison.design.describe(failure.cell)
        yield f"- failed: {where}: {_shown(failure.reason)}"
    yield from (f"- {line}" for line in saving_lines(comparison.saving))


def _last_round(comparison: Comparison, policy: str, metrics: Sequence[str]) -> Iterator[str]:
    """Yield a table of all metrics: a row for each method of each setting."""
    yield _row(["", "round", "seeds", *(metric(name).title for name in metrics)])
    yield _row(["---"] * (3 + len(metrics)))
    for setting, method in _cells(comparison):
        done, _ = comparison.seeds_of(setting, method)
        found = [comparison.results.at(setting, method, policy, name) for name in metrics]
        last = max((row.round for row in found if row is not None), default="-")
        label = _label(comparison, setting, method)
        yield _row([label, str(last), str(done), *(cell_text(row, done) for row in found)])


def _each_round(comparison: Comparison, policy: str, name: str) -> Iterator[str]:
    """Yield a table of one metric: a column for each round; nothing if there is only one."""
    results = comparison.results
    rounds = [r.round for r in results.rows if (r.policy, r.metric) == (policy, name)]
    if not rounds or max(rounds) == 0:
        return
    yield _row(["", *map(str, range(max(rounds) + 1))])
    yield _row(["---"] * (2 + max(rounds)))
    for setting, method in _cells(comparison):
        done, _ = comparison.seeds_of(setting, method)
        texts = []
        for t in range(max(rounds) + 1):
            row = results.at(setting, method, policy, name, t)
            texts.append("" if row is None or row.round != t else cell_text(row, done))
        yield _row([_label(comparison, setting, method), *texts])


def _cells(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield the settings and methods of which there are results."""
    for setting in comparison.design.settings:
        for method in comparison.design.methods:
            if comparison.seeds_of(setting, method)[0]:
                yield setting, method


def _label(comparison: Comparison, setting: str, method: str) -> str:
    return f"{setting}/{method}" if len(comparison.design.settings) > 1 else method


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_shown(cell).replace("|", "\\|") for cell in cells) + " |"


def _shown(text: str) -> str:
    """Return a text that neither Markdown nor a terminal acts on."""
    return in_markdown(plain_line(text))
