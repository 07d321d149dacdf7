"""What a run shows while it goes on: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from macpo.metrics import metric
from macpo.report.text import format_count, format_seconds, plain_line, plural

if TYPE_CHECKING:
    from macpo.stage import Stage
    from macpo.store import Artifact

HEARTBEAT_SECONDS = 60.0
"""Without a terminal a running stage is heard of this often at most."""

NAME_WIDTH = 32

MOST_TO_COME = 8
"""Stages to come that are named at most."""

PIPE_WIDTH = 120
"""Columns of what is printed into a pipe or a file."""


def stdout_console() -> Console:
    """Return a console on stdout; where that is no terminal, wide enough for tables."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


class ConsoleObserver:
    """Shows a run on stderr; a `macpo.execution.protocol.Observer`, used as a context manager.

    One line for each finished stage, one for all that were found, and under them, on a terminal
    only, what the running stages do. Elsewhere (CI, a log file) there are no control codes, and a
    long stage writes a line a minute.

    Args:
        console: where to write; by default stderr.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        # rich takes FORCE_COLOR for a terminal; a log of CI is none.
        isatty = getattr(self.console.file, "isatty", lambda: False)
        self.live = bool(isatty()) and self.console.is_interactive
        self._clock = clock
        self._bar: _LiveBar | None = None
        self._plan: list[str] = []
        self._begun: set[str] = set()
        self._running: dict[str, Pace] = {}
        self._side_by_side = False
        self._found = 0  # not yet told
        self._found_before = 0  # told
        self._ran = 0
        self._done = 0  # of the plan
        self._last_line = clock()

    def __enter__(self) -> ConsoleObserver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the live bar and say what has not been said."""
        self._tell_found(total=None if error is None else 0)
        self._close_bar()

    def planned(self, stages: Sequence[Stage]) -> None:
        """See `Observer`."""
        self._plan = [stage.name for stage in stages]
        self._begun.clear()
        self._done, self._side_by_side = 0, False

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """See `Observer`."""
        self._tell_found(total)
        self._last_line = self._clock()
        self._begun.add(stage.name)
        self._running[stage.name] = Pace(self._clock)
        self._side_by_side |= len(self._running) > 1
        if self.live:
            if self._bar is None:
                self._bar = _LiveBar(self.console)
            # One after another, all that stands before it is done; on a cluster that is counted.
            done = self._done if self._side_by_side else number - 1
            later = self._plan if self._side_by_side else self._plan[number:]
            to_come = [name for name in later if name not in self._begun]
            self._bar.start_stage(stage.name, done, total, to_come)

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """See `Observer`."""
        pace = self._running.setdefault(stage.name, Pace(self._clock))
        pace.update(done, total)
        shown = running_numbers(fields, pace.seconds_left)
        if self._bar is not None:
            self._bar.update(stage.name, done, total, shown)
        elif self._clock() - self._last_line >= HEARTBEAT_SECONDS:
            numbers = f", {shown}" if shown else ""
            self._line(f"  {stage.name}: {done:,} of {total:,}{numbers}", style="dim")

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """See `Observer`."""
        self._ran += 1
        self._done += 1
        self._running.pop(stage.name, None)
        if self._bar is not None:
            self._bar.end_stage(stage.name)
        numbers = telling_numbers(stage.kind, artifact.meta, seconds)
        line = f"{stage.name:<{NAME_WIDTH}} {format_seconds(seconds):>11}  {numbers}"
        self._line(line.rstrip(), style="yellow" if artifact.meta.get("signs") else "")

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """See `Observer`."""
        self._found += 1
        self._done += 1
        self._begun.add(stage.name)

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._line(f"note: {plain_line(text)}", style="yellow")

    def alert(self, title: str, text: str) -> None:
        """See `Observer`."""
        self._line(f"ALERT: {plain_line(title)}: {plain_line(text)}", style="bold red")

    def _tell_found(self, total: int | None) -> None:
        """Sum up the stages found since this was last told.

        Args:
            total: stages in the plan; None at the end of the plan; 0 when that is not known.
        """
        found, self._found = self._found, 0
        if not found:
            return
        if self._ran or self._found_before:
            self._line(f"{plural(found, 'more stage')} {_were(found)} done already")
        elif total is None:
            whole = "the one stage" if found == 1 else f"all {found:,} stages"
            self._line(f"{whole} {_were(found)} done already")
        elif total:
            self._line(f"{found:,} of {plural(total, 'stage')} {_were(found)} done already")
        else:
            self._line(f"{plural(found, 'stage')} {_were(found)} done already")
        self._found_before += found

    def _line(self, text: str, style: str = "") -> None:
        """Write one line above the live bar; never as markup, never wrapped."""
        self._last_line = self._clock()
        if self.live:
            self.console.print(Text(text, style=style), soft_wrap=True)
            return
        # Not through rich, which obeys FORCE_COLOR. A full disk under the log, or a reader of the
        # pipe that went away, must not end a run of days.
        with contextlib.suppress(OSError):
            print(text, file=self.console.file, flush=True)

    def _close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


