"""The executor that walks a plan over a cluster: ready stages run side by side.

    pending ──inputs are there──> look in the store ──found────────────────────> done
       ^                               │ not there                                ^
       │                               v                                          │
       └── its process or node died ── handed to Ray ── started ── committed ─────┘

A stage that fails ends the run once the others have come to a safe point, where they save what they
can; so does a signal.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.config import EngineConfig, ExecutionConfig
from macpo.errors import ClaimLostError, ClusterError
from macpo.execution.cluster.ray import Cluster, Job, Lost, Needs, refuse_impossible
from macpo.execution.cluster.shared import locks_reach, probe, refuse_strangers
from macpo.execution.cluster.visible import await_artifact
from macpo.execution.cluster.work import Examine, Outcome, RunStage, Site, lost_another
from macpo.execution.protocol import Observer
from macpo.execution.record import Record
from macpo.execution.single import look, who_works
from macpo.execution.stopping import stop_on_signal
from macpo.machine import use_threads
from macpo.plugins import named_plugins
from macpo.run_directory import RunDir
from macpo.stage import Stage
from macpo.store import Artifact, Progress, Store
from macpo.store.atomic import make_directory

if TYPE_CHECKING:
    import torch

    from macpo.policies import PolicyPool


class ClusterExecutor:
    """Runs stages on a Ray cluster: a `macpo.execution.protocol.Executor`.

    Args:
        folder: the run directory, whose lock the caller holds.
        store: where artifacts are: a folder that all nodes share.
        engine: layout of work on a machine.
        device: where models go in this process, which publishes them.
        observer: is told what happens.
        cluster: where stages run.
        config: what they reserve, and how often they are begun anew.
        asked: the config's `device`, for the nodes to make out for themselves.
        stop: set by whoever wants the run to stop; by default a signal's to set.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        engine: EngineConfig,
        device: torch.device,
        observer: Observer,
        *,
        cluster: Cluster,
        config: ExecutionConfig,
        asked: str,
        stop: threading.Event | None = None,
    ) -> None:
        self.run = RunDir(folder)
        self.store = store
        self.engine = engine
        self.observer = observer
        self.cluster = cluster
        self.config = config
        self.artifacts: dict[str, Artifact] = {}
        self._device = device
        self._asked = asked
        self._stop = stop

    @cached_property
    def policies(self) -> PolicyPool:
        """See `macpo.execution.protocol.Executor`."""
        from macpo.policies import PolicyPool

        return PolicyPool(self._device, lambda key: self.artifacts[key].path)

    def execute(self, stages: Iterable[Stage]) -> dict[str, Artifact]:
        """Find or run every stage, each as soon as its inputs are there.

        Returns:
            The artifacts, by stage key; none of stages after one that ends the run.

        Raises:
            ClusterError: the cluster cannot run the plan, or lost a stage too often.
            MacpoError: a stage failed; what was finished stays.
            KeyboardInterrupt: the process was asked to stop; running stages have saved a
                checkpoint if they can.
        """
        plan = list(stages)
        gpus = self._gpus()
        self._refuse_impossible(plan, gpus)
        site = self._site(gpus)
        self.store = site.open_store()
        record = Record(self.run, self.store)
        record.planned(plan, "planned")
        self.store.sweep()
        self.observer.planned(plan)
        with self._stopping() as stop:
            walk = _Walk(self, plan, record, site, gpus, stop)
            try:
                walk.go()
            finally:
                walk.end()
        return self.artifacts

    def _stopping(self) -> contextlib.AbstractContextManager[threading.Event]:
        """Return what yields the wish to stop: that of whoever made this, or a signal's."""
        if self._stop is not None:
            return contextlib.nullcontext(self._stop)
        return stop_on_signal(self.observer.note)

    def needs(self, stage: Stage, gpus: float) -> Needs:
        """Return what a stage reserves, on one node or more.

        One that runs no model takes a thread and no GPU, one that all ranks run as much for each of
        them as another with a model.
        """
        if not stage.uses_model:
            return Needs(1, 0)
        here, nodes = 1, 1
        if stage.by_all_ranks:
            here, nodes = self.per_node, self.processes // self.per_node
        return Needs(here * self.config.cpus_per_stage, here * gpus, nodes)

    @property
    def processes(self) -> int:
        """How many processes run a training or scoring stage together."""
        return self.engine.processes or 1

    @property
    def per_node(self) -> int:
        """How many of them are on one node."""
        return self.config.processes_per_node or self.processes

    def _gpus(self) -> float:
        """Return the GPUs of a stage with a model."""
        asked = self.config.gpus_per_stage
        if self._asked == "cpu":
            return 0
        if asked is not None:
            return asked
        return float(self._asked == "cuda" or any(node.gpus for node in self.cluster.nodes()))

    def _refuse_impossible(self, plan: Sequence[Stage], gpus: float) -> None:
        """Refuse a plan with a stage that no node could run."""
        nodes = self.cluster.nodes()
        wanted = {self.needs(stage, gpus): stage for stage in reversed(plan)}
        for needs, stage in wanted.items():
            refuse_impossible(needs, stage.name, nodes)

    def _site(self, gpus: float) -> Site:
        """Try the store from all nodes, and settle how stages are claimed in it."""
        store = self.store.root.resolve()
        with probe(store) as (path, word):
            seen = self.cluster.look_from_all(path)
        refuse_strangers(store, word, seen)
        claims = self.config.claims
        if claims == "auto":
            claims = "lock" if locks_reach(seen) else "lease"
            if claims == "lease":
                self.observer.note(
                    "locks of files do not reach all nodes here: stages are claimed by lease"
                )
        return Site(
            self.run.path.resolve(),
            store,
            self.engine,
            self.per_node,
            self._asked if gpus else "cpu",
            use_threads(),  # those that the run began with
            named_plugins(),
            self.config.lease_seconds if claims == "lease" else None,
        )


