"""Transcripts for a report: the same prompts answered by everybody in every round.

A run of thousands of prompts has more of them than a page should carry. What is embedded is chosen
openly: a random sample drawn with the run's seed, and the ends of an order that is named.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from macpo.metrics import Metric, in_order
from macpo.records import read_answers
from macpo.report.data import Answer, Curve, Transcript, Transcripts
from macpo.report.text import plain_text
from macpo.run_directory import RunDir, RunPlan
from macpo.seeds import stable_seed
from macpo.store import MANIFEST

EACH_END = 15
"""Prompts that are embedded of each end of an order."""

MOST_PROMPTS = 150
MOST_CHARACTERS = 1_200_000
"""Of answers and prompts that are embedded; a page stays below 3 MB with it."""

ANSWER_CHARACTERS, TURN_CHARACTERS = 4_000, 2_000

FALLBACK = "answer_repetition"
"""By which answers are ordered where no measure of single answers has a better side."""


def gather_transcripts(
    run: RunDir, plan: RunPlan, curves: Sequence[Curve], student: str, seed: int
) -> Transcripts:
    """Read the answers to test prompts and choose which are shown.

    Args:
        run: where the artifacts are.
        plan: what the run consists of.
        curves: with what was measured of single answers.
        student: whose answers decide the orders.
        seed: of the run; decides the random sample.

    Raises:
        MacpoError: answers cannot be read.
    """
    everything = _read(run, plan, _values(curves))
    if not everything:
        return Transcripts()
    ids = list(everything)
    random.Random(stable_seed(seed, "report", "transcripts")).shuffle(ids)
    ranked = _ranking(curves, student)
    ends = {} if ranked is None else _ends(ranked, student, everything.keys())
    wanted = list(dict.fromkeys([*(key for end in ends.values() for key in end), *ids]))
    shown: dict[str, Transcript] = {}
    room = MOST_CHARACTERS
    for key in wanted:
        room -= _size(everything[key])
        if len(shown) == MOST_PROMPTS or (room < 0 and shown):
            break
        shown[key] = everything[key]
    order = {key: place for place, key in enumerate(shown)}
    orders = {"random": tuple(order[key] for key in ids if key in order)}
    orders |= {
        title: tuple(order[key] for key in keys if key in order) for title, keys in ends.items()
    }
    metric = None if ranked is None else ranked.metric
    return Transcripts(
        shown=tuple(map(_as_shown, shown.values())),
        total=len(everything),
        orders=orders,
        ranked_by=metric,
        why=_why(len(shown), len(everything), seed),
    )


def _why(shown: int, total: int, seed: int) -> str:
    """Say how the shown prompts were chosen."""
    if shown == total:
        return f"All {total:,} prompts that were answered are here; their order is of seed {seed}."
    return (
        f"{shown:,} of {total:,} prompts are here: up to {EACH_END} from each end of the orders, "
        f"and others at random, drawn with seed {seed}. The run's folder has all."
    )


def _read(
    run: RunDir, plan: RunPlan, values: Mapping[tuple[str, int, str], Mapping[str, float]]
) -> dict[str, Transcript]:
    """Read all answers to test prompts, by prompt, as they were written."""
    prompts: dict[str, tuple[tuple[str, str], ...]] = {}
    answers: dict[str, list[Answer]] = {}
    for policy in plan.policies:
        for stage in plan.answers(policy, "test"):
            folder = run.artifact(stage)
            if not (folder / MANIFEST).is_file():
                continue
            for prompt, response in read_answers(folder):
                key = prompt.id
                if key not in prompts:
                    prompts[key] = tuple((m.role, m.content) for m in prompt.messages)
                own = values.get((policy.policy, policy.round, key), {})
                answers.setdefault(key, []).append(
                    Answer(policy.policy, policy.round, response.text, response.finished, 0, own)
                )
    return {key: Transcript(key, prompts[key], tuple(found)) for key, found in answers.items()}


def _as_shown(entry: Transcript) -> Transcript:
    """Return a transcript with its texts fit for a page: done for those alone that are shown."""
    answers = []
    for answer in entry.answers:
        text, cut = _shown(answer.text, ANSWER_CHARACTERS)
        answers.append(replace(answer, text=text, cut=cut))
    messages = tuple((role, _shown(text, TURN_CHARACTERS)[0]) for role, text in entry.messages)
    return Transcript(entry.prompt_id, messages, tuple(answers))


def _shown(text: str, limit: int) -> tuple[str, int]:
    """Return a text as a page shows it, and how many characters of it were left out."""
    return plain_text(text[:limit]), max(len(text) - limit, 0)


def _size(transcript: Transcript) -> int:
    turns = sum(min(len(text), TURN_CHARACTERS) for _, text in transcript.messages)
    return turns + sum(
        min(len(answer.text), ANSWER_CHARACTERS) + 80 for answer in transcript.answers
    )


def _values(curves: Sequence[Curve]) -> dict[tuple[str, int, str], dict[str, float]]:
    """Return what was measured of single answers, by agent, round and prompt."""
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for curve in curves:
        if not curve.of_answers:
            continue
        for series in curve.series:
            for point in series.points:
                for key, values in point.items.items():
                    where = (series.agent, point.round, key)
                    found.setdefault(where, {})[curve.metric.name] = sum(values) / len(values)
    return found


def _ranking(curves: Sequence[Curve], student: str) -> Curve | None:
    """Return by which metric single answers are best ordered."""
    single = {
        curve.metric.name: curve
        for curve in curves
        if curve.of_answers
        and (own := curve.of(student)) is not None
        and any(point.items for point in own.points)
    }
    directed = [metric for metric in in_order(single) if metric.better != "neither"]
    if directed:
        return single[directed[0].name]
    return single.get(FALLBACK)


def _ends(curve: Curve, student: str, ids: Collection[str]) -> dict[str, list[str]]:
    """Return the best and worst prompts by the student's last answers, and by how it changed."""
    series = curve.of(student)
    assert series is not None  # `_ranking` has seen to that
    points = [point for point in series.points if point.items]
    sign = 1.0 if curve.metric.better == "higher" else -1.0
    last = _means(points[-1].items, sign)
    known = [key for key in last if key in ids]
    falling = sorted(known, key=lambda key: -last[key])
    ends = {"best": falling[:EACH_END], "worst": falling[::-1][:EACH_END]}
    if len(points) > 1:
        first = _means(points[0].items, sign)
        both = [key for key in known if key in first]
        gained = sorted(both, key=lambda key: first[key] - last[key])
        ends["most improved"] = [k for k in gained if last[k] > first[k]][:EACH_END]
        ends["most worsened"] = [k for k in gained[::-1] if last[k] < first[k]][:EACH_END]
    return {title: keys for title, keys in ends.items() if keys}


def _means(items: Mapping[str, Sequence[float]], sign: float) -> dict[str, float]:
    return {key: sign * sum(values) / len(values) for key, values in items.items()}


def best_side(metric: Metric) -> str:
    """Say which values of a metric count as best in an order."""
    return "highest" if metric.better == "higher" else "lowest"
