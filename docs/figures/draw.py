"""Draws the figures of docs/results.md out of the numbers beside this file: `make figures`.

A CSV file holds what a comparison's tables gave of the student: means over seeds, with the
half-width of their 95 % interval where there are seeds enough, as docs/results-log.md has them.
With `against` a number is the paired difference to that method.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from macpo.compare.drawing import Point, add_legend, draw_bars, draw_line, fit_axis, style
from macpo.metrics import metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
WIDTH = 9.0  # inches: as wide as a page of documentation shows without shrinking its letters
TESTBED, SMOLLM2 = "testbed", "SmolLM2-135M"
SCORE, HELPFULNESS, HARMLESSNESS = "oracle_score", "oracle_helpfulness", "oracle_harmlessness"
KINDS, KL = "oracle_kinds", "kl_initial"
CEILING = "ceiling: ground truth"
BETA = ", beta "
PUBLISHED, STABLE = "published", "stable"
NAMES_AT = {
    "IPO without guard": (4, -12),
    "with guard and filter by lot": (8, 0),
    "with guard and anchor .2": (-5, 4),
    "label smoothing": (5, -11),
    "anchor .3": (-5, -10),
    "start afresh": (-5, -8),
    "weak-to-strong search": (-2, -21),
}
"""In points from theirs: names that would cover others, were they above and to the right."""
LAST_ROUND = 12


@dataclass(frozen=True, slots=True)
class Number:
    """One line of a CSV file."""

    setting: str
    method: str
    against: str
    metric: str
    round: int
    mean: float
    half_width: float | None


def read_numbers(path: Path) -> list[Number]:
    """Read a CSV file of this folder."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Number(
                row["setting"],
                row["method"],
                row["against"],
                row["metric"],
                int(row["round"]),
                float(row["mean"]),
                float(row["half_width"]) if row["half_width"] else None,
            )
            for row in csv.DictReader(file)
        ]


def main_figure(numbers: Sequence[Number]) -> Figure:
    """Draw the score over rounds, and helpfulness and harmlessness after the last one."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    over_rounds, *last = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    methods = ("MACPO", "self-rewarding", "RLAIF", "SPIN", "RLCD", "no DPO term")
    for place, method in enumerate(methods):
        line = [n for n in numbers if (n.method, n.metric) == (method, SCORE)]
        draw_bars(over_rounds, place, len(methods), method, _points(line))
    ceiling = next(n for n in numbers if (n.method, n.metric) == ("ceiling, SFT + DPO", SCORE))
    over_rounds.axhline(ceiling.mean, color="0.4", linewidth=1, linestyle=":")
    over_rounds.annotate("ceiling: ground truth", (0, ceiling.mean - 0.006), va="top", color="0.3")
    over_rounds.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_rounds.set_xlabel("round")
    over_rounds.set_title(f"{metric(SCORE).title}, over rounds", fontsize="medium")
    every = list(dict.fromkeys(n.method for n in numbers))
    for panel, name in zip(last, (HELPFULNESS, HARMLESSNESS), strict=True):
        _dots(panel, [n for n in numbers if n.metric == name], every, methods)
        panel.set_title(
            f"{metric(name).title.removesuffix(' (oracle)')}, last round", fontsize="medium"
        )
    last[0].sharex(last[1])
    last[1].tick_params(labelleft=False)
    add_legend(figure, [over_rounds, *last], below=len(methods))
    return figure


def ablations_figure(numbers: Sequence[Number]) -> Figure:
    """Draw the difference to MACPO of each ablation, round by round."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panel = figure.subplots()
    found = [n for n in numbers if n.against]
    methods = list(dict.fromkeys(n.method for n in found))
    rounds = sorted({n.round for n in found})
    for place, t in enumerate(rounds):
        points = [
            Point(methods.index(n.method) + 0.15 * (place - 1), n.mean, n.half_width)
            for n in found
            if n.round == t
        ]
        draw_bars(panel, place, 1, f"round {t}", points, linestyle="")
    panel.axhline(0, color="0.4", linewidth=1)
    panel.set_xticks(range(len(methods)), [_wrapped(method) for method in methods])
    panel.set_ylabel(f"{metric(SCORE).title}:\ndifference to MACPO")
    add_legend(figure, [panel], below=3)
    return figure


