"""Preference data from any format that macpo reads to one of two that others read too.

`trl` is JSON lines for TRL, `macpo` the JSON list that the MACPO authors released, which
LLaMA-Factory reads. What a format cannot hold is left out and reported, never written altered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from macpo.data.files import ROWS_SUFFIXES
from macpo.data.loading import LoadReport, SkippedRows, SourceOptions, excerpt, read_source
from macpo.data.official import official_row, write_official
from macpo.data.report import render_loading, skipped_table
from macpo.data.turns import BadRow
from macpo.errors import DataError
from macpo.records import PreferenceExample
from macpo.store.atomic import make_directory, write_text_atomic
from macpo.words import FormatChoice

if TYPE_CHECKING:
    from rich.console import RenderableType

Target = Literal["macpo", "trl"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert_data` did: how the source was read, and how many pairs are in `out`.

    `left_out` are the pairs that the format cannot hold, numbered as they were read (1 is the first
    pair); None if there are none.
    """

    loading: LoadReport
    out: Path
    to: Target
    written: int
    left_out: SkippedRows | None


def convert_data(
    source: str,
    out: str | Path,
    to: Target,
    format: FormatChoice = "auto",
    **options: Unpack[SourceOptions],
) -> Conversion:
    """Read all of a data set and write its pairs in another format.

    Duplicates and rows that cannot be used are left out, as they would be from a run.

    Args:
        source: a file or a hub name, as `data.source` in a config; also a run's `pairs.jsonl`.
        out: the new file; its folder is made if need be.
        to: the format of the new file.
        format: as `data.format`.
        **options: as in `data`, see `macpo.data.SourceOptions`.

    Raises:
        DataError: `out` exists or has a name that does not tell JSON; the source cannot be read, an
            option has no effect on it, or no pair is left to write.
        StoreError: `out` cannot be written.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise DataError(f"{out}: exists already; choose another name, or remove it")
    if not out.name.endswith(ROWS_SUFFIXES):
        raise DataError(
            f"{out}: what is written is JSON; give it a name that ends in "
            f"{' or '.join(ROWS_SUFFIXES)}"
        )
    loaded = read_source(source, format, **options)
    fit, left_out = _fit(loaded.examples, to)
    if not fit:
        reason = f"the format {to} can hold none of its pairs" if left_out else "it holds no pair"
        raise DataError(
            f"{loaded.report.source}: {reason}; run macpo data check {source} to see its rows"
        )
    make_directory(out.parent)
    WRITERS[to](out, fit)
    return Conversion(loaded.report, out, to, len(fit), left_out)


def render_conversion(conversion: Conversion) -> RenderableType:
    """Return the report as something that rich prints."""
    from rich.console import Group
    from rich.text import Text

    parts = render_loading(conversion.loading)
    if conversion.left_out is not None:
        title = f"left out: pairs that the format {conversion.to} cannot hold"
        parts.append(skipped_table(title, [conversion.left_out], "pair", "pairs"))
    parts.append(
        Text(f"written: {conversion.out}, {conversion.written:,} pairs in format {conversion.to}")
    )
    return Group(*parts)


def write_trl(path: Path, examples: Iterable[PreferenceExample]) -> None:
    """Write `examples` to `path` as TRL's conversational preference data, one row a line."""
    lines = (json.dumps(example.to_json(), ensure_ascii=False) + "\n" for example in examples)
    write_text_atomic(path, "".join(lines), durable=True)


WRITERS: Mapping[Target, Callable[[Path, Iterable[PreferenceExample]], None]] = {
    "macpo": write_official,
    "trl": write_trl,
}


def _fit(
    examples: Sequence[PreferenceExample], to: Target
) -> tuple[list[PreferenceExample], SkippedRows | None]:
    """Separate the examples that a format can hold from those that it cannot."""
    if to == "trl":
        return list(examples), None
    fit: list[PreferenceExample] = []
    unfit: list[tuple[int, PreferenceExample, BadRow]] = []
    for number, example in enumerate(examples, 1):
        try:
            official_row(example)
        except BadRow as bad:
            unfit.append((number, example, bad))
        else:
            fit.append(example)
    if not unfit:
        return fit, None
    numbers = tuple(number for number, _, _ in unfit)
    _, first, why = unfit[0]
    shown = excerpt(" / ".join(m.content for m in first.prompt.messages))
    return fit, SkippedRows(why.reason, numbers, why.detail, shown)
