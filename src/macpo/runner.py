"""Running a config in a folder (see `macpo.run_directory`), told step by step to an observer."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.backends import find_backend
from macpo.cleaning import sweep_run
from macpo.config import RunConfig, method_name
from macpo.config.dumping import dump_config, dump_resolved
from macpo.dtype import keep_numerics, resolve_once
from macpo.errors import ConfigError, StoreError
from macpo.evaluation.evaluator import chosen_evaluators
from macpo.evaluation.gather import Measured, write_metrics
from macpo.execution.relay import Relay
from macpo.invocation import command_line, describe_process
from macpo.machine import choose_device, tune_allocator, use_threads
from macpo.monitors.tracking import Tracking
from macpo.ranks import ALONE, Ranks
from macpo.ranks.launch import launched, started
from macpo.run_directory import (
    FINAL,
    EarlyEnd,
    MetricRow,
    PlannedPolicy,
    PlannedStage,
    RunDir,
    RunPlan,
)
from macpo.store import Artifact, Journal, RunLock, Store, describe_stop, write_text_atomic
from macpo.trackers import TRACKERS

if TYPE_CHECKING:
    from macpo.agents import Policy, Team
    from macpo.execution.protocol import ExecutorFactory, Observer
    from macpo.policies import PolicyPool
    from macpo.program import Plan
    from macpo.stage import Stage


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its folder, its metrics, and the folders of the aligned policies.

    `pairs` is the number of held-out pairs behind the accuracies in `metrics`; `ended` says where
    the run ended early.
    """

    folder: Path
    metrics: list[MetricRow]
    pairs: int
    final: dict[str, Path]
    ended: EarlyEnd | None = None


