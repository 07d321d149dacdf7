"""The local executor: stages in order, in this process; finished ones are found, not run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.config import EngineConfig
from macpo.execution.following import Orders
from macpo.execution.protocol import Observer
from macpo.execution.record import Record
from macpo.execution.single import (
    Bench,
    examine,
    find_or_discard,
    look,
    run_stage,
    who_works,
)
from macpo.execution.stopping import stop_on_signal
from macpo.generation.protocol import GeneratorFactory, make_generator
from macpo.ranks import ALONE, Ranks
from macpo.run_directory import RunDir
from macpo.stage import Stage
from macpo.store import Artifact, Claim, Progress, Store

if TYPE_CHECKING:
    import torch

    from macpo.policies import PolicyPool

WAIT_SECONDS = 0.2


class LocalExecutor:
    """Runs stages one after another: a `macpo.execution.protocol.Executor`.

    Args:
        folder: the run directory, whose lock the caller holds.
        store: where artifacts are.
        engine: layout of work on this machine.
        device: where models go, or a function that finds it out when the first model is asked for.
        observer: is told what happens.
        generators: makes policies able to answer; by default by the backend of each stage.
        ranks: who runs stages together. This is rank 0; the others `macpo.execution.following`.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        engine: EngineConfig,
        device: torch.device | Callable[[], torch.device],
        observer: Observer,
        generators: GeneratorFactory = make_generator,
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.orders = Orders(ranks)
        self.generators = generators
        self.store = store
        self.engine = engine
        self.observer = observer
        self.record = Record(RunDir(folder), store)
        self.artifacts: dict[str, Artifact] = {}
        self._device = device
        self._to_come: list[Stage] = []
        self._inspected: set[str] = set()

    @cached_property
    def policies(self) -> PolicyPool:
        """See `macpo.execution.protocol.Executor`."""
        if not self._sharded:
            return self._of_all_ranks
        import torch

        # Nobody helps whoever calls this: the bases are whole, and in the machine's memory.
        return self._pool(torch.device("cpu"), sharded=False)

    @cached_property
    def _of_all_ranks(self) -> PolicyPool:
        """Loads policies for stages that all ranks run."""
        device = self._device() if callable(self._device) else self._device
        return self._pool(device, sharded=self._sharded)

    @property
    def _sharded(self) -> bool:
        """Whether bases are divided among ranks; one process has nobody to divide them with."""
        return self.ranks.size > 1 and self.engine.sharding != "none"

    def _pool(self, device: torch.device, *, sharded: bool) -> PolicyPool:
        from macpo.policies import PolicyPool  # it needs torch, which not every stage does

        return PolicyPool(
            device, lambda key: self.artifacts[key].path, ranks=self.ranks, sharded=sharded
        )

    def execute(self, stages: Iterable[Stage]) -> dict[str, Artifact]:
        """Find or run every stage, in order.

        Returns:
            The artifacts, by stage key; none of stages after one that ends the run.

        Raises:
            MacpoError: a stage failed; what was finished stays.
            KeyboardInterrupt: the process was asked to stop (Ctrl-C, SIGTERM); the running stage
                has saved a checkpoint if it can.
        """
        return self._execute(list(stages), "planned")

    def extend(self, stages: Iterable[Stage], given: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Find or run stages that do not belong to the run's own plan, as `execute` does.

        Args:
            stages: they read one another's artifacts and those given.
            given: artifacts by stage key.
        """
        self.artifacts |= given
        return self._execute(list(stages), "evaluating")

    def _execute(self, plan: list[Stage], event: str) -> dict[str, Artifact]:
        self.record.planned(plan, event)
        self.store.sweep()
        told = self.record.told()
        self.observer.planned(plan)
        self.orders.plan(self.folder, self.store.root, [stage.key for stage in plan])
        with contextlib.ExitStack() as until_end:
            stop = until_end.enter_context(stop_on_signal(self.observer.note))
            until_end.callback(self._end_companions)
            for number, stage in enumerate(plan, 1):
                self._to_come = plan[number - 1 :]
                artifact = self._obtain(stage, number, len(plan), stop, told)
                self.artifacts[stage.key] = artifact
                self.record.link(stage, artifact)
                if stage.ends_run(artifact.meta):
                    break
        return self.artifacts

    def _obtain(
        self, stage: Stage, number: int, total: int, stop: threading.Event, told: set[str]
    ) -> Artifact:
        """Find a stage's artifact, or run the stage; `told` is what the journal has as done."""
        artifact, _ = look(self.store, stage, self.artifacts)
        if artifact is None:
            with self.store.claim(stage.kind, stage.key, self._waiting(stage, stop)) as claim:
                artifact = self._find(stage)  # who had the claim before may have made it
                if artifact is None:
                    return self._run(stage, number, total, stop, claim)
        if stage.key not in told:  # another run that shares the store has run it
            self.record.found(stage)
        self.observer.stage_found(stage, artifact)
        return artifact

    def _find(self, stage: Stage) -> Artifact | None:
        """Find the artifact of a claimed stage; one of no use is set aside."""
        artifact, reason = find_or_discard(self.store, stage, self.artifacts)
        if reason is not None:
            self.observer.note(f"{stage.name} is run again: {reason}")
            self.record.set_aside(stage, reason)
        return artifact

    def _waiting(self, stage: Stage, stop: threading.Event) -> Callable[[], None]:
        """Return what to do while another process runs a stage of ours."""
        said = False

        def wait() -> None:
            nonlocal said
            if not said:
                said = True
                self.observer.note(f"waiting for {stage.name}, which another process is running")
            if stop.wait(WAIT_SECONDS):
                raise KeyboardInterrupt

        return wait

    def _run(
        self, stage: Stage, number: int, total: int, stop: threading.Event, claim: Claim
    ) -> Artifact:
        """Run one claimed stage and commit its artifact."""
        if stage.agent is not None:
            self._inspect_bases()
        self.observer.stage_started(stage, number, total)
        self.record.started(stage)
        started = time.monotonic()
        with Progress(self.record.run.progress_file, stage.name, stage.key) as progress:

            def report(done: int, total: int, **fields: Any) -> None:
                progress.update(done, total, **fields)
                self.observer.stage_progress(stage, done, total, **fields)
                claim.check()
                if stop.is_set():
                    raise KeyboardInterrupt

            def narrowed(text: str) -> None:
                self.observer.note(f"{stage.name}: {text}")
                self.record.narrowed(stage, text)

            together = stage.by_all_ranks
            bench = Bench(
                lambda: self._of_all_ranks if together else self.policies,
                self.engine,
                self.generators,
                self.ranks,
                narrowed,
            )
            try:
                self.orders.stage(stage, self.artifacts)
                artifact = run_stage(self.store, stage, self.artifacts, bench, report)
            except BaseException as error:
                with contextlib.suppress(Exception):  # the error itself matters more
                    self.record.stopped(stage, time.monotonic() - started, error)
                raise
        seconds = time.monotonic() - started
        self.record.finished(stage, seconds)
        self.observer.stage_finished(stage, seconds, artifact)
        return artifact

    def _inspect_bases(self) -> None:
        """Load the bases of all who have something to do still, once, before one of them works.

        So a model that will not do is refused now, not when its turn comes after hours. Whose turn
        is first comes last, and is in memory then. Who is to answer is tried with a few tokens,
        unless macpo's own decoder serves the model.
        """
        found = [w for w in reversed(who_works(self._to_come)) if w[0].name not in self._inspected]
        if found:
            self.orders.load([agent for agent, _ in found])
        for agent, answering in found:
            examine(agent, answering, self._of_all_ranks)
            self._inspected.add(agent.name)

    def _end_companions(self) -> None:
        """End what works beside the bases, such as engines that served."""
        if "policies" in vars(self):
            self.policies.close()
