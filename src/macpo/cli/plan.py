"""`macpo plan`: what a run would do, before it does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from macpo.cli.run import ConfigArgument, DataOption, OutOption, SetOption, with_data

EXAMPLES = """\
Examples:\n
  macpo plan examples/quickstart.yaml\n
  macpo plan examples/quickstart.yaml --set rounds=5\n
  macpo plan examples/paper-llama2-70b.yaml --json
"""


def command(
    config: ConfigArgument,
    out: OutOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the stages of CONFIG: which are done, and what the others cost; nothing is run."""
    from macpo.config import load_config
    from macpo.planning import plan

    loaded = load_config(config, with_data(overrides, data))
    report = plan(loaded, out or Path("runs") / loaded.name)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    from rich.console import Console

    from macpo.report.plan import render_plan

    Console(highlight=False).print(render_plan(report))