@dataclass(slots=True)
class _Running:
    """A stage that was handed to Ray, as `number` of the plan (from 1)."""

    stage: Stage
    number: int
    job: Job
    started: float | None = None
    progress: Progress | None = None


class _Walk:
    """One walk over a plan."""

    def __init__(
        self,
        executor: ClusterExecutor,
        plan: Sequence[Stage],
        record: Record,
        site: Site,
        gpus: float,
        stop: threading.Event,
    ) -> None:
        self.executor = executor
        self.cluster = executor.cluster
        self.observer = executor.observer
        self.artifacts = executor.artifacts
        self.record = record
        self.site = site
        self.gpus = gpus
        self.stop = stop
        self.total = len(plan)
        self.keys = tuple(stage.key for stage in plan)
        self.told = record.told()
        self.pending = dict(enumerate(plan, 1))
        self.running: dict[str, _Running] = {}
        self.examining: dict[str, Job] | None = None
        self.attempts: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.asked_to_stop = False

    def go(self) -> None:
        """Walk until everything is done, or nothing can go on."""
        while True:
            if not self._is_stopping():
                self._advance()
            jobs = self._jobs()
            if not jobs and (not self.pending or self._is_stopping()):
                break
            self.cluster.wait(jobs)
            self._attend_examinations()
            for running in list(self.running.values()):
                self._attend(running)
            if self._is_stopping() and not self.asked_to_stop:
                self.asked_to_stop = True
                self.cluster.stop(self._jobs())
        if self.failure is not None:
            raise self.failure
        if self.stop.is_set():
            raise KeyboardInterrupt

    def end(self) -> None:
        """Let go of what still runs, which is nothing unless the walk was broken off."""
        self.cluster.kill(self._jobs())
        for running in self.running.values():
            self.cluster.at_work.discard(running.stage.key)
            self._close(running)

    def _is_stopping(self) -> bool:
        return self.failure is not None or self.stop.is_set()

    def _jobs(self) -> list[Job]:
        examining = [] if self.examining is None else list(self.examining.values())
        return [*examining, *(running.job for running in self.running.values())]

    def _advance(self) -> None:
        """Take in what is in the store, and hand to Ray what is not and could run."""
        deciding = [r.number for r in self.running.values() if r.stage.may_end_run]
        for number, stage in list(self.pending.items()):
            if number not in self.pending or any(number > before for before in deciding):
                break  # the run has ended, or may end, before it
            if all(i.key in self.artifacts for i in stage.inputs.values()):
                self._begin(number, stage)
            if number in self.pending or stage.key in self.running:
                deciding += [number] if stage.may_end_run else []
        if self.examining is None and self.pending:
            self._examine()

    def _begin(self, number: int, stage: Stage) -> None:
        """Take a ready stage in if its artifact is there, else hand it to Ray when it may run."""
        found, _ = look(self.executor.store, stage, self.artifacts)
        if found is not None:
            self._take(number, stage, found, None)
            return
        if stage.agent is not None and (self.examining is None or self.examining):
            return  # a model may turn out not to do
        if stage.key in self.cluster.at_work:
            return  # another run of this process has it
        if stage.key in self.cluster.failed:
            reason = f"{stage.name}: {self.cluster.failed[stage.key]}"
            self._fail(ClusterError(f"it shares a stage that failed, {reason}"))
            return
        inputs = {i.key: self.artifacts[i.key] for i in stage.inputs.values()}
        needs = self.executor.needs(stage, self.gpus)
        together = stage.by_all_ranks and self.executor.processes > 1
        task = RunStage(stage, inputs, self.keys if together else None)
        job = self.cluster.submit(task, stage.name, self.site, needs)
        del self.pending[number]
        self.running[stage.key] = _Running(stage, number, job)
        self.cluster.at_work.add(stage.key)

    def _examine(self) -> None:
        """Load the bases of all who have something to do still, before one of them works."""
        self.examining = {}
        needs = Needs(self.executor.config.cpus_per_stage, self.gpus)
        for agent, answering in who_works(list(self.pending.values())):
            task = Examine(agent, answering)
            name = f"examining {agent.name}"
            self.examining[name] = self.cluster.submit(task, name, self.site, needs)

    def _attend_examinations(self) -> None:
        for name, job in list((self.examining or {}).items()):
            for message in job.take_messages():
                if message.kind == "note":
                    self.observer.note(message.fields["text"])
            if job.outcome is None:
                continue
            assert self.examining is not None
            del self.examining[name]
            if isinstance(job.outcome, Lost):
                self._fail(ClusterError(f"{name}: {job.outcome.reason}; is its node large enough?"))
            elif job.outcome.error is not None:
                self._fail(job.outcome.error)

    def _attend(self, running: _Running) -> None:
        """Take in what a stage told, and what came of it."""
        for message in running.job.take_messages():
            self._hear(running, message.kind, message.fields)
        outcome = running.job.outcome
        if outcome is None:
            return
        stage = running.stage
        del self.running[stage.key]
        self.cluster.at_work.discard(stage.key)
        self._close(running)
        if isinstance(outcome, Lost):
            self._lose(running, outcome.reason)
        elif isinstance(outcome.error, ClaimLostError) or lost_another(outcome.error):
            self._lose(running, str(outcome.error))
        elif outcome.error is not None:
            self._stopped(running, outcome.error)
            self.cluster.failed[stage.key] = outcome.error
            self._fail(outcome.error)
        elif outcome.stopped:
            self._stopped(running, KeyboardInterrupt())
            self.pending[running.number] = stage
        else:
            assert outcome.artifact is not None  # else it would have an error
            await_artifact(outcome.artifact)
            self._take(running.number, stage, outcome.artifact, outcome)

    def _hear(self, running: _Running, kind: str, fields: dict[str, object]) -> None:
        """Take in one thing that a stage told."""
        stage = running.stage
        if kind == "started":
            running.started = time.monotonic()
            self.observer.stage_started(stage, running.number, self.total)
            self.record.started(stage, node=fields["node"])
            path = self.executor.run.progress_of(stage.key)
            make_directory(path.parent)
            running.progress = Progress(path, stage.name, stage.key)
        elif kind == "progress" and running.progress is not None:
            done, total = int(str(fields.pop("done"))), int(str(fields.pop("total")))
            running.progress.update(done, total, **fields)
            self.observer.stage_progress(stage, done, total, **fields)  # type: ignore[arg-type]
        elif kind == "waiting":
            self.observer.note(f"waiting for {stage.name}, which another process is running")
        elif kind == "set_aside":
            self.observer.note(f"{stage.name} is run again: {fields['text']}")
            self.record.set_aside(stage, str(fields["text"]))
        elif kind == "narrowed":
            self.observer.note(f"{stage.name}: {fields['text']}")
            self.record.narrowed(stage, str(fields["text"]))
        elif kind == "note":
            self.observer.note(str(fields["text"]))

    def _take(self, number: int, stage: Stage, artifact: Artifact, outcome: Outcome | None) -> None:
        """Take in an artifact: one that was found, or that has just been made."""
        self.pending.pop(number, None)
        self.artifacts[stage.key] = artifact
        self.record.link(stage, artifact)
        if outcome is not None and outcome.ran:
            self.record.finished(stage, outcome.seconds)
            self.observer.stage_finished(stage, outcome.seconds, artifact)
        else:
            if stage.key not in self.told:
                self.record.found(stage)
            self.observer.stage_found(stage, artifact)
        if stage.ends_run(artifact.meta):
            self.pending = {n: s for n, s in self.pending.items() if n < number}

    def _lose(self, running: _Running, reason: str) -> None:
        """Have a stage begun anew whose process or node is gone, unless that was often enough."""
        stage, retries = running.stage, self.executor.config.retries
        self._stopped(running, reason)
        self.attempts[stage.key] += 1
        self.pending[running.number] = stage
        self.pending = dict(sorted(self.pending.items()))
        if self.attempts[stage.key] > retries:
            self._fail(
                ClusterError(
                    f"{stage.name}: {reason}, {self.attempts[stage.key]} times in all "
                    f"(execution.retries: {retries}); look for what ends processes there, such as "
                    "want of memory, then run again: nothing finished is lost"
                )
            )
            return
        self.observer.note(f"{stage.name} is begun anew: {reason}")
        needs = self.executor.needs(stage, self.gpus)
        if not needs.can_ever_be_met(self.cluster.nodes()):
            self.observer.note(f"nothing is left with {needs}: waiting until a node joins")

    def _stopped(self, running: _Running, error: BaseException | str) -> None:
        """Write down that a stage stopped before its end, if it had begun."""
        if running.started is not None:
            seconds = time.monotonic() - running.started
            with contextlib.suppress(Exception):  # the error itself matters more
                self.record.stopped(running.stage, seconds, error)

    def _fail(self, error: BaseException) -> None:
        """Remember why the run cannot go on; the first reason counts."""
        if self.failure is None:
            self.failure = error
            if self.running:
                self.observer.note("a stage failed: the others stop at their next safe point")

    def _close(self, running: _Running) -> None:
        if running.progress is not None:
            running.progress.__exit__(None, None, None)
            running.progress = None
