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
  macpo plan example:paper-hh-helpful --hardware 8xH100-80GB --price 2.5
  macpo plan my-run.yaml --hardware 2x48/181/864 --json
"""

HardwareOption = Annotated[
    str | None,
    typer.Option(
        help="Plan for these devices, such as 8xH100-80GB, 1xA100-80GB, 2xcpu, or by numbers "
        "COUNTxGB/TFLOPS/GBPS; else for this machine.",
        show_default=False,
    ),
]
PriceOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="Of one device and hour, for the cost.", show_default=False),
]
UtilisationOption = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1.0,
        help="The share of matrix products' speed that is reached; else what is usual.",
        show_default=False,
    ),
]


def command(
    config: ConfigArgument,
    out: OutOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    plugins: PluginOption = None,
    hardware: HardwareOption = None,
    price: PriceOption = None,
    utilisation: UtilisationOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the stages of CONFIG: which are done, and what the others cost; nothing is run."""
    load_named(plugins)
    from macpo.config import load_config
    from macpo.planning import plan

    loaded = load_config(config, with_data(overrides, data))
    report = plan(
        loaded,
        run_folder(loaded, out),
        hardware=hardware,
        price=price,
        utilisation=utilisation,
    )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    from macpo.report.console import stdout_console
    from macpo.report.plan import render_plan

    stdout_console().print(render_plan(report))
