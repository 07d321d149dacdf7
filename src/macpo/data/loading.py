"""From a source to preference examples, with an account of every row that was not taken.

A row is read, parsed in its format, its turns joined where one speaker had two in a row; then bad
rows are counted by reason and duplicates dropped. Up to `max_bad_rows` bad rows are skipped; one
more is an error, because by then the file or the format is wrong, not some rows.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from macpo.data.columns import Columns
from macpo.data.formats import (
    NamedFormat,
    Shape,
    detect_format,
    get_shape,
    named_shape,
    why_undetected,
)
from macpo.data.rows import RawRow, RowSource, bounded
from macpo.data.sources import find_source, refuse_unused
from macpo.data.turns import MESSAGE_FIELDS, BadRow, is_absent, join_turns, json_type, prompt_key
from macpo.errors import DataError
from macpo.records import PreferenceExample
from macpo.words import Criterion, FormatChoice, FormatName

if TYPE_CHECKING:
    from macpo.config import DataConfig

DETECTION_ROWS = 100
EXCERPT_CHARACTERS = 80
MENDING = "mend them, or raise data.max_bad_rows to skip them"


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """Rows skipped for one reason; `detail` and `excerpt` are those of the first of them."""

    reason: str
    numbers: tuple[int, ...]
    detail: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of the rows of one source.

    Every row is in exactly one of: a pair, `duplicates` (row numbers of pairs seen before with the
    same prompt and answers), `skipped`. `prompts` counts prompts that differ in more than
    whitespace; `joined` the rows in which one speaker had several turns in a row. `unread` are
    fields that the format does not read, with the number of rows in which they say something.
    """

    source: str
    format: NamedFormat
    title: str
    detected: bool
    unit: str
    rows: int
    pairs: int
    prompts: int
    joined: int
    duplicates: tuple[int, ...]
    skipped: tuple[SkippedRows, ...]
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def bad_rows(self) -> int:
        """Number of rows skipped, for whatever reason."""
        return sum(len(entry.numbers) for entry in self.skipped)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "bad_rows": self.bad_rows}


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Examples in the order of their rows, and the report on how they were had."""

    examples: tuple[PreferenceExample, ...]
    report: LoadReport


@dataclass(slots=True)
class _Tally:
    """The running account of one reading; of bad rows it keeps the first of each reason."""

    rows: int = 0
    bad_rows: int = 0
    joined: int = 0
    examples: list[PreferenceExample] = field(default_factory=list)
    seen: set[PreferenceExample] = field(default_factory=set)
    duplicates: list[int] = field(default_factory=list)
    first: dict[str, tuple[RawRow, BadRow]] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)

    def add_bad(self, row: RawRow, bad: BadRow) -> None:
        """Count a bad row."""
        self.bad_rows += 1
        self.first.setdefault(bad.reason, (row, bad))
        self.numbers.setdefault(bad.reason, []).append(row.number)

    def skipped(self) -> tuple[SkippedRows, ...]:
        """Sum up the bad rows by reason, the most frequent first."""
        entries = (
            SkippedRows(reason, tuple(self.numbers[reason]), bad.detail, excerpt(row.value))
            for reason, (row, bad) in self.first.items()
        )
        return tuple(sorted(entries, key=lambda entry: -len(entry.numbers)))


def load_preferences(config: DataConfig) -> LoadedData:
    """Read the preference data that `config` describes.

    Raises:
        DataError: the source cannot be read, its format is not known, more rows are bad than
            `max_bad_rows` allows, no pair is left, or `config` sets something without effect.
    """
    loaded = read_preferences(config, max_bad_rows=config.max_bad_rows)
    if not loaded.examples:
        raise DataError(
            f"{loaded.report.source}: no pair could be used of {loaded.report.rows} rows as format "
            f"{loaded.report.format} ({_reasons(loaded.report.skipped)}); check data.format"
        )
    return loaded


def refuse_bad_rows(config: DataConfig, bad: int, rows: int) -> None:
    """Refuse data that was read before, if `config` allows fewer bad rows now.

    Raises:
        DataError: so many of its `rows` are `bad`.
    """
    limit = config.max_bad_rows
    if _too_many(bad, limit, rows):
        raise DataError(
            f"{config.source}: {bad} of {rows} rows are bad, more than data.max_bad_rows {limit:g} "
            f"allows; {MENDING}"
        )


def source_digest(config: DataConfig) -> str:
    """Return a digest of the source's content, for stage keys, without parsing it.

    For a file, the SHA-256 of its bytes (its name and place do not matter); for a data set of the
    hub, a digest of its revision, configuration and split. Format, criterion and limits are not
    part of it.

    Raises:
        DataError: the source cannot be read or resolved.
    """
    return find_source(config.source).digest(config)


def read_preferences(config: DataConfig, max_bad_rows: float = math.inf) -> LoadedData:
    """Read all rows; stop past `max_bad_rows`, a count if >= 1, else a fraction of all rows.

    Raises:
        DataError: as `load_preferences`, but for an empty result.
    """
    place = find_source(config.source)
    refuse_unused(place, config)
    source = place.open(config)
    source = replace(source, rows=bounded(source.rows))
    head = list(itertools.islice(source.rows, DETECTION_ROWS))
    if not head:
        raise DataError(f"{source.name}: holds no rows; check that it was written in full")
    format, shape = _shape(config, source, head)
    if config.criterion != "helpful" and format != "pku":
        raise DataError(
            f"data.criterion: {config.criterion} has no effect on format {format}, only on pku; "
            "remove it"
        )
    tally = _Tally()
    total = source.total
    for row in itertools.chain(head, source.rows):
        good = _take(tally, row, shape)
        if not good and _too_many(tally.bad_rows, max_bad_rows, total):
            raise _too_many_error(source, tally, max_bad_rows, format, head)
    if _too_many(tally.bad_rows, max_bad_rows, tally.rows):
        raise _too_many_error(source, tally, max_bad_rows, format, head)
    report = LoadReport(
        source=source.name,
        format=format,
        title=shape.title,
        detected=config.format == "auto" and config.columns is None,
        unit=source.unit,
        rows=tally.rows,
        pairs=len(tally.examples),
        prompts=len({prompt_key(prompt) for prompt in {e.prompt for e in tally.examples}}),
        joined=tally.joined,
        duplicates=tuple(tally.duplicates),
        skipped=tally.skipped(),
        unread=dict(sorted(tally.unread.items())),
    )
    return LoadedData(tuple(tally.examples), report)


class SourceOptions(TypedDict, total=False):
    """How a data set is read that is named outside of a config: keys of its section `data`."""

    criterion: Criterion
    hub_split: str
    hub_config: str | None
    hub_revision: str | None
    columns: Mapping[str, str] | None


def read_source(
    source: str, format: FormatChoice = "auto", **options: Unpack[SourceOptions]
) -> LoadedData:
    """Read all of a data set that is named outside of a config; bad rows are reported, all of them.

    Args:
        source: a file or a hub name, as `data.source`.
        format: as `data.format`.
        **options: as in `data`.

    Raises:
        DataError: an option is not valid or has no effect, or the source cannot be read.
    """
    from pydantic import ValidationError

    from macpo.config import DataConfig

    try:
        config = DataConfig.model_validate({"source": source, "format": format, **options})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "data"
        raise DataError(f"{where}: {fault['msg']} (got {fault['input']!r})") from None
    return read_preferences(config)


def _shape(config: DataConfig, source: RowSource, head: list[RawRow]) -> tuple[NamedFormat, Shape]:
    """Return the format that the config names, or else that of the first rows."""
    if config.columns is not None:
        columns = Columns(**config.columns.as_columns())
        _check_columns(columns, source, head)
        return "columns", named_shape(columns)
    format = _detect(source, head) if config.format == "auto" else config.format
    return format, get_shape(format, config.criterion)


def _check_columns(columns: Columns, source: RowSource, head: list[RawRow]) -> None:
    """Refuse columns that none of the first rows has."""
    there = {str(name): None for r in head if isinstance(r.value, Mapping) for name in r.value}
    for name in columns.names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DataError(
                f"{source.name}: has no column {name!r}, which data.columns names; {hint}"
                f"its columns: {excerpt(', '.join(there)) or 'none'}"
            )


def _detect(source: RowSource, head: list[RawRow]) -> FormatName:
    """Find the format of the first rows."""
    found = detect_format(row.value for row in head if row.bad is None)
    if found is not None:
        return found
    first = head[0]
    remedy = "write one JSON object a line, see docs/data.md"
    if first.bad is not None:
        seen = str(first.bad)
    elif isinstance(first.value, Mapping):
        seen = f"its fields: {excerpt(', '.join(map(str, first.value))) or 'none'}"
        remedy = why_undetected(first.value)
    else:
        seen = json_type(first.value)
    raise DataError(
        f"{source.name}: none of the first {len(head)} rows fits a known format "
        f"({source.unit} {first.number}: {seen}); {remedy}"
    )


def _take(tally: _Tally, row: RawRow, shape: Shape) -> bool:
    """Enter one row into the tally; return whether it was good."""
    tally.rows += 1
    try:
        if row.bad is not None:
            raise row.bad
        if not isinstance(row.value, Mapping):
            raise BadRow("not an object", json_type(row.value))
        example = shape.read(row.value)
    except BadRow as bad:
        tally.add_bad(row, bad)
        return False
    tally.unread.update(_unread(row.value, shape))
    prompt = join_turns(example.prompt)
    if prompt is not example.prompt:
        tally.joined += 1
        example = PreferenceExample(prompt, example.chosen, example.rejected)
    if example in tally.seen:
        tally.duplicates.append(row.number)
    else:
        tally.seen.add(example)
        tally.examples.append(example)
    return True


def _unread(row: Mapping[str, Any], shape: Shape) -> Iterator[str]:
    """Yield the fields of a row that say something and are not read, those of messages too."""
    for name, value in row.items():
        if name not in shape.reads:
            if not is_absent(value) and not shape.reads_value(value):
                yield str(name)
        elif isinstance(value, list):
            inside = {key for m in value if isinstance(m, Mapping) for key in m if m[key]}
            yield from (f"{name}[].{key}" for key in inside - set(MESSAGE_FIELDS))


def _too_many(bad: int, limit: float, rows: int | None) -> bool:
    """Say whether `bad` rows of `rows` (None while not yet known) are past the limit."""
    if limit >= 1 or limit == 0:
        return bad > limit
    return rows is not None and bad > limit * rows + 1e-9


def _too_many_error(
    source: RowSource, tally: _Tally, limit: float, format: NamedFormat, head: list[RawRow]
) -> DataError:
    """Say which rows are bad, and what to do about it."""
    row, bad = next(iter(tally.first.values()))
    remedy = MENDING
    if not tally.examples:
        other = detect_format(r.value for r in head if r.bad is None)
        if other is not None and other != format:
            remedy = f"the rows look like format {other}: set data.format to it, or to auto"
    return DataError(
        f"{source.name}, {source.unit} {row.number}: {bad}; that makes {tally.bad_rows} bad of "
        f"{tally.rows} rows read as format {format} ({_reasons(tally.skipped())}), more than "
        f"data.max_bad_rows {limit:g} allows; {remedy}"
    )


def _reasons(skipped: Iterable[SkippedRows]) -> str:
    """Write the counts by reason."""
    return ", ".join(f"{len(entry.numbers)} {entry.reason}" for entry in skipped)


def excerpt(value: object) -> str:
    """Return the start of a row on one printable line: the text may be hostile to a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"
