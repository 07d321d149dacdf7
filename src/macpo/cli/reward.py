"""`macpo reward`: make a reward model, a third party to judge runs by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from macpo.cli.run import PluginOption, SetOption, load_named
from macpo.cli.stopping import resumable

app = typer.Typer(no_args_is_help=True, help="Make a reward model, to judge runs by.")

EXAMPLES = """\
Examples:
  macpo reward train example:reward/smollm2-helpful
  macpo reward train my-reward.yaml --set optimizer.epochs=2 --out rewards/mine
"""


@app.command("train", epilog=EXAMPLES)
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The reward model's YAML, or example:NAME.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where to; if not given, rewards/NAME."),
    ] = None,
    overrides: SetOption = None,
    plugins: PluginOption = None,
) -> None:
    """Train CONFIG's reward model on preference pairs; run it again to go on where it stopped."""
    load_named(plugins)
    from macpo.reward.config import load_reward_config

    loaded = load_reward_config(config, overrides or [])
    with resumable():
        from macpo.cli.quiet import quiet_libraries
        from macpo.reward.training import describe, train_reward

        with quiet_libraries():
            trained = train_reward(loaded, out or Path("rewards") / loaded.name)
    for line in describe(trained):
        typer.echo(line)
