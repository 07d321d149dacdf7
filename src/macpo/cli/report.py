"""`macpo report`: one HTML file on a run, on several beside one another, or on a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from macpo.cli.run import PluginOption, load_named

EXAMPLES = """\
Examples:
  macpo report runs/quickstart
  macpo report runs/one runs/other --out both.html      (differences prompt by prompt)
  macpo report runs/ablations                           (a comparison's folder)
"""


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories, or one comparison's folder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; by default report.html in RUN."),
    ] = None,
    plugins: PluginOption = None,
) -> None:
    """Write what came of RUN as one HTML file that asks nothing of any server.

    A run that goes on or has stopped is shown as far as it is. With several runs the file also has
    their differences, and is named report.html in the current folder.
    """
    load_named(plugins)
    from macpo.compare.page import is_comparison, write_comparison_report
    from macpo.errors import ConfigError
    from macpo.report.making import write_run_report, write_runs_report

    comparisons = [folder for folder in folders if is_comparison(folder)]
    if comparisons and len(folders) > 1:
        raise ConfigError(
            f"{comparisons[0]} is a comparison, which has a report of its own: give it alone, or "
            "the runs below its cells/"
        )
    if comparisons:
        path = write_comparison_report(folders[0], out)
    elif len(folders) == 1:
        path = write_run_report(folders[0], out)
    else:
        path = write_runs_report(folders, out or Path("report.html"))
    print(path)
