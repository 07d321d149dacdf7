"""What is in a data set, for people to look at before they train on it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Unpack

from macpo.data.loading import LoadReport, SkippedRows, SourceOptions, read_source
from macpo.records import PreferenceExample, Prompt
from macpo.words import FormatChoice

if TYPE_CHECKING:
    from rich.console import RenderableType

    from macpo.config import LimitsConfig
    from macpo.data.cuts import Cuts
    from macpo.models.chat import Chat

Tokenizer = Callable[[str], Sequence[int]]
"""Text to token ids, without special tokens."""

SHOWN_NUMBERS = 8
PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths; `p95` is the nearest rank: 95 % are at most so long."""

    mean: float
    median: float
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """What `check_data` found.

    `turns` counts pairs by the number of user turns in their prompt. `lengths` has the keys
    prompt, chosen, rejected, in `unit`, over pairs; a prompt's length is that of its texts, without
    what a chat template adds. Empty if no row could be used. `opposed` counts the pairs whose
    answers another pair of the same prompt ranks the other way round. `cuts` is what limits would
    cut off, where a chat was given.
    """

    loading: LoadReport
    turns: Mapping[int, int]
    unit: Literal["tokens", "words"]
    lengths: Mapping[str, Lengths]
    chosen_longer: int
    rejected_longer: int
    opposed: int
    cuts: Cuts | None = None

    @property
    def multi_turn_share(self) -> float:
        """Share of pairs whose prompt has more than one user turn; 0 if there are no pairs."""
        return sum(n for turns, n in self.turns.items() if turns > 1) / max(self.loading.pairs, 1)

    @property
    def chosen_longer_share(self) -> float:
        """Share of pairs whose chosen answer is the longer one; 0 if there are no pairs."""
        return self.chosen_longer / max(self.loading.pairs, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "loading": self.loading.to_json(),
            "turns": {str(turns): pairs for turns, pairs in self.turns.items()},
            "multi_turn_share": self.multi_turn_share,
            "unit": self.unit,
            "lengths": {part: asdict(lengths) for part, lengths in self.lengths.items()},
            "chosen_longer": self.chosen_longer,
            "rejected_longer": self.rejected_longer,
            "chosen_longer_share": self.chosen_longer_share,
            "opposed": self.opposed,
            "cuts": None if self.cuts is None else asdict(self.cuts),
        }


def check_data(
    source: str,
    format: FormatChoice = "auto",
    tokenizer: Tokenizer | None = None,
    *,
    chat: Chat | None = None,
    limits: LimitsConfig | None = None,
    **options: Unpack[SourceOptions],
) -> DataReport:
    """Read all of a data set and describe it; bad rows are reported, however many there are.

    Args:
        source: a file or a hub name, as `data.source` in a config.
        format: as `data.format`.
        tokenizer: text to ids, without special tokens; by default words are counted.
        chat: a tokenizer with its template, to count what limits cut off.
        limits: as `limits`, for that.
        **options: as in `data`, see `macpo.data.SourceOptions`.

    Raises:
        DataError: the source cannot be read, holds no rows, or none in a known format; or an
            option has no effect on it.
        TypeError: `tokenizer` returns no ids.
    """
    loaded = read_source(source, format, **options)
    report = describe(loaded.examples, loaded.report, tokenizer)
    if chat is None:
        return report
    from macpo.config import LimitsConfig
    from macpo.data.cuts import count_cuts

    return replace(report, cuts=count_cuts(chat, loaded.examples, limits or LimitsConfig()))


def describe(
    examples: Sequence[PreferenceExample],
    loading: LoadReport,
    tokenizer: Tokenizer | None = None,
) -> DataReport:
    """Describe loaded examples; see `check_data`."""
    count = _word_count if tokenizer is None else _token_counter(tokenizer)
    of_prompt: dict[Prompt, int] = {}
    lengths: dict[str, list[int]] = {part: [] for part in PARTS}
    for example in examples:
        if example.prompt not in of_prompt:
            of_prompt[example.prompt] = sum(count(m.content) for m in example.prompt.messages)
        lengths["prompt"].append(of_prompt[example.prompt])
        lengths["chosen"].append(count(example.chosen))
        lengths["rejected"].append(count(example.rejected))
    sides = list(zip(lengths["chosen"], lengths["rejected"], strict=True))
    turns = Counter(sum(m.role == "user" for m in e.prompt.messages) for e in examples)
    ranked = {(e.prompt, e.chosen, e.rejected) for e in examples}
    return DataReport(
        loading=loading,
        turns=dict(sorted(turns.items())),
        unit="words" if tokenizer is None else "tokens",
        lengths={part: _summarise(values) for part, values in lengths.items() if values},
        chosen_longer=sum(chosen > rejected for chosen, rejected in sides),
        rejected_longer=sum(chosen < rejected for chosen, rejected in sides),
        opposed=sum((prompt, worse, better) in ranked for prompt, better, worse in ranked),
    )


