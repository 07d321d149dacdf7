"""What a finished run shows: its metrics over the rounds, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from macpo.metrics import Metric, in_order
from macpo.records import read_answers, read_responses
from macpo.report.console import stdout_console
from macpo.report.text import plain_line, plural, shorten
from macpo.run_directory import EarlyEnd, RunDir

if TYPE_CHECKING:
    from macpo.run_evaluation import EvaluationResult
    from macpo.runner import RunResult

STUDENT = "student"
SHOWN_ANSWERS = 3
PROMPT_CHARACTERS, ANSWER_CHARACTERS = 160, 320
COLUMN_WIDTH = 10


def print_result(result: RunResult, console: Console | None = None) -> None:
    """Print a finished run on stdout: tables, where the policies are, some answers.

    Args:
        result: as `macpo.runner.run` returned it.
        console: where to print; by default stdout.
    """
    console = console or stdout_console()
    console.print()
    rows = [row.to_json() for row in result.metrics]
    console.print(metrics_table(rows, result.pairs, console.width))
    console.print()
    if result.ended is not None:
        console.print(Text(ended_line(result.ended), style="yellow"), soft_wrap=True)
    console.print(Text("aligned policies:"), soft_wrap=True)
    for path in result.final.values():
        console.print(Text(f"  {plain_line(str(path))}"), soft_wrap=True)
    rounds = max((row.round for row in result.metrics), default=0)
    if result.ended is not None:
        rounds = result.ended.kept
    answers = before_and_after(result.folder)
    if answers:
        console.print()
        console.print(answers_view(answers, rounds))


def print_evaluation(result: EvaluationResult, console: Console | None = None) -> None:
    """Print on stdout what evaluators measured of a run.

    Args:
        result: as `macpo.run_evaluation.evaluate` returned it.
        console: where to print; by default stdout.
    """
    console = console or stdout_console()
    console.print()
    console.print(metrics_table([row.to_json() for row in result.metrics], 0, console.width))


def metrics_table(rows: Sequence[Mapping[str, Any]], pairs: int, width: int) -> Table:
    """Lay out metrics: a row for each agent, a column for each round, a block for each metric.

    Args:
        rows: policy, round, metric and value of each measurement, as metrics.jsonl has them.
        pairs: on which they were measured; 0 when that is not known.
        width: columns of the terminal; rounds that do not fit are left out, the last ones kept.
    """
    values = {(row["metric"], row["policy"], row["round"]): row["value"] for row in rows}
    agents = list(dict.fromkeys(row["policy"] for row in rows))
    rounds = sorted({row["round"] for row in rows})
    metrics = [m for m in in_order(m for m, _, _ in values) if m.shown == "everywhere"]
    names = [*agents, *(metric.title for metric in metrics)]
    room = max(2, (width - max(map(len, names), default=0)) // COLUMN_WIDTH)
    shown = rounds if len(rounds) <= room else [rounds[0], *rounds[len(rounds) - room + 1 :]]
    table = Table(caption=_caption(pairs, rounds, shown), caption_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for number in shown:
        table.add_column(f"round {number}" if number else "before", justify="right", no_wrap=True)
    for metric in metrics:
        table.add_section()
        table.add_row(Text(metric.title, style="bold"))
        for agent in agents:
            cells = (values.get((metric.name, agent, number)) for number in shown)
            table.add_row(Text(f"  {agent}"), *(_cell(metric, value) for value in cells))
    return table


def ended_line(ended: EarlyEnd) -> str:
    """Say where a run ended early, why, and what it hands out."""
    signs = "; ".join(plain_line(sign) for sign in ended.signs)
    return (
        f"ended after round {ended.round} by evaluation.stop_on_collapse ({signs}); the policies "
        f"are those of round {ended.kept}"
    )


def accuracy_standard_error(pairs: int) -> float:
    """Return the largest standard error that an accuracy over `pairs` pairs can have.

    It is that of a fair coin, sqrt(1/4 / pairs).
    """
    return float((0.25 / pairs) ** 0.5)


def before_and_after(folder: Path, limit: int = SHOWN_ANSWERS) -> list[tuple[str, str, str]]:
    """Return the student's first answers to held-out prompts: (prompt, before, after) texts.

    A prompt is the user's last message. The test split is ordered by hash, so the first prompts
    are a fair sample. Empty when the run's config asked for no answers.
    """
    run = RunDir(folder)
    plan = run.plan()
    if plan is None:
        return []
    first, last = plan.policy(STUDENT, 0), plan.policy(STUDENT, ended=run.ended())
    before, after = (plan.answers(policy, "test") for policy in (first, last))
    if not before or not after:
        return []
    texts = {r.prompt_id: r.text for r in read_responses(run.artifact(after[0]))}
    return [
        (prompt.messages[-1].content, was.text, texts[prompt.id])
        for prompt, was in read_answers(run.artifact(before[0]))
        if prompt.id in texts
    ][:limit]


def answers_view(answers: Sequence[tuple[str, str, str]], rounds: int) -> RenderableType:
    """Lay out answers, shortened; their text is only ever shown as text."""
    blocks: list[RenderableType] = [Text("the student on held-out prompts:")]
    for prompt, before, after in answers:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        table.add_row("prompt", Text(shorten(prompt, PROMPT_CHARACTERS), style="bold"))
        table.add_row("before", Text(shorten(before, ANSWER_CHARACTERS) or "(empty)"))
        table.add_row(f"round {rounds}", Text(shorten(after, ANSWER_CHARACTERS) or "(empty)"))
        blocks.append(Padding(table, (1, 0, 0, 2)))
    return Group(*blocks)


def _caption(pairs: int, rounds: Sequence[int], shown: Sequence[int]) -> Text:
    """Say what the numbers are worth."""
    parts = []
    if pairs:  # unknown of a run of an older macpo
        error = accuracy_standard_error(pairs)
        parts.append(
            f"on {plural(pairs, 'held-out pair')}; the standard error of an accuracy is up to "
            f"{100 * error:.1f} points"
        )
    hidden = len(rounds) - len(shown)
    if hidden:
        parts.append(f"{plural(hidden, 'round')} not shown, see metrics.jsonl")
    return Text("; ".join(parts), style="dim")


def _cell(metric: Metric, value: float | None) -> str:
    return "-" if value is None else metric.format(value)
