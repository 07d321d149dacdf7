"""`macpo data`: look at preference data before training on it, and convert it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from macpo.words import Criterion, FormatChoice

if TYPE_CHECKING:
    from macpo.data.report import Tokenizer
    from macpo.models.chat import Chat

CHECK_EXAMPLES = """\
Examples:
  macpo data check example:data/quickstart.jsonl
  macpo data check hh-harmless.jsonl.gz --tokenizer Qwen/Qwen3-0.6B
  macpo data check PKU-Alignment/PKU-SafeRLHF --criterion harmless --json
"""

CONVERT_EXAMPLES = """\
Examples:
  macpo data convert hh-harmless.jsonl.gz hh-harmless.json --to macpo
  macpo data convert PKU-Alignment/PKU-SafeRLHF pku.jsonl --to trl
  macpo data convert stages/round-2/student/pairs/pairs.jsonl r2.json --to macpo
"""

Format = Annotated[
    FormatChoice,
    typer.Option("--format", help="What the rows look like."),
]
CriterionOption = Annotated[
    Criterion,
    typer.Option("--criterion", help="Which label decides (PKU-SafeRLHF only)."),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="PART=COLUMN,...",
        help="Columns that hold prompt, system, chosen and rejected, such as "
        "prompt=question,chosen=good,rejected=bad.",
    ),
]
HubConfig = Annotated[
    str | None, typer.Option("--hub-config", help="Configuration or folder of a hub data set.")
]
HubSplit = Annotated[str, typer.Option("--hub-split", help="Split of a hub data set.")]
HubRevision = Annotated[
    str | None,
    typer.Option("--hub-revision", help="Branch, tag or commit of a hub data set."),
]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Look at preference data; convert it."
)


@app.callback()
def _data() -> None:
    """Look at preference data; convert it."""


@app.command("check", epilog=CHECK_EXAMPLES)
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A data file, or a hub name.")],
    format: Format = "auto",
    columns: Columns = None,
    criterion: CriterionOption = "helpful",
    hub_config: HubConfig = None,
    hub_split: HubSplit = "train",
    hub_revision: HubRevision = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            help="Count tokens of this model instead of words, and what limits cut off.",
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="NAME",
            help="As the model's chat_template: built in, or a Jinja file.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, help="As limits.prompt_tokens.")
    ] = 512,
    response_tokens: Annotated[
        int, typer.Option("--response-tokens", min=1, help="As limits.response_tokens.")
    ] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read all of PATH and say what is in it: pairs, bad rows, duplicates, lengths, turns."""
    from macpo.data import check_data

    count, chat = load_reader(tokenizer, chat_template)
    from macpo.config import LimitsConfig

    report = check_data(
        path,
        format,
        count,
        chat=chat,
        limits=LimitsConfig(prompt_tokens=prompt_tokens, response_tokens=response_tokens),
        criterion=criterion,
        hub_split=hub_split,
        hub_config=hub_config,
        hub_revision=hub_revision,
        columns=parse_columns(columns),
    )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    from macpo.data import render
    from macpo.report.console import stdout_console

    stdout_console().print(render(report))


@app.command("convert", epilog=CONVERT_EXAMPLES)
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A data file, or a hub name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new file, .json or .jsonl.")],
    to: Annotated[
        Literal["macpo", "trl"],
        typer.Option(
            "--to", help="macpo: the authors' JSON, for LLaMA-Factory; trl: JSON lines for TRL."
        ),
    ],
    format: Format = "auto",
    columns: Columns = None,
    criterion: CriterionOption = "helpful",
    hub_config: HubConfig = None,
    hub_split: HubSplit = "train",
    hub_revision: HubRevision = None,
) -> None:
    """Read all of SOURCE and write its pairs to OUT in another format; say what was left out."""
    from macpo.data import convert_data, render_conversion

    converted = convert_data(
        source,
        out,
        to,
        format,
        criterion=criterion,
        hub_split=hub_split,
        hub_config=hub_config,
        hub_revision=hub_revision,
        columns=parse_columns(columns),
    )
    from macpo.report.console import stdout_console

    stdout_console().print(render_conversion(converted))


def parse_columns(text: str | None) -> dict[str, str] | None:
    """Read what --columns says, as `data.columns` would.

    Raises:
        ConfigError: it is not PART=COLUMN, separated by commas.
    """
    from macpo.errors import ConfigError

    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    if not all(equals and part.strip() and column.strip() for part, equals, column in parts):
        raise ConfigError(
            f"--columns {text!r}: write PART=COLUMN, separated by commas, such as "
            "prompt=question,chosen=good,rejected=bad"
        )
    return {part.strip(): column.strip() for part, _, column in parts}


def load_reader(
    model: str | None, chat_template: str | None
) -> tuple[Tokenizer | None, Chat | None]:
    """Return a function from text to the token ids of a model, and its chat if it has a template.

    The function adds no special tokens.

    Args:
        model: as a config names one; None gives neither.
        chat_template: in place of the model's own.

    Raises:
        ConfigError: `model` is no model's name, or there is a template without a model.
        ModelError: there is no such model, or it has no tokenizer.
    """
    from pydantic import ValidationError

    from macpo.config import ModelConfig
    from macpo.errors import ConfigError
    from macpo.models.chat import Chat
    from macpo.models.loading import load_tokenizer
    from macpo.models.sources import resolve

    if model is None:
        if chat_template is not None:
            raise ConfigError("--chat-template is of a model; name one with --tokenizer MODEL")
        return None, None
    try:
        section = ModelConfig(source=model)
    except ValidationError as error:
        raise ConfigError(f"--tokenizer {model!r}: {error.errors()[0]['msg']}") from None
    tokenizer = load_tokenizer(resolve(section), chat_template)
    encode: Callable[..., list[int]] = tokenizer.encode
    chat = Chat(tokenizer) if tokenizer.chat_template else None
    return lambda text: encode(text, add_special_tokens=False), chat
