"""`macpo run`: run a config from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\
Examples:\n
  macpo run examples/quickstart.yaml\n
  macpo run examples/smollm2-hh-harmless.yaml --data hh-harmless.jsonl.gz\n
  macpo run examples/quickstart.yaml --set rounds=3      (one more round only)
"""

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run directory.  [default: runs/NAME]")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Preference data: a path or a hub name.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. dpo.beta=0.2."),
]


def command(
    config: ConfigArgument,
    out: OutOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
) -> None:
    """Run CONFIG from end to end; run it again to go on where it stopped."""
    from macpo.config import load_config
    from macpo.report.console import ConsoleObserver
    from macpo.report.result import print_result

    loaded = load_config(config, with_data(overrides, data))
    folder = out or Path("runs") / loaded.name
    from macpo.run import run

    with ConsoleObserver() as observer:
        result = run(loaded, folder, observer)
    print_result(result)


def with_data(overrides: list[str] | None, data: str | None) -> list[str]:
    """Add `--data` to the overrides."""
    from macpo.seeds import canonical_json

    return [*(overrides or []), *([f"data.source={canonical_json(data)}"] if data else [])]
