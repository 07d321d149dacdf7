"""`macpo plan`: what a run would do, before it does it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from macpo.cli.run import (
    ConfigArgument,
    DataOption,
    OutOption,
    PluginOption,
    SetOption,
    load_named,
    run_folder,
    with_data,
)

EXAMPLES = """\
Examples:
  macpo plan example:quickstart
  macpo plan example:quickstart --set rounds=5
  macpo plan example:paper-hh-helpful --json
"""


def command(
    config: ConfigArgument,
    out: OutOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    plugins: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the stages of CONFIG: which are done, and what the others cost; nothing is run."""
    load_named(plugins)
    from macpo.config import load_config
    from macpo.planning import plan

    loaded = load_config(config, with_data(overrides, data))
    report = plan(loaded, run_folder(loaded, out))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    from macpo.report.console import stdout_console
    from macpo.report.plan import render_plan

    stdout_console().print(render_plan(report))