def run(
    config: RunConfig,
    folder: str | Path,
    observer: Observer,
    executor: ExecutorFactory | None = None,
    ranks: Ranks | None = None,
) -> RunResult:
    """Run a config in a run directory; what was finished there before is not run again.

    Args:
        config: what to run.
        folder: the run directory, made if it is not there.
        observer: is told what happens.
        executor: makes what runs the stages; by default what `execution` in the config says.
        ranks: who runs stages together under the local one, this process being rank 0 and the
            others in `macpo.execution.following.follow`; by default `engine.processes` are started.

    Raises:
        MacpoError: something is wrong; see macpo.errors.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    from macpo.execution.following import Orders

    local = executor is None and config.execution.backend == "local"
    with _assembled(config, ranks) if local else contextlib.nullcontext(ALONE) as together:
        result = _run(config, folder, observer, executor, together)
        Orders(together).end()
    return result


@contextlib.contextmanager
def _assembled(config: RunConfig, ranks: Ranks | None) -> Iterator[Ranks]:
    """Yield the ranks that are given, or that the config asks for.

    Raises:
        ConfigError: it asks for more than there are GPUs, or a launcher has started others.
        RanksError: they do not start.
    """
    from macpo.execution.following import WORKER

    size = config.engine.processes or 1
    if ranks is not None or size == 1:
        yield ranks or ALONE
        return
    if launched(os.environ) is not None:
        raise ConfigError(
            f"engine.processes: {size} processes are to be started, but a launcher has started "
            "some; under it call `macpo run`, or give its ranks to macpo.runner.run"
        )
    choose_device(config.device, size)
    with started(size, WORKER) as group:
        yield group


def _run(
    config: RunConfig,
    folder: str | Path,
    observer: Observer,
    executor: ExecutorFactory | None,
    ranks: Ranks,
) -> RunResult:
    """Do what `run` says, as rank 0 of `ranks`."""
    from macpo.agents import assemble_team, say_chosen_targets
    from macpo.data.stages import content_digest
    from macpo.execution.choice import chosen_claims, chosen_executor
    from macpo.methods.build import build_plan
    from macpo.preflight import check_agent

    for name in config.track:
        TRACKERS.get(name).load()  # what is missing is said before anybody works
    if ranks.size == 1 and config.engine.sharding != "none":
        raise ConfigError(
            f"engine.sharding is {config.engine.sharding}, which divides bases among processes, "
            "but there is one; set engine.processes, or start with torchrun"
        )
    home = RunDir(folder)
    elsewhere = config.execution.backend != "local"
    asked = "auto" if elsewhere and config.device != "cpu" else config.device
    device = choose_device(asked, ranks.on_this_machine, ranks.local_rank)
    processes = (config.engine.processes or 1) if elsewhere else ranks.size
    caution = find_backend(config.generation.backend).caution
    if caution:
        observer.note(caution)
    with contextlib.ExitStack() as stack:
        make = executor or stack.enter_context(chosen_executor(config, ranks))
        stack.enter_context(RunLock(home.lock))
        sweep_run(home)
        journal = Journal(home.journal_file)
        process = describe_process() | {"device": str(device), "processes": processes}
        journal.append("invoked", command=command_line(), **process)
        if elsewhere:
            use_threads(config.execution.cpus_per_stage)  # what is written down holds for stages
        resolved = resolve_once(
            home.run_file, config.dtype, device, observer.note, processes=processes
        )
        keep_numerics(resolved, device, observer.note, processes)
        if device.type == "cpu":
            tune_allocator()
        _write(home.config_file, dump_config(config))
        _write(home.resolved_config_file, dump_resolved(config, resolved.dtype))
        team = assemble_team(config, resolved.dtype, fetch=True)
        if chosen := say_chosen_targets(config, team):
            observer.note(chosen)
        for agent in team.agents:
            check_agent(
                agent,
                recomputes=config.engine.checkpoint_activations,
                divided=config.engine.sharding != "none",
            )
        for evaluator in chosen_evaluators(config):
            for caution in evaluator.preflight(config):
                observer.note(caution)
        plan = build_plan(config, team, content_digest(config.data, fetch=True))
        written = describe_plan(plan)
        _write(home.plan_file, json.dumps(written.to_json(), indent=1) + "\n")
        store = Store(home.store, chosen_claims(config.execution))
        with contextlib.closing(Tracking.start(config, home, observer)) as tracking:
            metrics = _MetricsFile(tracking, home, written)
            runs = make(home.path, store, config.engine, device, metrics)
            runs.execute(plan)
            measured = metrics.write()
        ended = home.ended()
        handed = plan.final(None if ended is None else ended.kept)
        with _telling(journal):
            final = _publish_all(
                home, config, team, handed, measured.rows, runs.policies, observer.note
            )
    return RunResult(home.path, list(measured.rows), measured.pairs, final, ended)


def describe_plan(plan: Plan) -> RunPlan:
    """Return what plan.json holds of a plan."""
    return RunPlan(
        tuple(PlannedStage(s.name, s.kind, s.key, s.identity, s.version) for s in plan.stages),
        tuple(
            PlannedPolicy(
                name,
                t,
                policy.weights_key or None,
                tuple(stage.key for stage in evaluations.get(name, ())),
                answers[name].key if name in answers else None,
            )
            for t, (policies, evaluations, answers) in enumerate(
                zip(plan.policies, plan.evaluations, plan.answers, strict=True)
            )
            for name, policy in policies.items()
        ),
    )


class _MetricsFile(Relay):
    """Keeps metrics.jsonl up to what is measured while a run goes on, and alerts in the journal."""

    def __init__(self, tracking: Tracking, home: RunDir, plan: RunPlan) -> None:
        super().__init__(tracking)
        self._tracking = tracking
        self._home = home
        self._plan = plan
        self._measuring = {key for policy in plan.policies for key in policy.measured}
        self._done: set[str] = set()

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """Write the file anew when the stage measures somebody."""
        self._done.add(stage.key)
        super().stage_finished(stage, seconds, artifact)
        if stage.key in self._measuring:
            self.write()

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """Take the stage in."""
        self._done.add(stage.key)
        super().stage_found(stage, artifact)

    def alert(self, title: str, text: str) -> None:
        """Write the alert into the journal, for reports."""
        Journal(self._home.journal_file).append("alert", title=title, text=text)
        super().alert(title, text)

    def write(self) -> Measured:
        """Write what is measured so far, tell trackers, and return it."""
        measured = write_metrics(self._home, self._plan, self._done)
        self._tracking.measured(measured.rows)
        return measured


def _write(path: Path, text: str) -> None:
    write_text_atomic(path, text, durable=True)


@contextlib.contextmanager
def _telling(journal: Journal) -> Iterator[None]:
    """Write into the journal that policies are being handed out, and how that ended."""
    journal.append("publishing")
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(StoreError):  # the error itself matters more
            journal.append("stopped", stage=FINAL, key="", reason=describe_stop(error))
        raise
    journal.append("published")


def _publish_all(
    home: RunDir,
    config: RunConfig,
    team: Team,
    handed: Mapping[str, tuple[int, Policy]],
    metrics: Sequence[MetricRow],
    policies: PolicyPool,
    note: Callable[[str], None],
) -> dict[str, Path]:
    """Write RUN/final/<agent> for everybody."""
    from macpo.publish import model_card, publish

    final = {}
    for agent in team.agents:
        last, policy = handed[agent.name]
        own = {
            row.metric: row.value
            for row in metrics
            if row.policy == agent.name and row.round == last
        }
        target = home.final / agent.name
        caution = find_backend(config.generation.backend).caution
        card = model_card(policy, config.name, method_name(config.method), last, own, caution)
        publish(policy, target, policies, card, note)
        final[agent.name] = target
    return final
