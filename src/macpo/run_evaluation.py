"""Evaluating a run afterwards: evaluators on the policies and answers that it left.

Nothing of the run itself is run: no policy is trained and no answer is sampled. What is measured is
kept in the run's store, under the keys that it would have had in the run, and remembered in
RUN/evaluations/, so that it belongs to the run's metrics from now on. The evaluations of a run that
is not finished reach as far as it got.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.config import RunConfig
from macpo.dtype import keep_numerics
from macpo.errors import ConfigError, StoreError
from macpo.evaluation.evaluator import Evaluator, Subject, chosen_evaluators
from macpo.evaluation.gather import write_metrics
from macpo.evaluation.measures import read_measures
from macpo.evaluation.recorded import RecordedStage, RecordedTeam, recorded_subjects
from macpo.machine import choose_device
from macpo.run_directory import MetricRow, PlannedPolicy, PlannedStage, RunDir, RunPlan
from macpo.store import Artifact, RunLock, Store, write_text_atomic
from macpo.store.atomic import make_directory

if TYPE_CHECKING:
    import torch

    from macpo.execution.protocol import Observer
    from macpo.stage import Stage

STUDENT = "student"


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What evaluators measured of a run.

    Attributes:
        folder: the run directory.
        metrics: what these evaluators measured, in the order of the run's policies.
        missing: of whom they could not measure anything, for the run has not come so far.
    """

    folder: Path
    metrics: list[MetricRow]
    missing: tuple[PlannedPolicy, ...]


def evaluate(
    folder: str | Path, evaluators: Sequence[Evaluator], observer: Observer
) -> EvaluationResult:
    """Measure the policies of a run on what it left; what was measured before is found.

    Args:
        folder: the run directory.
        evaluators: who measure.
        observer: is told what happens.

    Raises:
        ConfigError: an evaluator cannot measure in this run, or has other options there.
        StoreError: there is no run, nothing to measure in it, or another process is at work on it.
        MacpoError: an evaluator failed; what is finished stays.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    from macpo.execution.local import LocalExecutor

    home = RunDir(folder)
    if not home.exists:
        raise StoreError(f"{home.path}: no run here; start one with: macpo run CONFIG")
    with RunLock(home.lock):
        config, plan = home.config(), home.plan()
        if plan is None:
            raise StoreError(
                f"{home.path}: has no {home.plan_file.name}, an older macpo ran it; run its config "
                "again, which finds what is done and writes one"
            )
        _refuse_faults(config, evaluators)
        for evaluator in evaluators:
            for caution in evaluator.preflight(config):
                observer.note(caution)
        store = Store(home.store)
        layout = _Layout(config, plan, store)
        plans = [layout.lay_out(evaluator) for evaluator in evaluators]
        layout.refuse_nothing(home)
        records = [_Record(home, *both) for both in zip(evaluators, plans, strict=True)]
        for record in records:
            if record.replaces:
                observer.note(
                    f"{record.title}: its former numbers, with other options, give way to these "
                    "once they are there; a label would keep both"
                )
            else:
                record.write()
        if layout.missing:
            observer.note(_not_there(layout.missing))

        def device() -> torch.device:
            chosen = choose_device(config.device)
            if (resolved := home.resolved()) is not None:
                keep_numerics(resolved, chosen, observer.note)
            return chosen

        executor = LocalExecutor(home.path, store, config.engine, device, observer)
        try:
            artifacts = executor.extend(layout.stages.values(), layout.found)
            for record in records:
                record.write()
        finally:
            write_metrics(home, plan, {stage.key for stage in plan.stages})
    return EvaluationResult(home.path, layout.rows(artifacts), tuple(layout.missing))


class _Layout:
    """The stages of evaluators over a run, as far as what they read is there.

    Attributes:
        stages: to be run, by key, each after its inputs.
        found: the artifacts of the run that they read, by key.
        missing: the policies that are not there, or whose answers are not.
    """

    def __init__(self, config: RunConfig, plan: RunPlan, store: Store) -> None:
        self._plan = plan
        self._store = store
        team = RecordedTeam(config, plan)
        subjects = recorded_subjects(
            plan,
            config.dtype,
            lambda policy: config.evaluation.teachers or policy.policy == STUDENT,
            team.policy,
        )
        self.stages: dict[str, Stage] = {}
        self.found: dict[str, Artifact] = {}
        self.missing = [policy for policy, subject in subjects if not self._is_there(subject)]
        self._subjects = [item for item in subjects if item[0] not in self.missing]
        self._measured: dict[tuple[str, int], dict[str, None]] = {}

    def lay_out(self, evaluator: Evaluator) -> RunPlan:
        """Add an evaluator's stages, and return them as they are written down."""
        own: dict[str, Stage] = {}
        policies = []
        for policy, subject in self._subjects:
            keys = []
            for stage in evaluator.lay_out(subject):
                inputs = stage.inputs.values()
                if all(i.key in own or self._find(i) for i in inputs):
                    own.setdefault(stage.key, stage)
                    keys.append(stage.key)
            policies.append(PlannedPolicy(policy.policy, policy.round, policy.trained, tuple(keys)))
            measured = self._measured.setdefault((policy.policy, policy.round), {})
            measured |= dict.fromkeys(keys)
        self.stages |= own
        written = (PlannedStage(s.name, s.kind, s.key, s.identity, s.version) for s in own.values())
        return RunPlan(tuple(written), tuple(policies))

    def refuse_nothing(self, home: RunDir) -> None:
        """Refuse a run that holds nothing to measure.

        Raises:
            StoreError: it holds nothing.
        """
        if not self.stages:
            raise StoreError(
                f"{home.path}: nothing to measure yet, no policy is there with its answers to test "
                "prompts; run its config first"
            )

    def rows(self, artifacts: dict[str, Artifact]) -> list[MetricRow]:
        """Return what was measured."""
        return [
            MetricRow(agent, number, name, value)
            for (agent, number), keys in self._measured.items()
            for key in keys
            for name, value in sorted(read_measures(artifacts[key].path).metrics.items())
        ]

    def _is_there(self, subject: Subject) -> bool:
        """Tell whether a policy and its answers are there."""
        trained = self._plan.policy(subject.agent, subject.round).trained
        needed = [] if trained is None else [self._plan.stage(trained)]
        if isinstance(subject.answers, RecordedStage):
            needed.append(subject.answers.planned)
        return all(self._look(stage) for stage in needed)

    def _find(self, stage: Stage) -> bool:
        """Find the artifact of a stage of the run."""
        return isinstance(stage, RecordedStage) and self._look(stage.planned)

    def _look(self, stage: PlannedStage) -> bool:
        if stage.key not in self.found:
            artifact = self._store.find(stage.kind, stage.key)
            if artifact is not None:
                self.found[stage.key] = artifact
        return stage.key in self.found


