"""Rendering reports as one self-contained HTML file: nothing is read here but the templates.

Whatever a model or a data set wrote is text to the page. Templates escape all values; transcripts
travel as JSON in which no markup can end the element that holds it, and the script shows them by
`textContent`. Should something slip through all the same, the page's own policy lets no other
script run, and nothing be asked of any server.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from macpo.annotation.results import Results
from macpo.metrics import SHARE, Metric
from macpo.report import charts
from macpo.report.data import (
    Change,
    Curve,
    FilterRound,
    RunReport,
    Series,
    StageRow,
    Tokens,
    TrainingLog,
    Transcript,
)
from macpo.report.headline import headline
from macpo.report.people import agreement_rows, interval
from macpo.report.text import format_count, format_seconds, plural
from macpo.report.transcripts import best_side
from macpo.version import __version__

BEFORE_AFTER = 3
TOLD_OF_ANSWERS = 4
"""Measurements that stand under an answer in a transcript."""

KINDS = {
    "respond": ("answering", "c0"),
    "score": ("scoring", "c3"),
    "sft": ("training: SFT", "c2"),
    "dpo": ("training: DPO + SFT", "c1"),
}
"""Kinds of stages that are told apart, with their colours; all others are measuring and data."""

OTHER_WORK = ("data and measuring", "c6")

TRAINING_BEGINNINGS = ("train_", "chosen_", "rejected_")
"""Of metrics of what a policy learned from, and not of what it says (`macpo.metrics.PREFIXES`)."""


@dataclass(frozen=True, slots=True)
class KindRow:
    """Work of one kind, summed up."""

    title: str
    css: str
    stages: int
    seconds: float
    share: float
    tokens: float


def render_run(report: RunReport, now: datetime | None = None) -> str:
    """Return the report of a run as HTML.

    Args:
        report: as `macpo.report.gather` gathered it.
        now: when it is made; by default now.
    """
    found = headline(report)
    return render_page(
        "run.html.j2",
        _run_filters(report),
        now,
        report=report,
        headline=found,
        pages=_pages(report),
    )


def render_page(
    template: str, filters: dict[str, Callable[..., Any]], now: datetime | None, **values: Any
) -> str:
    """Fill a template of this package, with the page's style, script and policy.

    Args:
        template: its name.
        filters: what it writes values with, besides those of all pages.
        now: when the page is made; by default now.
        **values: what it shows.
    """
    environment = Environment(
        loader=PackageLoader("macpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plural": plural,
        "count": format_count,
        "duration": format_seconds,
        "way": _way,
        "delta": _delta,
        **filters,
    }
    style, script = _asset("report.css"), _asset("report.js")
    moment = now or datetime.now(UTC)
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        version=__version__,
        made=f"{moment:%Y-%m-%d %H:%M} UTC",
        **values,
    )


def script_json(value: Any) -> Markup:
    """Return JSON that may stand inside of a script element, whatever texts it holds.

    `<`, `>` and `&` are written as escapes, so that neither `</script>` nor `<!--` can come about;
    so is everything beyond ASCII, U+2028 and halves of surrogate pairs included.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    folder = resources.files("macpo.report") / "templates"
    return (folder / name).read_text(encoding="utf-8").strip()


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this style, this script, nothing else."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


_KEPT = {
    "perplexity": "the one that it finds least perplexing",
    "typical": "the one that it finds about as perplexing as its own",
    "random": "one that is drawn by lot",
}
"""What of all candidates a filter keeps; other filters go by their name."""


def _run_filters(report: RunReport) -> dict[str, Callable[..., Any]]:
    """Return what the run's template writes values with."""
    agents = [report.student, *(a for a in report.agents if a != report.student)]
    spreads = [s for found in report.filters for s in found.spreads]
    agents += [s.policy for s in spreads if s.policy not in agents]
    ends = [q for s in spreads for q in (s.quantiles[0], s.quantiles[4])] or [1.0, 10.0]
    limits = (0.9 * min(ends), 1.1 * max(ends))

    def colour(agent: str) -> str:
        return charts.colour_of(agent, agents)

    def wins_bar(found: FilterRound) -> Markup:
        return charts.share_bar(
            (s.policy, s.won, colour(s.policy), f"{s.won:,} of {found.prompts:,} prompts")
            for s in found.spreads
        )

    return {
        "colour": colour,
        "curve_chart": lambda curve: charts.curve_chart(curve, agents, report.student),
        "filter_chart": lambda found: charts.filter_chart(found, limits, agents),
        "wins_bar": wins_bar,
        "kinds_bar": _kinds_bar,
        "verdicts_bar": _verdicts_bar,
        "interval": lambda rates: interval(*rates),
        "agreement_rows": agreement_rows,
        "tokens": _tokens,
        "value_at": _value_at,
    }