def twelve_rounds_figure(numbers: Sequence[Number]) -> Figure:
    """Draw twelve rounds in the testbed and of a real model."""
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    names = (SCORE, HARMLESSNESS, "gold_perplexity")
    real = ("preference_accuracy", "answer_copying", "gold_perplexity")
    shown = [*((TESTBED, name) for name in names), *((SMOLLM2, name) for name in real)]
    methods = list(dict.fromkeys(n.method for n in numbers))
    for panel, (setting, name) in zip(panels, shown, strict=True):
        for place, method in enumerate(methods):
            line = [
                n for n in numbers if (n.setting, n.method, n.metric) == (setting, method, name)
            ]
            draw_line(panel, place, method, _points(line))
        fit_axis([panel], metric(name))
        panel.set_title(f"{setting}: {metric(name).title}", fontsize="medium")
        panel.set_xticks(range(0, 13, 2))
        if name == "preference_accuracy":
            panel.set_ylim(0.4, 0.8)  # one pair more or less is 0.012
    for panel in panels[3:]:
        panel.set_xlabel("round")
    add_legend(figure, panels, below=len(methods))
    return figure


def references_figure(numbers: Sequence[Number]) -> Figure:
    """Draw the score over rounds by reference and gamma, one panel a reference."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = list(figure.subplots(1, 3, sharey=True))
    found = [n for n in numbers if n.metric == SCORE]
    kinds = ("0.2", "1", "3", "3, twice the step")
    for panel, reference in zip(panels, ("previous", "initial", "base"), strict=True):
        for place, kind in enumerate(kinds):
            line = [n for n in found if n.method == f"{reference}, {kind}"]
            draw_line(panel, place, f"gamma {kind}", _points(line))
        control = [n for n in found if n.method == "no DPO term"]
        draw_line(panel, 6, "no DPO term", _points(control))
        published = " (published: gamma 0.2)" if reference == "previous" else ""
        panel.set_title(f"reference: {reference}{published}", fontsize="medium")
        panel.set_xticks(range(0, 13, 2))
        panel.set_xlabel("round")
    panels[0].set_ylabel(metric(SCORE).title)
    add_legend(figure, panels, below=5)
    return figure


def recipe_figure(numbers: Sequence[Number]) -> Figure:
    """Draw twelve rounds of the stable recipe beside what it is measured against."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = list(figure.subplots(1, 3))
    methods = [m for m in dict.fromkeys(n.method for n in numbers) if m != CEILING]
    for panel, name in zip(panels, (SCORE, HARMLESSNESS, KINDS), strict=True):
        for place, method in enumerate(methods):
            line = [n for n in numbers if (n.method, n.metric) == (method, name)]
            draw_line(panel, place, method, _points(line))
        ceiling = next(n for n in numbers if (n.method, n.metric) == (CEILING, name))
        panel.axhline(ceiling.mean, color="0.4", linewidth=1, linestyle=":")
        if name == SCORE:
            panel.annotate(CEILING, (0, ceiling.mean), va="bottom", color="0.3")
        panel.set_title(metric(name).title, fontsize="medium")
        panel.set_ylim(bottom=0)
        panel.set_xticks(range(0, LAST_ROUND + 1, 2))
        panel.set_xlabel("round")
    add_legend(figure, panels, below=len(methods))
    return figure


def front_figure(numbers: Sequence[Number]) -> Figure:
    """Draw score against kinds of answers after each method's last round.

    A large mark is the mean over seeds, a small one a seed. Betas of one recipe are joined, and
    what has none is named where it stands.
    """
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panel = figure.subplots()
    families = dict.fromkeys(_family(n) for n in numbers)
    dials = [f for f in families if any(n.method.startswith(f + BETA) for n in numbers)]
    for family in families:
        look = style(dials.index(family)) if family in dials else {"color": "0.35", "marker": "o"}
        centres = []
        for method in dict.fromkeys(n.method for n in numbers if _family(n) == family):
            kinds, scores = (
                [n.mean for n in numbers if (n.method, n.metric) == (method, name)]
                for name in (KINDS, SCORE)
            )
            panel.scatter(kinds, scores, s=8, alpha=0.3, color=look["color"])
            centres.append((fmean(kinds), fmean(scores)))
            label = method.removeprefix(family).removeprefix(BETA) or method
            panel.annotate(
                label,
                centres[-1],
                xytext=(at := NAMES_AT.get(family, (5, 4))),
                ha="right" if at[0] < 0 else "left",
                textcoords="offset points",
                color=look["color"],
                fontsize="small",
            )
        shown = family if family in dials else None
        panel.plot(*zip(*centres, strict=True), label=shown, markersize=6, **look)
    panel.set_xlabel(f"{metric(KINDS).title}, last round")
    panel.set_ylabel(f"{metric(SCORE).title}, last round")
    panel.set_ylim(bottom=-0.02)
    panel.margins(x=0.12)  # room for the names
    add_legend(figure, [panel], below=len(dials))
    return figure


