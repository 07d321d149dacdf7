"""The first words of a report: did it work, by what was measured, and how sure is that?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from macpo.metrics import SHARE
from macpo.report.data import Change, RunReport
from macpo.report.people import in_one_sentence
from macpo.report.text import plural

Tone = Literal["good", "bad", "mixed", "open"]

SHOWN_CHANGES = 4
NAMED = 3
"""Metrics that a sentence names at most."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The answer in a few words, sentences on what it stands on, and the changes that it names."""

    tone: Tone
    title: str
    lines: tuple[str, ...]
    changes: tuple[Change, ...]


def headline(report: RunReport) -> Headline:
    """Say whether a run worked, as far as its own measurements tell."""
    directed = [c for c in report.changes if c.metric.better != "neither"]
    # What policies say tells more than how probable they find given texts.
    directed.sort(key=lambda change: not change.of_answers)
    tone, title = _answer(report, directed)
    shown = directed or list(report.changes)
    return Headline(tone, title, tuple(_lines(report, directed)), tuple(shown[:SHOWN_CHANGES]))


def _answer(report: RunReport, directed: Sequence[Change]) -> tuple[Tone, str]:
    """Return the answer itself."""
    if not report.changes:
        if report.state == "finished":
            return "open", "Nothing was measured that could tell."
        return "open", "Too early to tell: the student has not been measured twice."
    better = [c for c in directed if c.verdict == "better"]
    worse = [c for c in directed if c.verdict == "worse"]
    if better and any(s.ends and s.policy == report.student for s in report.signs):
        return "mixed", f"Mixed: {_names(better)} improved, but there are signs of collapse."
    if better and worse:
        return "mixed", f"Mixed: {_names(better)} improved, {_names(worse)} got worse."
    if better:
        return "good", f"Yes: the student improved in {_names(better)}."
    if worse:
        return "bad", f"No: the student got worse in {_names(worse)}."
    if any(c.verdict == "unclear" for c in directed):
        return "open", "It cannot be told: no change is larger than its uncertainty."
    return "open", "It cannot be told: nothing was measured whose better side is known."


def _lines(report: RunReport, directed: Sequence[Change]) -> Iterator[str]:
    """Yield what the answer stands on, and what speaks against trusting it."""
    if report.state != "finished":
        total = "" if report.stages_total is None else f" of {report.stages_total:,}"
        yield (
            f"The run has not finished: {report.stages_done:,}{total} stages are done. This is "
            "what there is so far."
        )
    serious = [sign for sign in report.signs if sign.ends and sign.policy == report.student]
    if serious:
        early = min(serious, key=lambda sign: sign.round)
        yield f"A sign of collapse in the student after round {early.round}: {early.text}."
    for alert in report.alerts:
        yield f"Warned during the run: {alert.title}."
    for judged in report.judgments:
        if judged.one.partition("@")[0] == report.student:
            yield in_one_sentence(judged)
    if report.changes:
        first, last = report.changes[0].first.round, report.changes[0].last.round
        begin = "before the first round" if first == 0 else f"after round {first}"
        yield (
            f"Compared is the student {begin} with the student after round {last}; an interval "
            "covers 95 %."
        )
    lead = next((c for c in directed if c.verdict in ("better", "worse")), None)
    if lead is not None and lead.best.round != lead.last.round:
        yield (
            f"Its best {lead.metric.title} was {lead.metric.format(lead.best.value)}, after round "
            f"{lead.best.round}, not at the end."
        )
    if any(c.difference.half_width is None for c in directed):
        unsure = [c for c in directed if c.difference.half_width is None]
        yield f"How sure the change in {_names(unsure)} is cannot be told from what was kept."
    if directed and not any(c.of_answers for c in directed):
        yield (
            "Only the likelihood of given texts was measured, which does not see answers that fall "
            "apart: read the answers below."
        )
    if report.pairs and any(c.metric.unit == SHARE and not c.of_answers for c in directed):
        yield f"Likelihoods stand on {plural(report.pairs, 'held-out pair')}."


def _names(changes: Sequence[Change]) -> str:
    """List metrics in words, and count those that are too many."""
    titles = [change.metric.title for change in changes]
    if len(titles) > NAMED:
        titles = [*titles[: NAMED - 1], f"{len(titles) - NAMED + 1} more"]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
