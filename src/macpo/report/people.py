"""What people's judgments come to, shown: `macpo annotate results`, and the words of a report."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from macpo.annotation.results import Agreement, Results
from macpo.report.text import format_seconds, plain_line, plural


def render_results(results: Results) -> RenderableType:
    """Return the results of a file as something that rich prints."""
    one, other = plain_line(results.one), plain_line(results.other)
    parts: list[RenderableType] = [
        Text(f"{one} against {other}", style="bold"),
        Text(
            f"{results.judged} of {plural(results.pairs, 'pair')} judged, by "
            f"{plural(len(results.annotators), 'annotator')} in "
            f"{plural(results.judgments, 'judgment')}"
        ),
    ]
    if results.judgments:
        parts += [_sides(results, one, other), _people(results, one)]
    if results.agreement is not None:
        parts.append(_agreement(results.agreement))
    parts.append(Text(plain_line(str(results.path)), style="dim"))
    return Group(*parts)


def interval(rate: float | None, half_width: float | None) -> str:
    """Write a rate with its interval; with few prompts this would go beyond what a rate can be."""
    if rate is None:
        return "-"
    if half_width is None:
        return f"{100 * rate:.1f} %"
    low, high = max(rate - half_width, 0), min(rate + half_width, 1)
    return f"{100 * rate:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def in_one_sentence(results: Results) -> str:
    """Say on one line how often the first side won."""
    return (
        f"By people's judgments {results.one} won {interval(results.win_rate, results.half_width)} "
        f"against {results.other}, a tie half a win: {plural(results.judgments, 'judgment')} of "
        f"{plural(results.judged, 'pair')} by {plural(len(results.annotators), 'annotator')}."
    )


def agreement_rows(agreement: Agreement) -> list[tuple[str, str]]:
    """List measures of agreement with their values, 1 fully and 0 as chance would have it."""
    rows = [("Krippendorff's alpha", _number(agreement.alpha))]
    rows += [
        (f"Cohen's kappa, {plain_line(names)}", _number(kappa))
        for names, kappa in agreement.cohen.items()
    ]
    by_all = f"Fleiss' kappa, on {agreement.judged_by_all} that everybody judged"
    rows.append((by_all, _number(agreement.fleiss)))
    if agreement.agreed is not None:
        rows.insert(0, ("the same said by two", f"{100 * agreement.agreed:.0f} %"))
    return rows


def _sides(results: Results, one: str, other: str) -> Table:
    """Show both sides' wins; intervals are 95 %, clustered by prompt."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("side")
    for name in ("won", "tied", "lost", "win rate, ties half", "win rate without ties"):
        table.add_column(name, justify="right")
    rate, without = results.win_rate, results.win_rate_without_ties
    halves = results.half_width, results.half_width_without_ties
    rows = (
        (one, results.wins, results.losses, rate, without),
        (other, results.losses, results.wins, _rest(rate), _rest(without)),
    )
    for name, won, lost, rate, without in rows:
        shown = (interval(rate, halves[0]), interval(without, halves[1]))
        table.add_row(name, str(won), str(results.ties), str(lost), *shown)
    return table


def _people(results: Results, one: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("by")
    for name in ("judged", f"{one} won, ties half", "ties", "chose the left", "median time"):
        table.add_column(name, justify="right")
    for person in results.annotators:
        table.add_row(
            plain_line(person.name),
            str(person.judged),
            f"{100 * person.win_rate:.0f} %",
            str(person.ties),
            "-" if person.left_rate is None else f"{100 * person.left_rate:.0f} %",
            "-" if person.median_seconds is None else format_seconds(person.median_seconds),
        )
    return table


def _agreement(agreement: Agreement) -> Text:
    """Show how far people agree."""
    lines = [f"agreement on {plural(agreement.shared, 'pair')} that several people judged:"]
    lines += [f"  {name}: {value}" for name, value in agreement_rows(agreement)]
    return Text("\n".join(lines))


def _rest(rate: float | None) -> float | None:
    return None if rate is None else 1 - rate


def _number(value: float | None) -> str:
    return "cannot be told" if value is None else f"{value:.2f}"