def render(report: DataReport) -> RenderableType:
    """Return the report as something that rich prints."""
    from rich.console import Group
    from rich.text import Text

    loading = report.loading
    parts = render_loading(loading)
    if report.opposed:
        parts.append(Text(f"{report.opposed:,} pairs rank two answers against another pair"))
    if loading.pairs:
        turns = ", ".join(f"{turns}: {pairs:,}" for turns, pairs in report.turns.items())
        parts.append(_lengths_table(report))
        parts.append(
            Text(
                f"user turns in the prompt: {turns} pairs ({report.multi_turn_share:.0%} "
                f"multi-turn)\nchosen is the longer answer in {report.chosen_longer_share:.0%} of "
                f"pairs, rejected in {report.rejected_longer / loading.pairs:.0%}"
            )
        )
    if report.cuts is not None:
        parts += [Text(line) for line in report.cuts.lines()]
        if report.cuts.warning is not None:
            parts.append(Text(f"warning: {report.cuts.warning}", style="yellow"))
    return Group(*parts)


def render_loading(loading: LoadReport) -> list[RenderableType]:
    """Return what became of the rows of a source as things that rich prints."""
    from rich.text import Text

    how = "detected" if loading.detected else "as told"
    lines = [
        f"{loading.source}: format {loading.format} ({how}): {loading.title}",
        f"{loading.rows:,} rows: {loading.pairs:,} pairs on {loading.prompts:,} prompts, "
        f"{len(loading.duplicates):,} duplicates dropped, {loading.bad_rows:,} bad rows skipped",
    ]
    if loading.duplicates:
        lines.append(f"duplicates: {_numbers(loading.unit, loading.duplicates)}")
    if loading.joined:
        lines.append(f"{loading.joined:,} rows with neighbouring turns of one speaker, now joined")
    if loading.unread:
        fields = ", ".join(f"{name} ({rows:,} rows)" for name, rows in loading.unread.items())
        lines.append(f"not read: {fields}")
    parts: list[RenderableType] = [Text(line) for line in lines]
    if loading.skipped:
        parts.append(skipped_table("skipped rows", loading.skipped, loading.unit, "rows"))
    return parts


def skipped_table(
    title: str, entries: Sequence[SkippedRows], unit: str, units: str
) -> RenderableType:
    """Lay out what was skipped, in so many units; texts of the data are never read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in ("reason", units, "where", "first of them"):
        table.add_column(heading, justify="right" if heading == units else "left")
    for entry in entries:
        first = f"{entry.detail}: {entry.excerpt}" if entry.detail else entry.excerpt
        table.add_row(
            entry.reason,
            f"{len(entry.numbers):,}",
            _numbers(unit, entry.numbers),
            Text(first),
        )
    return table


def _lengths_table(report: DataReport) -> RenderableType:
    """Lay out the lengths."""
    from rich.table import Table

    table = Table(title=f"lengths in {report.unit}", title_justify="left")
    table.add_column("")
    for heading in ("mean", "median", "p95", "max"):
        table.add_column(heading, justify="right")
    for part, lengths in report.lengths.items():
        numbers = (lengths.mean, lengths.median, lengths.p95, lengths.max)
        table.add_row(part, *(f"{number:,.0f}" for number in numbers))
    return table


def _numbers(unit: str, numbers: Sequence[int]) -> str:
    """Write row numbers, the first few."""
    shown = ", ".join(map(str, numbers[:SHOWN_NUMBERS]))
    more = len(numbers) - SHOWN_NUMBERS
    return f"{unit}{'s' if len(numbers) > 1 else ''} {shown}" + (f", {more} more" * (more > 0))


def _summarise(values: Sequence[int]) -> Lengths:
    """Sum up a distribution that is not empty."""
    ordered = sorted(values)
    return Lengths(
        mean=statistics.fmean(ordered),
        median=statistics.median(ordered),
        p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
        max=ordered[-1],
    )


def _word_count(text: str) -> int:
    """Count the words of a text: what whitespace separates."""
    return len(text.split())


def _token_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Return a function that counts tokens."""

    def count(text: str) -> int:
        ids: object = tokenizer(text)
        if not isinstance(ids, Sequence):
            # transformers' tokenizers, when called, return a mapping, whose length is no count.
            raise TypeError(f"tokenizer returned {type(ids).__name__}, not ids; pass its encode")
        return len(ids)

    return count
