"""Drawing for reports: inline SVG, coloured by the page's style sheet, with values to hover over.

All text goes through `Markup.format`, which escapes it. An element's `data-tip` is what the page's
script shows beside the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from macpo.metrics import SHARE
from macpo.report.data import Curve, FilterRound, Point, Series, TrainingLog
from macpo.report.text import shorten

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26
SPREAD_WIDTH, ROW = 340, 44
NAME_CHARACTERS = 40
COLOURS = 7
"""Colours of the style sheet, `c0` for the student; they come round again after the last."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight line from values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value stands."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers inside of a range, about so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= min((1, 2, 5, 10), key=lambda factor: abs(span / (factor * step) - about))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def colour_of(agent: str, agents: Sequence[str]) -> str:
    """Return the class that colours an agent."""
    place = agents.index(agent) if agent in agents else len(agents)
    return f"c{place if place < COLOURS else 1 + (place - 1) % (COLOURS - 1)}"


def curve_chart(curve: Curve, agents: Sequence[str], student: str) -> Markup:
    """Draw a metric over the rounds: a line for each agent, the student's with its interval."""
    drawn = [p for series in curve.series for p in series.points]
    rounds = sorted({point.round for point in drawn})
    own = curve.of(student)
    low, high = _range(curve, drawn, own)
    x = Scale(rounds[0], rounds[-1], LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [
        _grid(ticks(low, high), y, lambda value: tick_text(curve, value)),
        _rounds_axis(rounds, x),
    ]
    if own is not None:
        parts.append(_band(own.points, x, y, (low, high), colour_of(student, agents)))
    for series in sorted(curve.series, key=lambda s: s.agent == student):
        css = colour_of(series.agent, agents) + (" main" if series.agent == student else "")
        parts.append(_line([(x(p.round), y(p.value)) for p in series.points], css))
    parts.append(_hover_rounds(curve, rounds, x))
    label = f"{curve.metric.title} over the rounds"
    return _svg(WIDTH, HEIGHT, label, parts)


def steps_chart(logs: Sequence[TrainingLog], column: str, css: str) -> Markup:
    """Draw a column of an agent's training logs, its stages one after another."""
    points: list[tuple[int, float, str]] = []
    borders = []
    offset = 0
    for log in logs:
        if column not in log.columns:
            continue
        where = "init" if log.round == 0 else f"round {log.round}"
        for step, value in zip(log.steps, log.columns[column], strict=True):
            points.append((offset + step, value, f"{where}, step {step:,}\n{column} {value:.4g}"))
        borders.append((offset, where))
        offset += log.steps[-1] if log.steps else 0
    if not points:
        return Markup("")
    values = [value for _, value, _ in points]
    low, high = _widen(min(values), max(values))
    x = Scale(0, offset, LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_grid(ticks(low, high), y, lambda v: f"{v:.3g}")]
    for start, name in borders:
        parts.append(
            Markup(
                '<line class="border" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
                '<text class="tick" x="{3:.1f}" y="{4}">{5}</text>'
            ).format(x(start), TOP, HEIGHT - BOTTOM, x(start) + 3, HEIGHT - 9, name)
        )
    parts.append(_line([(x(s), y(v)) for s, v, _ in points], css + " thin", dots=False))
    for step, value, tip in points:
        parts.append(
            Markup(
                '<circle class="hit {3}" cx="{0:.1f}" cy="{1:.1f}" r="4" data-tip="{2}"/>'
            ).format(x(step), y(value), tip, css)
        )
    return _svg(WIDTH, HEIGHT, f"{column} over the steps of training", parts)


def filter_chart(found: FilterRound, limits: tuple[float, float], agents: Sequence[str]) -> Markup:
    """Draw a round's candidates: per policy quartiles of perplexity, on a logarithmic axis.

    Args:
        found: the round.
        limits: least and greatest perplexity of the axis, the same in all rounds.
        agents: for colours.
    """
    height = ROW * len(found.spreads) + 30
    low, high = (math.log(max(value, 1e-6)) for value in limits)
    x = Scale(low, high, 6, SPREAD_WIDTH - 6)

    def at(perplexity: float) -> float:
        return x(math.log(max(perplexity, 1e-6)))

    parts = []
    for value in _log_ticks(*limits):
        parts.append(
            Markup(
                '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="6" y2="{1}"/>'
                '<text class="tick middle" x="{0:.1f}" y="{2}">{3:g}</text>'
            ).format(at(value), height - 22, height - 7, value)
        )
    for row, spread in enumerate(found.spreads):
        centre = 30 + ROW * row
        p5, p25, p50, p75, p95 = map(at, spread.quantiles)
        share = spread.won / max(found.prompts, 1)
        tip = (
            f"{spread.policy}: {spread.won:,} of {found.prompts:,} prompts ({share:.0%})\n"
            f"perplexity: median {spread.quantiles[2]:.4g}, "
            f"middle half {spread.quantiles[1]:.4g} to {spread.quantiles[3]:.4g}\n"
            f"5 % to 95 %: {spread.quantiles[0]:.4g} to {spread.quantiles[4]:.4g}"
        )
        if spread.kept_median is not None:
            tip += f"\nof those taken: median {spread.kept_median:.4g}"
        parts.append(
            Markup(
                '<text class="name" x="0" y="{name_y:.1f}">{name}</text><g class="{css}">'
                '<line class="stroke" x1="{p5:.1f}" x2="{p95:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<rect class="box" x="{p25:.1f}" y="{top:.1f}" width="{wide:.1f}" height="14"/>'
                '<line class="median" x1="{p50:.1f}" x2="{p50:.1f}" y1="{top:.1f}" y2="{end:.1f}"/>'
                "{kept}</g>"
            ).format(
                name_y=centre - 13,
                name=shorten(spread.policy, NAME_CHARACTERS),
                css=colour_of(spread.policy, agents),
                p5=p5,
                p95=p95,
                y=centre,
                p25=p25,
                top=centre - 7,
                wide=max(p75 - p25, 1.0),
                p50=p50,
                end=centre + 7,
                kept=_diamond(at(spread.kept_median), centre) if spread.kept_median else "",
            )
        )
        parts.append(_field(0, centre - 26, SPREAD_WIDTH, ROW, tip))
    return _svg(SPREAD_WIDTH, height, f"candidates' perplexities, round {found.round}", parts)


def share_bar(parts: Iterable[tuple[str, float, str, str]]) -> Markup:
    """Draw one bar of shares: (name, amount, class, what to say of it)."""
    given = list(parts)
    total = sum(amount for _, amount, _, _ in given) or 1.0
    drawn, at = [], 0.0
    for name, amount, css, tip in given:
        width = SPREAD_WIDTH * amount / total
        drawn.append(
            Markup(
                '<rect class="part {0}" x="{1:.2f}" y="0" width="{2:.2f}" height="18" '
                'data-tip="{3}"/>'
            ).format(css, at, max(width - 1.5, 0.5), f"{name}: {tip}")
        )
        at += width
    return _svg(SPREAD_WIDTH, 18, "shares", drawn, stretch=True)


def spark(points: Sequence[Point], css: str) -> Markup:
    """Draw a metric in a line of text, without axes."""
    if len(points) < 2:
        return Markup("")
    values = [point.value for point in points]
    low, high = _widen(min(values), max(values))
    x, y = Scale(points[0].round, points[-1].round, 3, 93), Scale(low, high, 25, 3)
    line = _line([(x(p.round), y(p.value)) for p in points], css + " main")
    return _svg(96, 28, "its course", [line], css="spark")


def _svg(
    width: float,
    height: float,
    label: str,
    parts: Iterable[Markup],
    css: str = "chart",
    *,
    stretch: bool = False,
) -> Markup:
    aspect = Markup(' preserveAspectRatio="none"') if stretch else Markup("")
    return Markup(
        '<svg class="{0}" viewBox="0 0 {1:g} {2:g}" role="img" aria-label="{3}"{4}>{5}</svg>'
    ).format(css, width, height, label, aspect, Markup("").join(parts))


def _range(curve: Curve, drawn: Sequence[Point], own: Series | None) -> tuple[float, float]:
    """Return the least and greatest value to draw; the metric's own limits are kept to."""
    values = [point.value for point in drawn]
    for point in own.points if own is not None else ():
        if point.half_width is not None:
            values += [point.value - point.half_width, point.value + point.half_width]
    least, greatest = curve.metric.range
    low, high = _widen(max(min(values), least), min(max(values), greatest))
    return max(low, least), min(high, greatest)


def _widen(low: float, high: float) -> tuple[float, float]:
    """Leave some air above and below."""
    air = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air


def _grid(values: Sequence[float], y: Scale, write: Callable[[float], str]) -> Markup:
    return Markup("").join(
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick end" x="{3}" y="{4:.1f}">{5}</text>'
        ).format(LEFT, WIDTH - RIGHT, y(value), LEFT - 6, y(value) + 3.5, write(value))
        for value in values
    )