class Pace:
    """How fast a stage goes, and so how long it will still take.

    Measured from the first report on, for what comes before it is loading, and a resumed stage
    starts in the middle.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self.seconds_left: float | None = None

    def update(self, done: int, total: int) -> None:
        """Take a report in; `seconds_left` is None until there are two that differ."""
        now = self._clock()
        if self._first is None:
            self._first = (done, now)
        first_done, since = self._first
        if done > first_done and now > since:
            self.seconds_left = (total - done) * (now - since) / (done - first_done)


class _StageProgress(Progress):
    """Bars, the one of all stages last, with a line under them: what comes next."""

    to_come: Sequence[str] = ()
    of_all: TaskID | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bars, and the stages to come as far as they fit on a line."""
        yield self.make_tasks_table(sorted(self.tasks, key=lambda task: task.id == self.of_all))
        if self.to_come:
            yield Text(to_come_line(self.to_come, self.console.width), style="dim")


def to_come_line(names: Sequence[str], width: int) -> str:
    """Name the stages to come, as many as fit, and count the others.

    Args:
        names: of the stages, the next one first.
        width: columns of the terminal.
    """
    for shown in range(min(len(names), MOST_TO_COME), 0, -1):
        rest = len(names) - shown
        more = f" and {rest:,} more" if rest else ""
        line = f"to come: {', '.join(names[:shown])}{more}"
        if len(line) < width or shown == 1:
            return line[: max(width - 1, 1)]
    return ""


class _LiveBar:
    """The live lines at the bottom: the running stages, all stages, and those to come."""

    def __init__(self, console: Console) -> None:
        self._progress = _StageProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[shown]}", markup=False, style="cyan"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._stages: dict[str, TaskID] = {}
        self._all = self._progress.add_task(f"{'all stages':<{NAME_WIDTH}}", total=None, shown="")
        self._progress.of_all = self._all
        self._progress.start()

    def start_stage(self, name: str, done: int, total: int, to_come: Sequence[str]) -> None:
        """Begin a stage, when `done` of `total` are done and others come after it."""
        self.end_stage(name)
        self._progress.to_come = to_come
        description = f"{name:<{NAME_WIDTH}}"
        self._stages[name] = self._progress.add_task(description, total=None, shown="")
        shown = f"{done:,} of {total:,}"
        self._progress.update(self._all, completed=done, total=total, shown=shown)

    def update(self, name: str, done: int, total: int, shown: str) -> None:
        """Show how far a stage is."""
        shown = f"{done:,} of {total:,}" + (f", {shown}" if shown else "")
        if name in self._stages:
            self._progress.update(self._stages[name], completed=done, total=total, shown=shown)

    def end_stage(self, name: str) -> None:
        """Remove a stage's line, if it has one."""
        task = self._stages.pop(name, None)
        if task is not None:
            self._progress.remove_task(task)

    def close(self) -> None:
        """Remove the lines."""
        self._progress.stop()


def running_numbers(fields: Mapping[str, Any], seconds_left: float | None) -> str:
    """Write what a running stage tells of itself: loss, margin, tokens a second, time left."""
    parts = [
        f"{name} {fields[name]:.3g}" for name in ("loss", "margin") if _is_number(fields, name)
    ]
    if _is_number(fields, "tokens_per_second"):
        parts.append(f"{format_count(fields['tokens_per_second'])} tokens/s")
    if seconds_left is not None:
        parts.append(f"{format_seconds(seconds_left)} left")
    return ", ".join(parts)


