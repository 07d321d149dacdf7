"""`macpo examples`: the configs that ship with macpo."""

from __future__ import annotations

import typer

EXAMPLES = """\
Examples:
  macpo examples
"""


def command() -> None:
    """List the shipped configs, which `run`, `plan` and `compare` take by name."""
    from rich.table import Table

    from macpo.report.console import stdout_console
    from macpo.shipped import examples, examples_folder

    table = Table.grid(padding=(0, 2))
    for example in examples():
        table.add_row(example.name, example.summary)
    stdout_console().print(table)
    typer.echo(f"\nThey lie in {examples_folder()}; `macpo init` writes a config of your own.")
