"""The `macpo` command: gathers the sub-commands and turns our errors into one line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO

import typer

from macpo.cli import (
    annotate,
    chat,
    clean,
    compare,
    data,
    evaluate,
    examples,
    export,
    init,
    plan,
    report,
    reward,
    run,
    status,
)
from macpo.errors import MacpoError
from macpo.version import __version__

app = typer.Typer(
    name="macpo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback
    rich_markup_mode="rich",
    help="Align a strong language model from weaker ones: MACPO, run end to end.",
    epilog="Start with: macpo run example:quickstart",
)
app.command("init", epilog=init.EXAMPLES)(init.command)
app.command("examples", epilog=examples.EXAMPLES)(examples.command)
app.command("run", epilog=run.EXAMPLES)(run.command)
app.command("plan", epilog=plan.EXAMPLES)(plan.command)
app.command("status", epilog=status.EXAMPLES)(status.command)
app.command("clean", epilog=clean.EXAMPLES)(clean.command)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.command)
app.command("chat", epilog=chat.EXAMPLES)(chat.command)
app.command("report", epilog=report.EXAMPLES)(report.command)
app.command("compare", epilog=compare.EXAMPLES)(compare.command)
app.command("export", epilog=export.EXAMPLES)(export.command)
app.add_typer(data.app, name="data")
app.add_typer(reward.app, name="reward")
app.add_typer(annotate.app, name="annotate")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"macpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of all sub-commands."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line on stderr and exit status 1.

    Args:
        args: what stands after `macpo`; by default those of this process.

    Raises:
        SystemExit: always; 0 when all went well, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a model wrote must not fail on a terminal that cannot show it.
            stream.reconfigure(errors="backslashreplace")
    _show_log()
    try:
        try:
            app(args, prog_name="macpo")
        finally:
            sys.stdout.flush()  # a full disk behind it is told here, not by the interpreter's end
    except MacpoError as error:
        _end(str(error))
    except OSError as error:  # of a path, or of what stdout goes to: the system's, not ours
        _forget_stdout()
        what = f": {error.filename}" if error.filename is not None else ""
        _end(f"{error.strerror or error}{what}")


def _end(text: str) -> NoReturn:
    print(f"macpo: {_printable(text)}", file=sys.stderr)
    sys.exit(1)


def _forget_stdout() -> None:
    """Drop what stdout still holds if it cannot be written, so that Python's end does not try."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: under a live bar that is rich's stand-in."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show_log() -> None:
    """Show warnings of all libraries, and what macpo's own modules say."""
    root = logging.getLogger()
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
    logging.getLogger("macpo").setLevel(logging.INFO)


def _printable(text: str) -> str:
    """Return an error's lines without control characters, which a file name may hold."""
    from macpo.report.text import plain_line

    lines = text.split("\n")
    return "\n".join(line[: len(line) - len(line.lstrip())] + plain_line(line) for line in lines)
