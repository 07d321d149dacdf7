"""`macpo clean`: remove what a run's folder holds for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\
Examples:
  macpo clean runs/quickstart --dry-run
  macpo clean runs/quickstart
"""


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Remove what RUN no longer needs: stages of former configs, damaged and half-made folders."""
    from macpo.cleaning import clean
    from macpo.report.text import plain_line

    found = clean(run, dry_run=dry_run)
    for leftover in found:
        typer.echo(f"{leftover.size:>15,} B  {plain_line(str(leftover.path))}: {leftover.why}")
    total = sum(leftover.size for leftover in found)
    typer.echo(f"{total:>15,} B  {'would be removed' if dry_run else 'removed'} in all")
