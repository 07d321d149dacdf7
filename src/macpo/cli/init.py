"""`macpo init`: write a config to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\
Examples:
  macpo init                                     (the quickstart, to be changed)
  macpo init my-run.yaml --data my-pairs.jsonl   (its models on your data)
  macpo init my-run.yaml --student org/strong --teacher org/weak
"""


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The config to write.")] = Path(
        "my-run.yaml"
    ),
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SOURCE", help="Preference data: a path or a hub name."),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student", metavar="MODEL", help="A hub name, folder, GGUF file or pypi:PACKAGE."
        ),
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="MODEL", help="Likewise; once for each teacher."),
    ] = None,
) -> None:
    """Write a commented config to FILE, for your data and models or else the quickstart's."""
    from macpo.starter import write_starter

    started = write_starter(file, data=data, student=student, teachers=teachers or ())
    width = max(len(role) for role, _ in started.found)
    for role, found in started.found:
        typer.echo(f"{role:<{width}}  {found}")
    typer.echo(f"written: {file}; see what it would do with: macpo plan {file}")
