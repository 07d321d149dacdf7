"""`macpo status`: how far a run is, from any other terminal, also after a kill."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\
Examples:
  macpo status runs/quickstart
  macpo status runs/quickstart --watch
  macpo status runs/quickstart --json
  macpo status runs/quickstart --verify
"""

REFRESH_SECONDS = 2.0


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all that is finished and compare its checksums."),
    ] = False,
) -> None:
    """Show how far RUN is, who runs it, what failed last and what was measured so far."""
    from macpo.run_status import status

    if watch:
        _watch(run, as_json)
        return
    report = status(run, thorough=verify)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    from macpo.report.console import stdout_console
    from macpo.report.status import render_status

    console = stdout_console()
    console.print(render_status(report, console.width))


def _watch(run: Path, as_json: bool) -> None:
    """Show the run again and again."""
    from rich.live import Live

    from macpo.errors import ConfigError
    from macpo.report.console import stdout_console
    from macpo.report.status import render_status
    from macpo.run_status import status

    console = stdout_console()
    if as_json or not console.is_terminal:
        raise ConfigError("--watch needs a terminal; without one ask again, with --json if need be")
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(render_status(status(run), console.width), refresh=True)
            time.sleep(REFRESH_SECONDS)
