"""The `macpo` command: gathers the sub-commands and turns our errors into one line."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from macpo import __version__
from macpo.cli import data, export, plan, run, status
from macpo.errors import MacpoError

app = typer.Typer(
    name="macpo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Align a strong language model from weaker ones: MACPO, run end to end.",
    epilog="Start with: macpo run examples/quickstart.yaml",
)
app.command("run", epilog=run.EXAMPLES)(run.command)
app.command("plan", epilog=plan.EXAMPLES)(plan.command)
app.command("status", epilog=status.EXAMPLES)(status.command)
app.command("export", epilog=export.EXAMPLES)(export.command)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"macpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Options of all sub-commands."""


def main() -> None:
    """Run the command line; a user's mistake ends in one line on stderr and exit status 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("macpo").setLevel(logging.INFO)
    try:
        app()
    except MacpoError as error:
        print(f"macpo: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("macpo: stopped; run the same command to go on", file=sys.stderr)
        sys.exit(130)
