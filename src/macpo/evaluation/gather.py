"""The metrics of a run, gathered from its plan and the artifacts that it has so far.

A policy's metrics are what its measuring stages wrote, and of what its training stage kept the loss
and the margin, as `train_loss` and `train_margin`. No model library is imported.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from macpo.evaluation.measures import read_measures
from macpo.run_directory import MetricRow, RunDir, RunPlan
from macpo.store import MANIFEST, read_manifest

TRAINING = ("loss", "margin")


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
    for policy in plan.policies:
        folders = [_folder(run, plan, key) for key in policy.measured if key in done]
        measuring = [folder for folder in folders if folder is not None]
        if not policy.measured or len(measuring) < len(policy.measured):
            continue
        found: dict[str, float] = {}
        for folder in measuring:
            measures = read_measures(folder)
            pairs = measures.counts.get("pairs", pairs)
            found |= measures.metrics
        trained = None if policy.trained is None else _folder(run, plan, policy.trained)
        if trained is not None:
            meta = read_manifest(trained).fields["meta"]
            found |= {f"train_{name}": meta[name] for name in TRAINING if name in meta}
        rows += [
            MetricRow(policy.policy, policy.round, name, value)
            for name, value in sorted(found.items())
        ]
    return Measured(tuple(rows), pairs)


def _folder(run: RunDir, plan: RunPlan, key: str) -> Path | None:
    """Return the folder of a stage's artifact; None when it has been set aside since."""
    folder = run.artifact(plan.stage(key))
    return folder if (folder / MANIFEST).is_file() else None
