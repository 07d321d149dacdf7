"""What `macpo status` shows."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from macpo.report.console import running_numbers
from macpo.report.result import ended_line, metrics_table
from macpo.report.text import format_seconds, plain_line, plural
from macpo.run_status import RunningStage, StatusReport

SHOWN_STAGES = 8
SHOWN_FAULTS = 5
QUIET_SECONDS = 120.0
"""After so long without a word from the running stage its silence is worth telling."""


def render_status(report: StatusReport, width: int) -> RenderableType:
    """Return a status report as something that rich prints.

    Args:
        report: what to show.
        width: columns of the terminal.
    """
    parts: list[RenderableType] = [_line(f"{report.folder}: {_state(report)}", "bold")]
    done = f"{len(report.finished):,}"
    of = f"{done} of {plural(report.total, 'stage')}" if report.total is not None else ""
    parts.append(
        _line(
            f"{of or plural(len(report.finished), 'stage')} done; "
            f"{format_seconds(report.worked_seconds)} of work so far"
        )
    )
    if report.running is not None:
        for stage in (report.running, *report.beside):
            parts.append(_line(f"now: {_running(stage)}", "cyan"))
    if report.last_stop is not None:
        stop = report.last_stop
        reason = "asked to stop (Ctrl-C or SIGTERM)"
        if stop.reason != "KeyboardInterrupt":
            reason = plain_line(stop.reason)
        parts.append(_line(f"last stop: {stop.stage}, {stop.time}: {reason}", "yellow"))
    for fault in report.faults[:SHOWN_FAULTS]:
        parts.append(_line(f"{plain_line(fault)}; macpo run makes it again", "red"))
    if len(report.faults) > SHOWN_FAULTS:
        parts.append(
            _line(f"and {len(report.faults) - SHOWN_FAULTS} more such; --json has all", "red")
        )
    if report.ended is not None:
        parts.append(_line(ended_line(report.ended), "yellow"))
    if report.finished:
        parts.append(_finished_table(report))
    if report.metrics:
        parts.append(metrics_table(report.metrics, report.pairs, width))
    return Group(*parts)


def _state(report: StatusReport) -> str:
    """Say in one line whether it runs, and by whose hand."""
    if report.state == "finished":
        return "finished"
    if report.state == "stopped":
        return "not running; macpo run goes on where it stopped"
    if report.holder is None:
        return "running, in a process that does not say who it is"
    holder = report.holder
    return f"running, process {holder.pid} on {holder.host} since {holder.since} ({holder.command})"


def _running(stage: RunningStage) -> str:
    """Describe the stage at work."""
    text = f"{stage.name}, for {format_seconds(stage.seconds)}"
    if stage.done is not None and stage.total is not None:
        text += f": {stage.done:,} of {stage.total:,}"
    numbers = running_numbers(stage.numbers or {}, stage.seconds_left)
    text += f", {numbers}" if numbers else ""
    if stage.quiet_seconds is not None and stage.quiet_seconds > QUIET_SECONDS:
        text += f" (no word for {format_seconds(stage.quiet_seconds)})"
    return text


def _finished_table(report: StatusReport) -> Table:
    """List the stages that were finished last."""
    hidden = len(report.finished) - SHOWN_STAGES
    title = f"the last {SHOWN_STAGES} finished; --json has all" if hidden > 0 else "finished"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    for stage in report.finished[-SHOWN_STAGES:]:
        name, ended = plain_line(stage.name), plain_line(stage.ended)
        table.add_row(Text(name), format_seconds(stage.seconds), Text(ended))
    return table


def _line(text: str, style: str = "") -> Text:
    return Text(plain_line(text), style=style)
