"""Gathering what a report shows out of a run's folder: finished, going on, stopped, or an old one.

Nothing is written and no model library is imported. What cannot be read is named in the report; it
does not keep the rest from being shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from macpo.config import RunConfig, method_name
from macpo.data.stages import REPORT_FILE
from macpo.errors import MacpoError
from macpo.estimates import clustered, quantile, share_bound
from macpo.evaluation.collapse import read_signs
from macpo.evaluation.gather import measuring_stages
from macpo.evaluation.measures import read_items, read_measures
from macpo.invocation import hide_secrets
from macpo.metrics import SHARE, in_order
from macpo.records import read_jsonl
from macpo.report.console import guard_numbers, telling_numbers
from macpo.report.data import (
    Alert,
    Change,
    Curve,
    Failures,
    FilterExample,
    FilterRound,
    Invocation,
    Point,
    Provenance,
    RunReport,
    Series,
    Sign,
    Spread,
    StageRow,
    Tokens,
    TrainingLog,
    Transcripts,
    Values,
)
from macpo.report.pairing import difference, verdict
from macpo.report.result import STUDENT
from macpo.report.text import plain_text
from macpo.report.transcripts import gather_transcripts
from macpo.run_directory import COLLAPSE, EarlyEnd, PlannedStage, RunDir, RunPlan
from macpo.run_status import StatusReport, status
from macpo.seeds import stable_seed
from macpo.store import MANIFEST, read_manifest
from macpo.words import split_label

Found = TypeVar("Found")

NUMBERS_OF_LOGS = ("loss", "margin", "chosen_logratio", "rejected_logratio")
LOG_POINTS = 240
"""Steps of a training stage that are drawn at most; of longer ones every n-th."""

JUDGES_COST = ("judge_calls", "judge_tokens_in", "judge_tokens_out", "judge_cost")

NORMAL_QUANTILE = 1.96
"""Standard errors in half of a 95 % interval, of an error that an evaluator gives."""

EXAMPLES = 3
"""Prompts of a round whose candidates are shown."""


def gather_run(folder: str | Path) -> RunReport:
    """Gather what a report shows of a run.

    Args:
        folder: the run directory.

    Raises:
        StoreError: there is no run, or its journal cannot be read.
    """
    return _Gathering(RunDir(folder), status(folder)).report()


_Details = dict[tuple[str, int, str], tuple[Mapping[str, int], Values, float | None]]
"""Counts, single values and standard error by agent, round and metric."""


class _Gathering:
    """One call of `gather_run`."""

    def __init__(self, run: RunDir, state: StatusReport) -> None:
        self.run = run
        self.state = state
        self.faults: list[str] = []

    def report(self) -> RunReport:
        """Return the report; each part is there or its fault is."""
        curves = self._all("the measurements", self._curves)
        agents = tuple(dict.fromkeys(s.agent for curve in curves for s in curve.series))
        transcripts = self._try(
            "the answers to test prompts", lambda: self._transcripts(curves), Transcripts()
        )
        stages = self._all("the stages", self._stages)
        filters = self._all("the filter", self._filters)
        logs = self._all("the training logs", self._logs)
        failures = self._all("the failures", self._failures)
        signs = self._all("the signs of collapse", self._signs)
        checked = sum(stage.kind == COLLAPSE for stage, _, _ in self.done)
        stop = self.state.last_stop
        return RunReport(
            name=self.config.name if self.config is not None else self.run.path.resolve().name,
            folder=str(self.run.path.resolve()),
            state=self.state.state,
            stages_done=len(self.state.finished),
            stages_total=self.state.total,
            worked_seconds=self.state.worked_seconds,
            last_stop="" if stop is None else f"{stop.stage}: {stop.reason}",
            rounds=max((p.round for c in curves for s in c.series for p in s.points), default=0),
            student=STUDENT,
            agents=agents,
            pairs=self.state.pairs,
            curves=curves,
            changes=tuple(_changes(curves, self.ended)),
            filters=filters,
            logs=logs,
            signs=signs,
            checked=checked,
            alerts=tuple(self._alerts()),
            failures=failures,
            stages=stages,
            cost=_cost(stages, self.state.worked_seconds) | _judges_cost(self.state.metrics),
            transcripts=transcripts,
            provenance=self._provenance(),
            notes=tuple(self._notes()),
            faults=tuple(self.faults),
        )

    def _try(self, what: str, gather: Callable[[], Found], otherwise: Found) -> Found:
        """Gather a part; one that cannot be read is noted instead."""
        try:
            return gather()
        except (MacpoError, OSError, ValueError, KeyError, TypeError) as error:
            self.faults.append(f"{what} could not be read: {error}")
            return otherwise

    def _all(self, what: str, gather: Callable[[], Iterable[Found]]) -> tuple[Found, ...]:
        """Gather a part that is a list; one that cannot be read is empty, and noted."""
        return self._try(what, lambda: tuple(gather()), ())

    @cached_property
    def config(self) -> RunConfig | None:
        """The config as it was resolved; None where it cannot be read by this version."""
        return self._try("the config", self.run.config, None)

    @cached_property
    def plan(self) -> RunPlan | None:
        """What the run consists of; None of an older macpo's."""
        return self._try("the plan", self.run.plan, None)

    @cached_property
    def ended(self) -> EarlyEnd | None:
        """Where signs of collapse ended the run; None if they did not."""
        return self._try("what ended the run", self.run.ended, None)

    @cached_property
    def journal(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        return self.run.journal()

    @cached_property
    def done(self) -> list[tuple[PlannedStage, Path, Mapping[str, Any]]]:
        """The stages whose artifacts are there, with their folders and metas."""
        found = []
        for stage in self.plan.stages if self.plan is not None else ():
            folder = self.run.artifact(stage)
            if (folder / MANIFEST).is_file():
                found.append((stage, folder, read_manifest(folder).fields["meta"]))
        return found

    def _notes(self) -> Iterator[str]:
        """Yield what has to be known of the run as a whole."""
        if self.plan is None:
            yield (
                "An older macpo made this run and wrote no plan: answers, filter and training are "
                "not shown. Run its config again, which finds what is done and writes one."
            )
        if self.ended is not None:
            yield (
                f"Signs of collapse ended the run after round {self.ended.round}; the policies "
                f"that it hands out, and that are compared here, are those of round "
                f"{self.ended.kept}."
            )
        if self.config is not None:
            from macpo.backends import find_backend

            with suppress(MacpoError):
                caution = find_backend(self.config.generation.backend).caution
                if caution:
                    yield caution

    # Measurements

    def _curves(self) -> tuple[Curve, ...]:
        """Return all metrics over the rounds, in the order of tables."""
        details, said = self._details()
        points: dict[str, dict[str, list[Point]]] = {}
        of_answers: dict[str, bool] = {}
        for row in self.state.metrics:
            name = row["metric"]
            counted, items, error = details.get((row["policy"], row["round"], name), ({}, {}, None))
            of_answers[name] = of_answers.get(name, False) or row["metric"] in said
            point = _point(row["round"], row["value"], counted, items, error, name)
            points.setdefault(name, {}).setdefault(row["policy"], []).append(point)
        return tuple(
            Curve(
                metric,
                tuple(
                    Series(agent, tuple(sorted(own, key=lambda point: point.round)))
                    for agent, own in points[metric.name].items()
                ),
                of_answers[metric.name],
            )
            for metric in in_order(points)
        )

    def _details(self) -> tuple[_Details, set[str]]:
        """Return on how many things each measurement stands, and the single values if kept.

        The second are the metrics that were measured of answers.
        """
        found: _Details = {}
        said: set[str] = set()
        if self.plan is None:
            return found, said
        for policy, stage, folder in measuring_stages(self.run, self.plan):
            measures = read_measures(folder)
            single: dict[str, dict[str, list[float]]] = {}
            kept = read_items(folder)
            # Where single values are kept, what has none is no mean, and has no such bound.
            counts = {} if kept else measures.counts
            for item in kept:
                for name, value in item.values.items():
                    single.setdefault(name, {}).setdefault(item.prompt_id, []).append(value)
            if "answers" in measures.counts or stage.input("answers") is not None:
                said.update(measures.metrics)
            for name in measures.metrics:
                items = {key: tuple(values) for key, values in single.get(name, {}).items()}
                error = measures.metrics.get(error_of(name))
                found[policy.policy, policy.round, name] = (counts, items, error)
        return found, said

    def _transcripts(self, curves: Sequence[Curve]) -> Transcripts:
        if self.plan is None:
            return Transcripts()
        seed = 0 if self.config is None else self.config.seed
        return gather_transcripts(self.run, self.plan, curves, STUDENT, seed)

    # The filter and training

    def _filters(self) -> Iterator[FilterRound]:
        """Yield what learners kept, round by round."""
        for stage, folder, meta in self.done:
            path = folder / "filter.jsonl"
            if stage.kind == "pairs" and path.is_file():
                seed = 0 if self.config is None else self.config.seed
                rows = list(read_jsonl(path))
                found = _filter_round(stage, rows, seed, self._texts(stage))
                yield replace(found, refused=guard_numbers(meta))

    def _texts(self, stage: PlannedStage) -> Callable[[str], str]:
        """Return a function that finds the last turn of a prompt of a stage's pairs."""
        from macpo.records import read_pairs

        prompts: dict[str, str] = {}

        def find(prompt_id: str) -> str:
            if not prompts:
                pairs = read_pairs(self.run.artifact(stage))
                prompts.update((p.prompt.id, p.prompt.messages[-1].content) for p in pairs)
            return prompts.get(prompt_id, "")

        return find

    def _logs(self) -> Iterator[TrainingLog]:
        """Yield what training stages wrote, thinned out."""
        for stage, folder, _ in self.done:
            path = folder / "log.jsonl"
            if not path.is_file():
                continue
            rows = list(read_jsonl(path))
            every = max(1, -(-len(rows) // LOG_POINTS))
            kept = rows[::every]
            names = [name for name in NUMBERS_OF_LOGS if all(name in row for row in kept)]
            yield TrainingLog(
                stage.name,
                _agent_of(stage),
                _round_of(stage.name) or 0,
                tuple(int(row["step"]) for row in kept),
                {name: tuple(float(row[name]) for row in kept) for name in names},
            )

    # Stages, failures, what happened

    def _stages(self) -> tuple[StageRow, ...]:
        """Return all stages of the run as it was last laid out, in its order."""
        ended = {stage.key: stage.seconds for stage in self.state.finished}
        if self.plan is None:
            return tuple(
                StageRow(s.name, "", _round_of(s.name), s.seconds, Tokens())
                for s in self.state.finished
            )
        metas = {stage.key: (folder, meta) for stage, folder, meta in self.done}
        rows = []
        for stage in self.plan.stages:
            numbers, tokens = "", Tokens()
            seconds = ended.get(stage.key)
            if stage.key in metas:
                folder, meta = metas[stage.key]
                tokens = _tokens(stage.kind, meta, folder)
                with suppress(KeyError, TypeError):  # another version's meta
                    numbers = telling_numbers(stage.kind, meta, seconds or 0.0)
            rows.append(
                StageRow(stage.name, stage.kind, _round_of(stage.name), seconds, tokens, numbers)
            )
        return tuple(rows)

    def _failures(self) -> Iterator[Failures]:
        """Yield what went wrong and was counted."""
        yield from self._failures_of_data()
        answers = [(s.name, meta) for s, _, meta in self.done if s.kind == "respond"]
        if answers:
            total = sum(meta["responses"] for _, meta in answers)
            empty = [(name, meta["empty"]) for name, meta in answers]
            cut = [(name, meta["responses"] - meta["finished"]) for name, meta in answers]
            yield _counted("answers that are empty", empty, total)
            yield _counted("answers that did not end by themselves", cut, total)
        pairs = [
            (s.name, meta["prompts_without_pair"], meta["pairs"])
            for s, _, meta in self.done
            if s.kind == "pairs" and "prompts_without_pair" in meta
        ]
        if pairs:
            missing = [(name, count) for name, count, _ in pairs]
            total = sum(count + made for _, count, made in pairs)
            yield _counted("prompts that gave no pair", missing, total)
        guarded = [(s.name, meta) for s, _, meta in self.done if s.kind == "pairs"]
        guarded = [(name, meta) for name, meta in guarded if "refused" in meta]
        if guarded:
            refused = [(name, meta["refused"]) for name, meta in guarded]
            total = sum(meta["candidates"] for _, meta in guarded)
            yield _counted("candidates that the guard refused", refused, total)
        for what, event in (
            ("stages that were stopped or failed", "stopped"),
            ("stages set aside, damaged or of other inputs", "set_aside"),
        ):
            names = [e["stage"] for e in self.journal if e["event"] == event]
            if names:
                yield _counted(what, [(name, names.count(name)) for name in dict.fromkeys(names)])

    def _failures_of_data(self) -> Iterator[Failures]:
        """Yield what was not taken of the data."""
        folder = next((folder for s, folder, _ in self.done if s.kind == "data"), None)
        if folder is None or not (folder / REPORT_FILE).is_file():
            return
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        rows = report.get("rows")
        yield Failures("rows of data that could not be used", report.get("bad_rows", 0), rows)
        yield Failures(
            "pairs left out for a prompt over the limit",
            report.get("prompts_too_long", 0),
            report.get("pairs"),
        )
        cuts = report.get("cuts") or []
        if cuts:
            worst = max(cuts, key=lambda cut: cut["answers_cut"])
            yield Failures(
                "answers of the data cut at limits.response_tokens",
                worst["answers_cut"],
                worst["answers"],
            )

    def _signs(self) -> Iterator[Sign]:
        """Yield the signs of collapse that were found, round by round."""
        for stage, folder, _ in self.done:
            if stage.kind == COLLAPSE:
                for sign in read_signs(folder):
                    yield Sign(sign.policy, sign.round, sign.name, sign.text, sign.ends)

    def _alerts(self) -> Iterator[Alert]:
        """Yield what the run warned of, each once, as last told."""
        told = {
            (event.get("title", ""), event.get("text", "")): event["time"]
            for event in self.journal
            if event["event"] == "alert"
        }
        for (title, text), time in told.items():
            yield Alert(time, title, text)

    # How it was made

    def _provenance(self) -> Provenance:
        """Return how the run was made."""
        config = self.config
        resolved = self._try("run.json", self.run.resolved, None)
        environment: dict[str, str] = {}
        if resolved is not None:
            speeds = ", ".join(f"{k} {v:g}" for k, v in resolved.matmul_gflops.items())
            environment = {
                "dtype": resolved.dtype,
                "device": resolved.device,
                "machine": resolved.machine,
                "threads": str(resolved.threads or ""),
                "matrix products, GFLOP/s": speeds,
                "torch": resolved.torch,
                "transformers": resolved.transformers,
            }
        return Provenance(
            config=_text_of(self.run.config_file),
            resolved=_text_of(self.run.resolved_config_file),
            invocations=tuple(self._invocations()),
            environment={name: value for name, value in environment.items() if value},
            data=self._data(),
            seed=None if config is None else config.seed,
            method="" if config is None else method_name(config.method),
        )

    def _invocations(self) -> Iterator[Invocation]:
        for event in self.journal:
            if event["event"] == "invoked":
                yield Invocation(
                    event["time"],
                    event.get("command", ""),
                    event.get("versions", {}),
                    event.get("machine", {}),
                    event.get("device", ""),
                )

    def _data(self) -> dict[str, str]:
        """Return where the data is, its fingerprint, and the sizes of its splits."""
        found = {}
        if self.config is not None:
            found["source"] = hide_secrets(self.config.data.source)
        stage = next((s for s in self.plan.stages if s.kind == "data"), None) if self.plan else None
        if stage is not None:
            found["fingerprint (content and how it is read)"] = str(stage.identity["content"])
        for done, _, meta in self.done:
            if done.kind == "data" and "pairs" in meta:
                sizes = (f"{name} {count:,}" for name, count in meta["pairs"].items())
                found["pairs in each split"] = ", ".join(sizes)
        return found


def _point(
    round: int,
    value: float,
    counts: Mapping[str, int],
    items: Values,
    error: float | None,
    name: str,
) -> Point:
    """Return a measurement with its interval, as far as one can be told."""
    if items:
        found = clustered(items)
        return Point(round, value, found.half_width, items=items)
    if error is not None:
        return Point(round, value, NORMAL_QUANTILE * error)
    metric = in_order([name])[0]
    if metric.unit == SHARE and len(counts) == 1 and 0 <= value <= 1:
        (n,) = counts.values()
        if n:
            return Point(round, value, share_bound(value, n), at_most=True)
    return Point(round, value)


def error_of(name: str) -> str:
    """Return the metric that holds the standard error of another, as evaluators name them."""
    base, label = split_label(name)
    return f"{base}_se{name.removeprefix(base)}" if label else f"{base}_se"


def _changes(curves: Sequence[Curve], ended: EarlyEnd | None) -> Iterator[Change]:
    """Yield how the student changed in every metric that it has of several rounds.

    Of a run that ended early the last is the one that it hands out.
    """
    for curve in curves:
        series = curve.of(STUDENT)
        if series is None or len(series.points) < 2 or curve.metric.shown == "named":
            continue
        first, last = series.points[0], series.points[-1]
        if ended is not None:
            kept = [point for point in series.points if point.round <= ended.kept]
            last = kept[-1] if len(kept) > 1 else last
        sign = -1.0 if curve.metric.better == "lower" else 1.0
        best = max(series.points, key=lambda point: sign * point.value)
        change = difference(last, first)
        yield Change(
            curve.metric, curve.of_answers, first, last, best, change, verdict(curve.metric, change)
        )


def _filter_round(
    stage: PlannedStage,
    rows: Sequence[Mapping[str, Any]],
    seed: int,
    prompt_of: Callable[[str], str],
) -> FilterRound:
    """Sum up a filter.jsonl."""
    import random

    offered: dict[str, list[tuple[float, bool]]] = {}
    for row in rows:
        for candidate in row["candidates"]:
            one = (float(candidate["perplexity"]), bool(candidate["won"]))
            offered.setdefault(candidate["policy"], []).append(one)
    spreads = []
    for policy, found in offered.items():
        values = sorted(perplexity for perplexity, _ in found)
        kept = sorted(perplexity for perplexity, won in found if won)
        low, quarter, middle, upper, high = (
            quantile(values, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)
        )
        median = quantile(kept, 0.5) if kept else None
        five = (low, quarter, middle, upper, high)
        spreads.append(Spread(policy.partition("/")[0], len(values), len(kept), five, median))
    some = list(rows)
    random.Random(stable_seed(seed, "report", stage.name)).shuffle(some)
    decided = [row for row in some if any(c["won"] for c in row["candidates"])][:EXAMPLES]
    return FilterRound(
        _round_of(stage.name) or 0,
        _agent_of(stage),
        str(stage.identity.get("filter", "perplexity")),
        len(rows),
        tuple(spreads),
        tuple(
            FilterExample(
                plain_text(prompt_of(row["prompt_id"])),
                tuple(map(_candidate, row["candidates"])),
            )
            for row in decided
        ),
    )


def _candidate(row: Mapping[str, Any]) -> tuple[str, float, bool, str]:
    policy = row["policy"].partition("/")[0]
    return policy, float(row["perplexity"]), bool(row["won"]), plain_text(row["text"])


def _counted(what: str, counts: Sequence[tuple[str, int]], of: int | None = None) -> Failures:
    """Sum counts up by stage; the stages with most of them are named."""
    there = sorted((c for c in counts if c[1]), key=lambda c: -c[1])
    return Failures(what, sum(count for _, count in there), of, tuple(there[:4]))


def _tokens(kind: str, meta: Mapping[str, Any], folder: Path) -> Tokens:
    """Return the tokens of a finished stage, as far as it counted them."""
    tokens = meta.get("tokens")
    if kind == "respond":
        return Tokens(written=tokens)
    if kind == "score":
        if tokens is None:  # an older version's
            tokens = sum(row["tokens"] for row in read_jsonl(folder / "scores.jsonl"))
        return Tokens(scored=tokens)
    return Tokens(trained=tokens) if kind in ("sft", "dpo") else Tokens()


def _cost(stages: Sequence[StageRow], seconds: float) -> dict[str, float]:
    """Sum up what the run has cost: seconds of all attempts, tokens of what is there."""
    cost = {"seconds": seconds}
    for name in ("written", "scored", "trained"):
        found = [n for stage in stages if (n := getattr(stage.tokens, name)) is not None]
        if found:
            cost[name] = float(sum(found))
    return cost


def _judges_cost(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Sum up what judges over a server have cost, as they counted it."""
    cost: dict[str, float] = {}
    for row in rows:
        name, _ = split_label(row["metric"])
        if name in JUDGES_COST:
            cost[name] = cost.get(name, 0.0) + row["value"]
    return cost


def _round_of(stage: str) -> int | None:
    """Return the round in a stage's name: 0 of the beginning, None of what has none."""
    when = stage.partition("/")[0]
    if when.startswith("round-"):
        with suppress(ValueError):
            return int(when.removeprefix("round-"))
    return 0 if when == "init" else None


def _agent_of(stage: PlannedStage) -> str:
    """Return whose stage it is, by its name: `round-2/student/train`."""
    parts = stage.name.split("/")
    return parts[1] if len(parts) > 1 else ""


def _text_of(path: Path) -> str:
    """Return the text of a config file without secrets; empty when it is not there."""
    try:
        return hide_secrets(path.read_text(encoding="utf-8"))
    except OSError:
        return ""