def drift_figure(numbers: Sequence[Number]) -> Figure:
    """Draw score against KL to round 0, one panel a cure and one line a seed.

    Each panel has the published recipe and the stable one, too, which a cure is to be held against.
    """
    cures = [m for m in dict.fromkeys(n.method for n in numbers) if m not in (PUBLISHED, STABLE)]
    columns = 5
    rows = -(-len(cures) // columns)
    figure = Figure(figsize=(WIDTH, 2.0 * rows + 0.7), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for panel, cure in zip(panels, cures, strict=False):
        for place, method in ((1, PUBLISHED), (0, STABLE), (2, cure)):
            own = method == cure
            look = style(place) | ({"markersize": 3} if own else {"alpha": 0.35, "marker": ""})
            found = [n for n in numbers if n.method == method]
            for seed in dict.fromkeys(n.setting for n in found):
                drift, scores = (
                    [
                        p.mean
                        for p in _points(
                            [n for n in found if (n.setting, n.metric) == (seed, name)]
                        )
                    ]
                    for name in (KL, SCORE)
                )
                panel.plot(drift, scores, label="the cure" if own else method, **look)
        panel.set_title(cure, fontsize="medium")
        panel.set_xscale("log")
        panel.minorticks_off()
    for panel in panels[len(cures) :]:
        panel.set_axis_off()
    for panel in panels[len(cures) - columns : len(cures)]:
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("KL, nats an answer", fontsize="small")
    figure.supylabel(metric(SCORE).title)
    add_legend(figure, panels[: len(cures)], below=3)
    return figure


def _family(number: Number) -> str:
    """Return a method without its beta."""
    return number.method.partition(BETA)[0]


FIGURES: dict[str, Callable[[Sequence[Number]], Figure]] = {
    "main": main_figure,
    "ablations": ablations_figure,
    "twelve-rounds": twelve_rounds_figure,
    "references": references_figure,
    "recipe": recipe_figure,
    "front": front_figure,
    "drift": drift_figure,
}


def draw(folder: Path, form: str = "svg") -> Iterator[Path]:
    """Draw all figures; equal numbers give equal files."""
    with matplotlib.rc_context({"svg.hashsalt": "macpo", "font.size": 9}):
        for name, make in FIGURES.items():
            figure = make(read_numbers(HERE / f"{name}.csv"))
            image = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if form == "svg" else None
            figure.savefig(image, format=form, dpi=150, facecolor="white", metadata=metadata)
            path = folder / f"{name}.{form}"
            path.write_bytes(image.getvalue())
            yield path


def _points(line: Sequence[Number]) -> list[Point]:
    return [Point(n.round, n.mean, n.half_width) for n in sorted(line, key=lambda n: n.round)]


def _dots(
    panel: Axes, numbers: Sequence[Number], methods: Sequence[str], coloured: Sequence[str]
) -> None:
    """Draw the last round of each method with its interval, one method below the other."""
    for row, method in enumerate(methods):
        last = max((n for n in numbers if n.method == method), key=lambda n: n.round)
        look = (
            style(coloured.index(method)) if method in coloured else {"color": "0.4", "marker": "o"}
        )
        panel.errorbar(last.mean, row, xerr=last.half_width or 0, capsize=3, markersize=5, **look)
    panel.set_yticks(range(len(methods)), methods)
    panel.invert_yaxis()


def _wrapped(label: str) -> str:
    """Break a label that would not fit beside the others."""
    return label.replace(" (", "\n(")


def main() -> None:
    """Draw the figures and say where they are."""
    parser = argparse.ArgumentParser(description="Draw the figures of docs/results.md.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the figures")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    for path in draw(options.out, options.format):
        print(path)


if __name__ == "__main__":
    main()