def _refuse_faults(config: RunConfig, evaluators: Sequence[Evaluator]) -> None:
    """Refuse evaluators that cannot measure in a run, or would contradict its own.

    Raises:
        ConfigError: names all faults.
    """
    faults = [
        f"{evaluator.title} {fault}"
        for evaluator in evaluators
        for fault in evaluator.faults(config.data.source, config.evaluation.answers)
    ]
    own = {evaluator.title: evaluator for evaluator in chosen_evaluators(config)}
    for evaluator in evaluators:
        if own.get(evaluator.title, evaluator) != evaluator:
            faults.append(
                f"{evaluator.title} has other options in the run itself; give it a label, such as "
                "--set label=again, or change evaluation.evaluators and run the config again"
            )
    if faults:
        raise ConfigError("\n".join(faults))


class _Record:
    """What an evaluator's evaluation consists of, as RUN/evaluations/ has it.

    Attributes:
        title: the evaluator's, under which there is one record at a time.
        replaces: there is one already, with other options: its numbers count until the new ones
            are there.
    """

    def __init__(self, home: RunDir, evaluator: Evaluator, plan: RunPlan) -> None:
        self.title = evaluator.title
        self._path = home.evaluations / f"{evaluator.title}.json"
        self._value = {"evaluator": evaluator.model_dump(mode="json"), **plan.to_json()}
        self.replaces = False
        if self._path.is_file():
            before = json.loads(self._path.read_text(encoding="utf-8"))
            self.replaces = before.get("evaluator") != self._value["evaluator"]

    def write(self) -> None:
        """Write it down.

        Raises:
            StoreError: it cannot be written.
        """
        make_directory(self._path.parent)
        write_text_atomic(self._path, json.dumps(self._value, indent=1) + "\n", durable=True)


def _not_there(missing: Sequence[PlannedPolicy]) -> str:
    """Say of whom there is nothing to measure yet."""
    names = ", ".join(f"{policy.policy} after round {policy.round}" for policy in missing)
    return f"not evaluated, since the run has not come so far: {names}"
