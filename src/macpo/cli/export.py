"""`macpo export`: merge an adapter into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\
Examples:
  macpo export runs/quickstart/final/student merged-student
"""


def command(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder of RUN/final/.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where the full model goes.")],
) -> None:
    """Merge an aligned ADAPTER into its base model and write the full model to OUTPUT."""
    from macpo.cli.quiet import quiet_libraries
    from macpo.publish import merge_adapter
    from macpo.report.text import plain_line

    with quiet_libraries():
        merge_adapter(adapter, output)
    typer.echo(f"merged model: {plain_line(str(output))}")
