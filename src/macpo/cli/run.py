"""`macpo run`: run a config from end to end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macpo.cli.stopping import resumable
from macpo.paths import user_path

if TYPE_CHECKING:
    from macpo.config import AgentConfig, RunConfig
    from macpo.ranks import Ranks

EXAMPLES = """\
Examples:
  macpo run example:quickstart
  macpo run example:smollm2-hh-harmless --data hh-harmless.jsonl.gz
  macpo run example:quickstart --set rounds=3      (one more round only)
  macpo run my-run.yaml --plugin ./my_method.py
"""

ConfigArgument = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="The run's YAML file, or example:NAME."),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="RUN", help="Run directory; if not given, runs/NAME."),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="SOURCE", help="Preference data: a path or a hub name."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. dpo.beta=0.2."),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="Import a module or .py file first, which adds methods, evaluators or sources.",
    ),
]


def command(
    config: ConfigArgument,
    out: OutOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    plugins: PluginOption = None,
) -> None:
    """Run CONFIG from end to end; run it again to go on where it stopped."""
    load_named(plugins)
    from macpo.config import load_config
    from macpo.ranks.launch import check_processes, joined

    loaded = load_config(config, with_data(overrides, data))
    launched = check_processes(loaded.engine.processes, os.environ)
    ranks = None if launched is None else joined(launched)
    if ranks is not None and not ranks.leads:
        follow(ranks)
        return
    folder = run_folder(loaded, out)
    print(describe(loaded, folder), file=sys.stderr, flush=True)
    with resumable():
        from macpo.cli.quiet import quiet_libraries
        from macpo.report.console import ConsoleObserver
        from macpo.report.making import leave_report, write_run_report
        from macpo.report.result import print_result
        from macpo.report.text import plain_line
        from macpo.runner import run

        with quiet_libraries(), ConsoleObserver() as observer:
            result = run(loaded, folder, observer, ranks=ranks)
            report = leave_report(lambda: write_run_report(folder), observer.note)
        print_result(result)
        if report is not None:
            print(f"\nreport: {plain_line(str(report))}")


def load_named(plugins: list[str] | None) -> None:
    """Import the plugins that `--plugin` names."""
    from macpo.plugins import load_plugin

    for name in plugins or ():
        load_plugin(name)


def run_folder(config: RunConfig, out: Path | None) -> Path:
    """Return the run directory: what was asked for, else `runs/NAME`."""
    return out if out is not None else Path("runs") / config.name


def with_data(overrides: list[str] | None, data: str | None) -> list[str]:
    """Add `--data` to the overrides.

    A local file also takes the place of the hub configuration, revision and split that the config
    may name: they belong to the hub data set that it replaces.
    """
    from macpo.seeds import canonical_json

    if not data:
        return overrides or []
    named = [f"data.source={canonical_json(data)}"]
    if user_path(data).exists():
        named += ["data.hub_config=null", "data.hub_revision=null", "data.hub_split=train"]
    return [*named, *(overrides or [])]


def follow(ranks: Ranks) -> None:
    """Stand by rank 0 of those that a launcher has started, and say nothing.

    Raises:
        Exit: the ranks were asked to stop.
    """
    import logging

    from macpo.cli.quiet import quiet_libraries
    from macpo.execution.following import follow as follow_orders
    from macpo.execution.stopping import stop_on_signal

    logging.disable(logging.WARNING)  # rank 0 says the same
    try:
        with quiet_libraries(), stop_on_signal(lambda text: None) as stop:
            follow_orders(ranks, stop)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def describe(config: RunConfig, folder: Path) -> str:
    """Say in a few lines what is about to run; RUN/config.resolved.yaml has all."""
    from macpo.config import method_name
    from macpo.config.recipes import say_recipe
    from macpo.report.text import plain_line

    teachers = ", ".join(f"{t.name} ({_model(t)})" for t in config.active_teachers)
    splits = config.data.splits
    dpo, sampling = config.dpo, config.sampling
    drawn = "greedy"
    if sampling.temperature:
        drawn = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
        drawn += f", top-k {sampling.top_k}" if sampling.top_k else ""
    lines = {
        "run": f"{config.name} in {folder}; seed {config.seed}",
        "student": _model(config.student),
        "teachers": teachers,
        "data": f"{config.data.source}; prompts: teacher {splits.teacher}, student "
        f"{splits.student}, test {splits.test}",
        "method": "; ".join(filter(None, (method_name(config.method), say_recipe(config)))),
        "rounds": f"{config.rounds}; dpo beta {dpo.beta:g}, gamma {dpo.gamma:g}, learning rate "
        f"{dpo.learning_rate:g}, reference {dpo.reference}",
        "answers": f"{drawn}, at most {sampling.max_new_tokens} tokens",
    }
    unused = config.method.unused
    return "\n".join(f"{k:<9} {plain_line(text)}" for k, text in lines.items() if k not in unused)


def _model(agent: AgentConfig) -> str:
    """Write an agent's model as the config names it."""
    layers = f"[{agent.model.layers}]" if agent.model.layers else ""
    return f"{agent.model.source}{layers}"