def _pages(report: RunReport) -> dict[str, Any]:
    """Return what the run's template shows, put in order."""
    learned = [c for c in report.curves if c.metric.name.startswith(TRAINING_BEGINNINGS)]
    said = [c for c in report.curves if c not in learned]
    training = [found for c in learned if (found := _in_rounds(c)).series]
    primary = [c for c in said if c.metric.shown == "everywhere"] or said
    points = [p for c in primary if (own := c.of(report.student)) for p in own.points]
    last = [f.examples for f in report.filters if f.round == max(g.round for g in report.filters)]
    rounds = {p.round for c in report.curves for s in c.series for p in s.points}
    speakers = {a.agent: None for t in report.transcripts.shown for a in t.answers}
    ranked = report.transcripts.ranked_by
    learning = [log for log in report.logs if log.agent == report.student]
    return {
        "primary": primary,
        "secondary": [c for c in said if c not in primary],
        "training": [c for c in training if _is_training(c.metric.name)],
        "learned_from": [c for c in training if not _is_training(c.metric.name)],
        "bounded": any(point.at_most for point in points),
        "rounds": sorted(rounds),
        "before_after": _before_after(report),
        "kept": _KEPT.get(report.filters[0].merit, "") if report.filters else "",
        "filter_agents": list(dict.fromkeys(s.policy for f in report.filters for s in f.spreads)),
        "filter_examples": last[0] if last else (),
        "student_steps": _step_charts(learning, "c0"),
        "other_steps": [
            (f"{agent}: {title}", chart)
            for place, agent in enumerate(a for a in report.agents if a != report.student)
            for title, chart in _step_charts(
                [log for log in report.logs if log.agent == agent], f"c{1 + place % 6}"
            )
        ],
        "speakers": list(speakers),
        "best_side": "" if ranked is None else best_side(ranked),
        "kinds": _kinds(report.stages),
        "facts": _facts(report),
        "transcripts_json": _transcripts_json(report),
    }


def _is_training(name: str) -> bool:
    """Tell what training itself measured from what was found out of the pairs that it read."""
    return name.startswith("train_")


def _in_rounds(curve: Curve) -> Curve:
    """Return a curve without what was before the first round, where another loss was trained."""
    later = (
        Series(series.agent, tuple(point for point in series.points if point.round))
        for series in curve.series
    )
    return replace(curve, series=tuple(series for series in later if series.points))


def _before_after(report: RunReport) -> list[Transcript]:
    """Return the first random prompts with the student's first and last answer."""
    found = []
    transcripts = report.transcripts
    for place in transcripts.orders.get("random", ()):
        entry = transcripts.shown[place]
        own = sorted((a for a in entry.answers if a.agent == report.student), key=lambda a: a.round)
        if len(own) > 1:
            found.append(Transcript(entry.prompt_id, entry.messages, (own[0], own[-1])))
    return found[:BEFORE_AFTER]


def _step_charts(logs: Sequence[TrainingLog], css: str) -> list[tuple[str, Markup]]:
    """Draw loss and margin of an agent's positive policies, and the loss of its negatives."""
    negative = [log for log in logs if log.stage.endswith("/negative")]
    positive = [log for log in logs if log not in negative]
    start = [log for log in positive if log.round == 0]
    rounds = [log for log in positive if log.round]
    drawn = [
        ("loss in the rounds", charts.steps_chart(rounds, "loss", css)),
        ("margin", charts.steps_chart(positive, "margin", css)),
        ("log-ratio of chosen", charts.steps_chart(positive, "chosen_logratio", css)),
        ("log-ratio of rejected", charts.steps_chart(positive, "rejected_logratio", css)),
        ("loss at the start (SFT)", charts.steps_chart(start, "loss", css)),
        ("loss of the negative policy (SFT)", charts.steps_chart(negative, "loss", css)),
    ]
    return [(title, chart) for title, chart in drawn if chart]


def _kinds(stages: Sequence[StageRow]) -> list[KindRow]:
    """Sum up time and tokens by kind of work, most time first."""
    found: dict[tuple[str, str], list[StageRow]] = {}
    for stage in stages:
        if stage.seconds is not None:
            found.setdefault(KINDS.get(stage.kind, OTHER_WORK), []).append(stage)
    total = sum(stage.seconds or 0.0 for own in found.values() for stage in own) or 1.0
    rows = []
    for (title, css), own in found.items():
        seconds = sum(stage.seconds or 0.0 for stage in own)
        tokens = sum(_sum(stage.tokens) or 0 for stage in own)
        rows.append(KindRow(title, css, len(own), seconds, seconds / total, tokens))
    return sorted(rows, key=lambda row: -row.seconds)