def _rounds_axis(rounds: Sequence[int], x: Scale) -> Markup:
    every = max(1, len(rounds) // 8)
    return Markup("").join(
        Markup('<text class="tick {2}" x="{0:.1f}" y="{1}">{3}</text>').format(
            x(number), HEIGHT - 8, _anchor(place, len(rounds)), number or "before"
        )
        for place, number in enumerate(rounds)
        if place % every == 0
    )


def _anchor(place: int, count: int) -> str:
    if count > 1 and place == 0:
        return "start"
    return "end" if count > 1 and place == count - 1 else "middle"


def _band(
    points: Sequence[Point], x: Scale, y: Scale, limits: tuple[float, float], css: str
) -> Markup:
    """Draw the interval around a line."""
    known = [p for p in points if p.half_width is not None]
    if not known:
        return Markup("")

    def edge(point: Point, sign: float) -> str:
        assert point.half_width is not None
        value = min(max(point.value + sign * point.half_width, limits[0]), limits[1])
        return f"{x(point.round):.1f},{y(value):.1f}"

    if len(known) == 1:
        (only,) = known
        ends = [edge(only, sign).split(",")[1] for sign in (1.0, -1.0)]
        whisker = Markup('<line class="whisker {3}" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
        return whisker.format(x(only.round), *ends, css)
    outline = [edge(p, 1.0) for p in known] + [edge(p, -1.0) for p in reversed(known)]
    return Markup('<polygon class="band {1}" points="{0}"/>').format(" ".join(outline), css)


def _line(places: Sequence[tuple[float, float]], css: str, *, dots: bool = True) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = Markup('<polyline class="line {1}" points="{0}"/>').format(path, css)
    if not dots:
        return line
    return line + Markup("").join(
        Markup('<circle class="dot {2}" cx="{0:.1f}" cy="{1:.1f}" r="3"/>').format(x, y, css)
        for x, y in places
    )


def _hover_rounds(curve: Curve, rounds: Sequence[int], x: Scale) -> Markup:
    """Cover each round with a field that tells all values of it."""
    half = (x(rounds[-1]) - x(rounds[0])) / max(len(rounds) - 1, 1) / 2 or 40
    high = HEIGHT - TOP - BOTTOM
    return Markup("").join(
        _field(x(number) - half, TOP, 2 * half, high, round_tip(curve, number)) for number in rounds
    )


def _field(x: float, y: float, width: float, height: float, tip: str) -> Markup:
    """Return a field that nobody sees, for the pointer."""
    return Markup(
        '<rect class="hit" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>'
    ).format(x, y, width, height, tip)


def round_tip(curve: Curve, number: int) -> str:
    """Write everybody's values after a round, a line each."""
    lines = [f"round {number}" if number else "before the first round"]
    for series in curve.series:
        for point in series.points:
            if point.round == number:
                lines.append(f"{series.agent}: {value_text(curve, point)}")
    return "\n".join(lines)


def value_text(curve: Curve, point: Point) -> str:
    """Write a value with its interval."""
    text = curve.metric.format(point.value)
    if point.half_width is None:
        return text
    bound = "at most " if point.at_most else ""
    return f"{text} (± {bound}{curve.metric.format(point.half_width)})"


def tick_text(curve: Curve, value: float) -> str:
    """Write a round number at an axis."""
    if curve.metric.unit == SHARE:
        return f"{100 * value:.4g} %"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.1e}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten inside of a range."""
    first, last = math.floor(math.log10(max(low, 1e-6))), math.ceil(math.log10(max(high, 1e-6)))
    found = [f * 10.0**n for n in range(first, last + 1) for f in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) < 9 else [v for v in inside if math.log10(v).is_integer()]


def _diamond(x: float, y: float) -> Markup:
    corners = (f"{x:.1f},{y - 5:.1f}", f"{x + 5:.1f},{y:.1f}", f"{x:.1f},{y + 5:.1f}")
    return Markup('<path class="kept" d="M{}L{:.1f},{:.1f}z"/>').format("L".join(corners), x - 5, y)