def _is_number(fields: Mapping[str, Any], name: str) -> bool:
    return isinstance(fields.get(name), int | float)  # a NaN is text in progress.json


def telling_numbers(kind: str, meta: Mapping[str, Any], seconds: float = 0.0) -> str:
    """Write the few numbers of a finished stage's meta that tell most about it.

    Args:
        kind: of the stage.
        meta: as its `run` returned it.
        seconds: how long it took, for a rate; 0 when that is not known.
    """
    writer = _WRITERS.get(kind)
    return writer(meta, seconds) if writer is not None else _any_numbers(meta)


def _data_numbers(meta: Mapping[str, Any], _: float) -> str:
    pairs = ", ".join(f"{name} {count:,}" for name, count in meta["pairs"].items())
    left_out = meta["prompts_too_long"]
    return f"pairs: {pairs}" + (f"; {plural(left_out, 'prompt')} too long" if left_out else "")


def _training_numbers(meta: Mapping[str, Any], _: float) -> str:
    means = [f"{n} {meta[n]:.3g}" for n in ("loss", "margin") if n in meta]
    return ", ".join([plural(meta["steps"], "step"), *means])


def _answer_numbers(meta: Mapping[str, Any], seconds: float) -> str:
    responses = meta["responses"]
    parts = [plural(responses, "answer")]
    if responses:
        parts.append(f"{meta['tokens'] / responses:.0f} tokens each")
        parts.append(f"{meta['finished'] / responses:.0%} finished")
    if meta["empty"]:
        parts.append(f"{meta['empty']:,} empty")
    if seconds:
        parts.append(f"{format_count(meta['tokens'] / seconds)} tokens/s")
    return ", ".join(parts)


def _score_numbers(meta: Mapping[str, Any], _: float) -> str:
    return plural(meta["scored"], "answer") + (f", {meta['empty']:,} empty" * bool(meta["empty"]))


def _pair_numbers(meta: Mapping[str, Any], _: float) -> str:
    parts = [plural(meta["pairs"], "pair")]
    if meta["prompts_without_pair"]:
        parts.append(f"{plural(meta['prompts_without_pair'], 'prompt')} without one")
    wins = meta.get("wins", {})
    if len(wins) > 1:
        shares = (f"{name.partition('/')[0]} {n:,}" for name, n in wins.items())
        parts.append("chosen from " + ", ".join(shares))
    parts.append(guard_numbers(meta))
    if meta.get("own_rejected"):
        parts.append(f"{meta['own_rejected']:,} against a refused answer of its own")
    return ", ".join(filter(None, parts))


def guard_numbers(meta: Mapping[str, Any], _: float = 0.0) -> str:
    """Tell how many candidates a guard refused, and why; nothing where there is no guard."""
    if "refused" not in meta:
        return ""
    reasons = ", ".join(f"{name} {count:,}" for name, count in meta["reasons"].items())
    refused = f"{meta['refused']:,} of {plural(meta['candidates'], 'candidate')} refused"
    return refused + (f" ({reasons})" if reasons else "")


def _evaluation_numbers(meta: Mapping[str, Any], _: float) -> str:
    shown = map(metric, ("preference_accuracy", "gold_perplexity"))
    parts = [f"{m.title} {m.format(meta[m.name])}" for m in shown]
    if "answer_tokens" in meta:
        parts.append(f"answers of {meta['answer_tokens']:.0f} tokens")
    return ", ".join(parts)


def _collapse_signs(meta: Mapping[str, Any], _: float) -> str:
    return "; ".join(map(plain_line, meta["signs"])) or "no sign of collapse"


def _any_numbers(meta: Mapping[str, Any]) -> str:
    numbers = {k: v for k, v in meta.items() if isinstance(v, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in list(numbers.items())[:4])


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


_WRITERS: dict[str, Callable[[Mapping[str, Any], float], str]] = {
    "data": _data_numbers,
    "sft": _training_numbers,
    "dpo": _training_numbers,
    "respond": _answer_numbers,
    "score": _score_numbers,
    "pairs": _pair_numbers,
    "guard": guard_numbers,
    "evaluate": _evaluation_numbers,
    "collapse": _collapse_signs,
}
