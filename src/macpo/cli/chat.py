"""`macpo chat`: talk to one or two policies of a run, in the terminal or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macpo.cli.run import PluginOption, load_named

if TYPE_CHECKING:
    from macpo.chat import Partner
    from macpo.config import SamplingConfig

EXAMPLES = """\
Examples:
  macpo chat runs/quickstart
  macpo chat runs/quickstart --policy student@1 --against student@0
  macpo chat runs/quickstart --policy weak-a --temperature 0
  macpo chat runs/quickstart --against runs/other < questions.txt
"""

PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="AGENT@ROUND",
        help="Whose; without @ROUND, as it is after the last round that is done.",
    ),
]

AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="OTHER",
        help="A second one beside it: AGENT@ROUND, another run, or RUN:AGENT@ROUND.",
    ),
]


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    policy: PolicyOption = "student",
    against: AgainstOption = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="A system prompt.")] = "",
    temperature: Annotated[
        float | None, typer.Option(min=0, help="As in the run, if not given; 0 is greedy.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="Likewise.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Likewise; 0 turns it off.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Likewise.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one draws other answers.")] = 0,
    plugins: PluginOption = None,
) -> None:
    """Talk to a policy of RUN, or to two at once: a line is a prompt, /help lists commands."""
    load_named(plugins)
    from macpo.chat import Talk
    from macpo.cli.quiet import quiet_libraries
    from macpo.run_api import open_run

    changes = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
    }
    with quiet_libraries(), ExitStack() as stack:
        partners, home = _partners(run, policy, against, stack)
        sampling = _sampling(open_run(home).config.sampling, changes)
        screen = TerminalScreen(named=len(partners) > 1)
        talk = Talk(partners, sampling, screen, system=system, seed=seed)
        names = " and ".join(partner.name for partner in partners)
        screen.note(f"talking to {names}; /help lists commands, Ctrl-D ends")
        _converse(talk.take, screen)


def _partners(
    run: Path, policy: str, against: str | None, stack: ExitStack
) -> tuple[list[Partner], Path]:
    """Open the policies that are to answer, and say whose run's sampling holds.

    Raises:
        ConfigError: the second one is the first.
    """
    from macpo.chat import Partner
    from macpo.errors import ConfigError
    from macpo.run_api import Run, open_run
    from macpo.sides import find_side, untrained

    sides = [find_side(policy, run, untrained)]
    if against is not None:
        sides.append(find_side(against, run, untrained, sides[0].policy.policy))
        if sides[1].label == sides[0].label:
            raise ConfigError(
                f"both sides are {sides[0].label}; name another with --policy or --against, such "
                "as --against student@0"
            )
    opened: dict[Path, Run] = {}
    for side in sides:
        if side.run.path not in opened:
            opened[side.run.path] = stack.enter_context(open_run(side.run.path))
    policies = [opened[s.run.path].policy(s.policy.policy, s.policy.round) for s in sides]
    for loading in policies:
        loading.load()  # before the first word: Ctrl-C while an answer begins is to end the answer
    partners = [Partner(s.label, p) for s, p in zip(sides, policies, strict=True)]
    return partners, sides[0].run.path


def _sampling(own: SamplingConfig, changes: dict[str, Any]) -> SamplingConfig:
    """Return a run's sampling with what was asked for in its place.

    Raises:
        ConfigError: greedy decoding takes no top-p and top-k.
    """
    from pydantic import ValidationError

    from macpo.config import SamplingConfig
    from macpo.errors import ConfigError

    asked = {key: value for key, value in changes.items() if value is not None}
    kept = own.model_dump()
    if asked.get("temperature", own.temperature) == 0:
        kept = {"temperature": 0, "max_new_tokens": own.max_new_tokens}
    try:
        return SamplingConfig(**{**kept, **asked})
    except ValidationError as error:
        raise ConfigError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


class TerminalScreen:
    """Answers go to stdout, all else to stderr: a pipe gets answers alone.

    Args:
        named: say whose answer begins; on a terminal that is always said.
    """

    def __init__(self, *, named: bool) -> None:
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._named = named or self.terminal

    def begin(self, name: str) -> None:
        """Write the name of who answers."""
        if self._named:
            self._write(f"\x1b[1m{name}:\x1b[0m " if self.terminal else f"{name}: ")

    def show(self, text: str) -> None:
        """Write a piece of the answer."""
        self._write(text)

    def end(self) -> None:
        """End the line, and on a terminal leave one free."""
        self._write("\n\n" if self.terminal else "\n")

    def note(self, text: str) -> None:
        """Write to stderr."""
        from macpo.report.text import plain_text

        print(plain_text(text), file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _converse(take: Any, screen: TerminalScreen) -> None:
    """Hand lines to the talk until it ends; Ctrl-C ends what is going on, not the talk."""
    lines, interrupted = _lines(screen.terminal), False
    while True:
        try:
            if interrupted:
                interrupted = False
                screen.note("\n/quit or Ctrl-D ends")
            line = next(lines, None)
            if line is None or not take(line):
                return
        except KeyboardInterrupt:  # noted above, where another one is caught as well
            lines, interrupted = _lines(screen.terminal), True


def _lines(terminal: bool) -> Iterator[str]:
    """Yield what the user writes; on a terminal with the keys of readline, where it is there."""
    if not terminal:
        yield from iter(sys.stdin.readline, "")  # stdin's own iterator: an end here would close it
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # input() uses it then
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
