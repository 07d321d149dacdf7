"""`macpo compare`: methods x settings x seeds, and what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macpo.cli.run import (
    DataOption,
    PluginOption,
    SetOption,
    load_named,
    with_data,
)
from macpo.cli.stopping import resumable

if TYPE_CHECKING:
    from macpo.compare import Design

EXAMPLES = """\
Examples:
  macpo compare example:compare/ablations --dry-run
  macpo compare example:compare/ablations
  macpo compare example:compare/ablations --round 1 --policy teachers
  macpo compare example:compare/noise --store runs/store
"""


def command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The compare file (YAML), or example:compare/NAME."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The comparison's folder; else runs/NAME."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            metavar="DIR",
            help="Keep artifacts here, to share them with other comparisons; else DIR/store.",
        ),
    ] = None,
    data: DataOption = None,
    overrides: SetOption = None,
    shown_round: Annotated[
        int | None,
        typer.Option("--round", metavar="N", help="Show this round; else each method's last."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", metavar="NAME", help="Show this agent, or the mean: teachers; else student."
        ),
    ] = None,
    plugins: PluginOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and their stages; run nothing.")
    ] = False,
) -> None:
    """Run every cell of FILE, shared stages once; run it again to go on where it stopped."""
    refuse_launcher(os.environ)
    load_named(plugins)
    from macpo.agents import STUDENT
    from macpo.compare import load_design
    from macpo.compare.table import check_view
    from macpo.errors import ConfigError

    design = load_design(file, with_data(overrides, data))
    folder = out if out is not None else Path("runs") / design.name
    if dry_run:
        if policy is not None or shown_round is not None:
            raise ConfigError("--dry-run has no results to show; leave out --round and --policy")
        _show_plan(design, folder, store)
        return
    policy = STUDENT if policy is None else policy
    check_view(design, policy, shown_round)
    print(f"comparison {design.name} in {folder}", file=sys.stderr, flush=True)
    with resumable():
        failures = _run(design, folder, store, shown_round, policy)
    if failures:
        raise typer.Exit(1)


def refuse_launcher(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes, which would all run the whole comparison.

    Raises:
        ConfigError: a launcher (torchrun, accelerate launch) has started more than one.
    """
    from macpo.errors import ConfigError
    from macpo.ranks.launch import launched

    found = launched(environment)
    if found is not None:
        raise ConfigError(
            f"started as one of {found.size} processes (WORLD_SIZE), but a comparison starts those "
            "of its runs itself; set engine.processes and start it without torchrun or accelerate "
            "launch"
        )


def _show_plan(design: Design, folder: Path, store: Path | None) -> None:
    """Print what would be run."""
    from macpo.compare import plan_comparison, render_plan
    from macpo.report.console import stdout_console

    stdout_console().print(render_plan(plan_comparison(design, folder, store)))


def _run(
    design: Design, folder: Path, store: Path | None, shown_round: int | None, policy: str
) -> int:
    """Run a comparison and print its results; returns how many cells failed."""
    from rich.text import Text

    from macpo.cli.quiet import quiet_libraries
    from macpo.compare import compare, render_comparison
    from macpo.compare.folder import FIGURES
    from macpo.compare.page import REPORT_FILE
    from macpo.compare.progress import CompareConsole
    from macpo.report.console import stdout_console
    from macpo.report.text import plain_line

    with quiet_libraries(), CompareConsole() as observer:
        comparison = compare(design, folder, observer, store)
    console = stdout_console()
    console.print(render_comparison(comparison, console.width, policy, shown_round))
    where = f"{folder}/tables.md, results.csv, results.json; figures: {folder / FIGURES}/"
    console.print(Text(plain_line(f"results: {where}")))
    report = folder / REPORT_FILE
    if report.is_file():
        console.print(Text(plain_line(f"report: {report}")), soft_wrap=True)
    return len(comparison.failures)
