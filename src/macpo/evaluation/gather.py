"""The metrics of a run, gathered from its plan and the artifacts that it has so far.

A policy's metrics are what its measuring stages wrote, those of evaluations after the run included,
and of what its training stage kept the loss and the margin, as `train_loss` and `train_margin`. No
model library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from macpo.evaluation.measures import read_measures
from macpo.run_directory import MetricRow, PlannedPolicy, PlannedStage, RunDir, RunPlan
from macpo.store import MANIFEST, read_manifest, write_text_atomic

TRAINING = ("loss", "margin", "chosen_logratio", "rejected_logratio")


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of a run so far, and the number of held-out pairs behind its accuracies."""

    rows: tuple[MetricRow, ...]
    pairs: int


def gather_metrics(run: RunDir, plan: RunPlan, done: Container[str]) -> Measured:
    """Return the metrics of all policies whose measuring stages are done, in the plan's order.

    Args:
        run: where the artifacts are.
        plan: what the run consists of.
        done: the keys of the stages that are done.

    Raises:
        DamagedError: an artifact cannot be read.
    """
    rows: list[MetricRow] = []
    pairs = 0
    evaluations = run.evaluated(plan)
    for policy in plan.policies:
        folders = [_folder(run, plan.stage(key)) for key in policy.measured if key in done]
        measuring = [folder for folder in folders if folder is not None]
        if len(measuring) < len(policy.measured):
            continue
        measuring += [folder for _, folder in _measured_after(run, policy, evaluations)]
        if not measuring:
            continue
        found: dict[str, float] = {}
        for folder in measuring:
            measures = read_measures(folder)
            pairs = measures.counts.get("pairs", pairs)
            found |= measures.metrics
        trained = None if policy.trained is None else _folder(run, plan.stage(policy.trained))
        if trained is not None:
            meta = read_manifest(trained).fields["meta"]
            found |= {f"train_{name}": meta[name] for name in TRAINING if name in meta}
        rows += [
            MetricRow(policy.policy, policy.round, name, value)
            for name, value in sorted(found.items())
        ]
    return Measured(tuple(rows), pairs)


def write_metrics(run: RunDir, plan: RunPlan, done: Container[str]) -> Measured:
    """Write what is measured so far into metrics.jsonl, and return it; see `gather_metrics`."""
    measured = gather_metrics(run, plan, done)
    lines = "".join(json.dumps(row.to_json()) + "\n" for row in measured.rows)
    write_text_atomic(run.metrics_file, lines, durable=True)
    return measured


def measuring_stages(
    run: RunDir, plan: RunPlan
) -> Iterator[tuple[PlannedPolicy, PlannedStage, Path]]:
    """Yield the stages that have measured somebody: whom, which stage, and its artifact's folder.

    Those of evaluations after the run come after the run's own of the same policy. What a folder
    holds is read by `macpo.evaluation.measures`.

    Raises:
        DamagedError: an evaluation cannot be read.
    """
    evaluations = run.evaluated(plan)
    for policy in plan.policies:
        for key in policy.measured:
            stage = plan.stage(key)
            folder = _folder(run, stage)
            if folder is not None:
                yield policy, stage, folder
        for stage, folder in _measured_after(run, policy, evaluations):
            yield policy, stage, folder


def _measured_after(
    run: RunDir, policy: PlannedPolicy, evaluations: Sequence[RunPlan]
) -> Iterator[tuple[PlannedStage, Path]]:
    """Yield the stages of later evaluations that have measured a policy."""
    who = (policy.policy, policy.round, policy.trained)
    for evaluation in evaluations:
        for other in evaluation.policies:
            if (other.policy, other.round, other.trained) != who:
                continue
            for stage in map(evaluation.stage, other.measured):
                folder = _folder(run, stage)
                if folder is not None and stage.key not in policy.measured:
                    yield stage, folder


def _folder(run: RunDir, stage: PlannedStage) -> Path | None:
    """Return the folder of a stage's artifact; None while there is none."""
    folder = run.artifact(stage)
    return folder if (folder / MANIFEST).is_file() else None