def _kinds_bar(rows: Sequence[KindRow]) -> Markup:
    return charts.share_bar(
        (row.title, row.seconds, row.css, format_seconds(row.seconds)) for row in rows
    )


def _verdicts_bar(found: Results) -> Markup:
    parts = (("won", found.wins, "c0"), ("tied", found.ties, "c6"), ("lost", found.losses, "c1"))
    return charts.share_bar(
        (what, number, css, plural(number, "judgment")) for what, number, css in parts if number
    )


def _sum(tokens: Tokens) -> int | None:
    """Return whichever count there is."""
    return next((n for n in (tokens.written, tokens.scored, tokens.trained) if n is not None), None)


def _tokens(tokens: Tokens) -> str:
    number = _sum(tokens)
    return "–" if number is None else format_count(number)


def _value_at(curve: Curve, series: Series, number: int) -> str:
    """Write an agent's value after a round, with its interval."""
    found = next((point for point in series.points if point.round == number), None)
    return "–" if found is None else charts.value_text(curve, found)


def _way(metric: Metric) -> str:
    """Say which way is better."""
    return {"higher": "higher is better", "lower": "lower is better", "neither": ""}[metric.better]


def _delta(change: Change) -> str:
    """Write a change with its interval and what it means."""
    found, metric = change.difference, change.metric
    sign = "+" if found.mean >= 0 else "−"
    text = f"{sign}{difference_text(metric, abs(found.mean))}"
    if found.half_width is not None:
        bound = "at most " if change.first.at_most or change.last.at_most else ""
        text += f" ± {bound}{difference_text(metric, found.half_width)}"
    meant = {"better": "better", "worse": "worse", "unclear": "no clear change", "changed": ""}
    return text + (f": {meant[change.verdict]}" if meant[change.verdict] else "")


def difference_text(metric: Metric, value: float) -> str:
    """Write a difference: of shares in points."""
    return f"{100 * value:.1f} points" if metric.unit == SHARE else metric.format(value)


def _facts(report: RunReport) -> list[tuple[str, str]]:
    """List what the run was made with, and on."""
    made = report.provenance
    facts = [(f"data: {name}", value) for name, value in made.data.items()]
    if made.seed is not None:
        facts.append(("seed", str(made.seed)))
    if made.invocations:
        last = made.invocations[-1]
        facts.append(("last called", f"{last.time}, on {last.device or 'an unknown device'}"))
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in last.versions.items())))
        machine = last.machine
        if machine:
            facts.append(
                (
                    "machine",
                    f"{machine.get('host')}: {machine.get('processor')}, {machine.get('cores')} "
                    f"cores, {machine.get('memory_gib')} GiB, {machine.get('system')}",
                )
            )
    facts += [(f"resolved once: {name}", value) for name, value in made.environment.items()]
    return facts


def _told_of_answers(report: RunReport, titles: Mapping[str, Metric]) -> list[str]:
    """Return the few metrics that stand under an answer: what ranks it first."""
    ranked = report.transcripts.ranked_by
    shown = [name for name, found in titles.items() if found.shown == "everywhere"]
    first = [] if ranked is None else [ranked.name]
    return list(dict.fromkeys([*first, *shown]))[:TOLD_OF_ANSWERS]


def _transcripts_json(report: RunReport) -> Markup:
    """Return the transcripts as the page's script reads them."""
    titles = {curve.metric.name: curve.metric for curve in report.curves}
    agents = [report.student, *(a for a in report.agents if a != report.student)]
    told = _told_of_answers(report, titles)
    speakers = dict.fromkeys(a.agent for t in report.transcripts.shown for a in t.answers)
    return script_json(
        {
            "colours": {agent: charts.colour_of(agent, agents) for agent in speakers},
            "orders": {title: list(o) for title, o in report.transcripts.orders.items()},
            "shown": [
                {
                    "messages": [list(message) for message in entry.messages],
                    "answers": [
                        {
                            "agent": answer.agent,
                            "round": answer.round,
                            "text": answer.text,
                            "finished": answer.finished,
                            "cut": answer.cut,
                            "values": [
                                f"{titles[name].title} {titles[name].format(answer.values[name])}"
                                for name in told
                                if name in answer.values
                            ],
                        }
                        for answer in entry.answers
                    ],
                }
                for entry in report.transcripts.shown
            ],
        }
    )
