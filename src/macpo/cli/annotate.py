"""`macpo annotate`: people judge a run's answers on a local page, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from macpo.cli.chat import AgainstOption, PolicyOption

if TYPE_CHECKING:
    from macpo.annotation.judgments import JudgmentFile
    from macpo.annotation.pairs import Pairing

EXAMPLES = """\
Examples:
  macpo annotate runs/quickstart
  macpo annotate runs/quickstart --policy student@2 --against student@1
  macpo annotate runs/quickstart --against runs/other
  macpo annotate results runs/quickstart      (what was judged so far)
"""

RESULTS_EXAMPLES = """\
Examples:
  macpo annotate results runs/quickstart
  macpo annotate results runs/quickstart --judgments judgments.csv
  macpo annotate results runs/quickstart --export pairs.jsonl      (to train on)
"""

PORT = 8765
SERVE = "serve"


class _ServesByDefault(TyperGroup):
    """Takes `macpo annotate RUN` for `macpo annotate serve RUN`."""

    default = SERVE

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the sub-command where it was left out."""
        if not args or args[0] not in self.commands:
            args = [self.default, *(args or ["--help"])]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ServesByDefault, help="Judge answers of RUN blindly, on a local page.")


@app.command(SERVE, epilog=EXAMPLES)
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    policy: PolicyOption = "student",
    against: AgainstOption = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; others than 127.0.0.1 let other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = PORT,
) -> None:
    """Serve a page on which people judge answers of RUN to its test prompts, blindly.

    They are held against those of the same agent before the first round, or against OTHER's.
    Judgments are kept in RUN/annotations; `macpo annotate results RUN` says what they come to.
    """
    from macpo.annotation.judgments import JudgmentFile, file_for
    from macpo.annotation.pairs import pair_answers, unanswered
    from macpo.annotation.server import is_loopback
    from macpo.annotation.server import serve as serve_page
    from macpo.run_directory import RunDir
    from macpo.sides import find_side

    one = find_side(policy, run, unanswered)
    agent = one.policy.policy
    other = find_side(against or f"{agent}@0", run, unanswered, agent)
    pairing = pair_answers(one, other)
    file = JudgmentFile.open(file_for(RunDir(run), pairing), pairing)
    if not is_loopback(host):
        typer.echo(
            f"macpo: at {host} whoever reaches this machine can read the answers and judge, "
            "without a password",
            err=True,
        )

    def started(address: str) -> None:
        typer.echo(f"{_described(pairing, file)}\nopen {address} in a browser; Ctrl-C ends")

    try:
        serve_page(file, host, port, started)
    except KeyboardInterrupt:
        typer.echo(f"\nkept in {file.path}; see: macpo annotate results {run}", err=True)
    finally:
        file.close()


def _described(pairing: Pairing, file: JudgmentFile) -> str:
    """Say what there is to be judged, and what is left out."""
    from macpo.report.text import plural

    lines = [f"{file.one} against {file.other}: {plural(len(file.pairs), 'pair')} of answers"]
    if pairing.equal:
        lines.append(f"left out: {plural(pairing.equal, 'prompt')} with twice the same answer")
    if pairing.alone:
        lines.append(f"left out: {plural(pairing.alone, 'prompt')} that only one side was asked")
    judged = ", ".join(f"{name} {count}" for name, count in file.annotators().items())
    return "\n".join([*lines, f"judged so far: {judged or 'nothing'}"])


@app.command("results", epilog=RESULTS_EXAMPLES)
def results(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, or a file of RUN/annotations.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    judgments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every judgment to a .csv or .jsonl file."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write preference pairs, as in a run's pairs.jsonl."),
    ] = None,
) -> None:
    """Show how often each side won by people's judgments, and how far people agree."""
    from macpo.annotation.results import annotation_results

    found = annotation_results(run)
    if as_json:
        typer.echo(json.dumps([result.to_json() for result in found], indent=1))
    else:
        from macpo.report.console import stdout_console
        from macpo.report.people import render_results

        console = stdout_console()
        for result in found:
            console.print(render_results(result))
    if judgments is not None or export is not None:
        _hand_on(run, judgments, export)


def _hand_on(run: Path, judgments: Path | None, export: Path | None) -> None:
    """Write what was asked for, of the one file that there is.

    Raises:
        ConfigError: there are several.
    """
    from macpo.annotation.exporting import export_judgments, export_pairs
    from macpo.annotation.judgments import JudgmentFile
    from macpo.annotation.results import judgment_files
    from macpo.errors import ConfigError

    files = judgment_files(run)
    if len(files) > 1:
        raise ConfigError(
            f"{run} has {len(files)} files of judgments; name one in the place of the run, such as "
            f"{files[0]}"
        )
    file = JudgmentFile(files[0])
    try:
        if judgments is not None:
            typer.echo(f"judgments: {export_judgments(file, judgments)} in {judgments}", err=True)
        if export is not None:
            done = export_pairs(file, export)
            typer.echo(
                f"pairs: {done.written} in {export} ({done.undecided} undecided and {done.empty} "
                "with an empty answer left out)",
                err=True,
            )
    finally:
        file.close()
