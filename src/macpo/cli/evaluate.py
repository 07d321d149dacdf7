"""`macpo eval`: measure the policies of a run afterwards, on the answers that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from macpo.cli.run import PluginOption, load_named
from macpo.cli.stopping import resumable

EXAMPLES = """\
Examples:
  macpo eval runs/quickstart answers
  macpo eval runs/quickstart judge --set model=gpt-4.1-mini --against runs/other
  macpo eval runs/quickstart --config eval.yaml
"""


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    evaluator: Annotated[
        str | None, typer.Argument(metavar="[EVALUATOR]", help="An evaluator's name.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of EVALUATOR."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="RUN", help="The run that EVALUATOR compares with."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="A YAML list as in evaluation.evaluators, in the place of EVALUATOR.",
        ),
    ] = None,
    plugins: PluginOption = None,
) -> None:
    """Measure the policies of RUN, round by round, on the answers that it has."""
    load_named(plugins)
    from macpo.config.loading import check_evaluators

    where = str(config) if config is not None else "macpo eval"
    check_evaluators(asked := _asked(evaluator, options, against, config), where)
    with resumable():
        from macpo.api import evaluate
        from macpo.cli.quiet import quiet_libraries
        from macpo.report.result import print_evaluation
        from macpo.run_directory import RunDir

        with quiet_libraries():
            result = evaluate(run, asked)
        print_evaluation(result)
        if (report := RunDir(run).report_file).is_file():
            typer.echo(f"\nreport: {report}")


def _asked(
    evaluator: str | None, options: list[str] | None, against: str | None, config: Path | None
) -> list[Any]:
    """Return the evaluators that were asked for, as plain values.

    Raises:
        ConfigError: there is none, or they are given twice.
    """
    from macpo.config.evaluators import EVALUATORS
    from macpo.config.loading import override, read_evaluators
    from macpo.errors import ConfigError

    if (evaluator is None) == (config is None):
        raise ConfigError(
            f"name one evaluator ({', '.join(EVALUATORS.names())}), or a list of them by --config"
        )
    if config is not None:
        if options or against is not None:
            raise ConfigError(
                "--set and --against are for one EVALUATOR; write options into the --config file"
            )
        return read_evaluators(config)
    named = {"name": evaluator} if against is None else {"name": evaluator, "against": against}
    return [override(named, options or ())]
