"""What a worker does: a stage, as the local executor runs it, told to the driver from here.

A worker's process is kept between tasks on a CPU, and with it the models that it has loaded
(`_WORKSHOPS`); with a GPU it ends after each, for it would keep memory from the next one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from macpo.agents import Agent
from macpo.answering import Respond
from macpo.config import EngineConfig
from macpo.errors import MacpoError, RanksDifferError, RanksError
from macpo.execution.cluster.mailbox import Reporter
from macpo.execution.cluster.visible import await_artifact
from macpo.execution.single import Bench, examine, find_or_discard, run_stage
from macpo.machine import choose_device, tune_allocator, use_threads
from macpo.plugins import load_plugin, load_plugins
from macpo.ranks import ALONE, Ranks
from macpo.ranks.launch import HOST, Seat, standing_by, started
from macpo.stage import Stage
from macpo.store import Artifact, LeaseClaims, Store

if TYPE_CHECKING:
    from macpo.policies import PolicyPool

WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Site:
    """What all tasks of a run have in common.

    Attributes:
        run: the run directory, by a path that all nodes know.
        store: its store, likewise.
        engine: layout of work.
        ranks_per_node: how many of the `engine.processes` that run a stage together are on a node.
        device: `auto`, `cpu` or `cuda`, as the config names it.
        threads: of a process.
        plugins: what the user named with `--plugin`.
        lease_seconds: of claims; None for claims by locks.
    """

    run: Path
    store: Path
    engine: EngineConfig
    ranks_per_node: int
    device: str
    threads: int
    plugins: tuple[str, ...]
    lease_seconds: float | None

    def open_store(self) -> Store:
        """Return the store, with the claims that reach all nodes."""
        seconds = self.lease_seconds
        return Store(self.store, None if seconds is None else LeaseClaims(seconds))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        artifact: of the stage, if it has one now.
        seconds: that it ran.
        ran: whether it ran; else another process had made the artifact meanwhile.
        error: why it failed.
        stopped: whether it stopped because it was asked to.
    """

    artifact: Artifact | None = None
    seconds: float = 0.0
    ran: bool = False
    error: MacpoError | None = None
    stopped: bool = False


@dataclass(slots=True)
class Workshop:
    """What a worker's process keeps between tasks: models, where weights are, what was verified."""

    site: Site
    store: Store
    places: dict[str, Path] = field(default_factory=dict)
    pool: PolicyPool | None = None

    def policies(self) -> PolicyPool:
        """Return what loads policies, made when it is first asked for."""
        if self.pool is None:
            from macpo.policies import PolicyPool

            use_threads(self.site.threads)
            self.pool = PolicyPool(choose_device(self.site.device), self.places.__getitem__)
        return self.pool


def lost_another(error: MacpoError | None) -> bool:
    """Tell whether an error is one of several processes' that has lost another."""
    return isinstance(error, RanksError) and not isinstance(error, RanksDifferError)


class Task(Protocol):
    """Something for a worker to do."""

    def __call__(self, workshop: Workshop, reporter: Reporter) -> Outcome:
        """Do it.

        Raises:
            MacpoError: it failed.
            KeyboardInterrupt: the driver asked it to stop.
        """
        ...


@dataclass(frozen=True, slots=True)
class RunStage:
    """Finds or runs a stage.

    Attributes:
        stage: the stage.
        artifacts: those of its inputs, by stage key.
        plan: the keys of the plan that it is of, if several processes run it together.
    """

    stage: Stage
    artifacts: Mapping[str, Artifact]
    plan: tuple[str, ...] | None = None

    def __call__(self, workshop: Workshop, reporter: Reporter) -> Outcome:
        """See `Task`."""
        stage, store = self.stage, workshop.store
        for artifact in self.artifacts.values():
            await_artifact(artifact)
        workshop.places |= {key: artifact.path for key, artifact in self.artifacts.items()}
        said = False

        def wait() -> None:
            nonlocal said
            if not said:
                reporter.tell("waiting")
                said = True
            if reporter.wait_to_stop(WAIT_SECONDS):
                raise KeyboardInterrupt

        with store.claim(stage.kind, stage.key, wait) as claim:
            found, reason = find_or_discard(store, stage, self.artifacts)
            if reason is not None:
                reporter.tell("set_aside", text=reason)
            if found is not None:
                return Outcome(found)
            reporter.tell("started", node=socket.gethostname())
            reporter.post()  # now: it may die at once
            started = time.monotonic()

            def report(done: int, total: int, **fields: Any) -> None:
                reporter.tell("progress", done=done, total=total, **fields)
                claim.check()
                if reporter.stopping:
                    raise KeyboardInterrupt

            with self._together(workshop, reporter) as ranks:
                bench = Bench(
                    workshop.policies,
                    workshop.site.engine,
                    ranks=ranks,
                    note=lambda text: reporter.tell("narrowed", text=text),
                )
                artifact = run_stage(store, stage, self.artifacts, bench, report)
            return Outcome(artifact, time.monotonic() - started, ran=True)

    @contextlib.contextmanager
    def _together(self, workshop: Workshop, reporter: Reporter) -> Iterator[Ranks]:
        """Yield the processes that run the stage: this one, or also others that are started.

        Those of other nodes stand by already (`stand_by`) and are told where to meet.
        """
        site = workshop.site
        if self.plan is None:
            yield ALONE
            return
        from macpo.execution.following import WORKER, Orders  # needs torch

        size, here = site.engine.processes or 1, site.ranks_per_node
        host = _own_address() if here < size else HOST
        use_threads(site.threads * here)  # which are shared out
        try:
            with started(size, WORKER, here=here, host=host, meet=reporter.meet) as ranks:
                orders = Orders(ranks)
                orders.plan(site.run, site.store, self.plan)
                orders.stage(self.stage, self.artifacts)
                yield ranks
                orders.end()
        finally:
            use_threads(site.threads)


@dataclass(frozen=True, slots=True)
class Examine:
    """Loads an agent's base, so that one that will not do is refused before anybody works."""

    agent: Agent
    answering: Respond | None

    def __call__(self, workshop: Workshop, reporter: Reporter) -> Outcome:
        """See `Task`."""
        examine(self.agent, self.answering, workshop.policies())
        return Outcome()


_WORKSHOPS: dict[Site, Workshop] = {}
"""This process's one workshop, by the run that it belongs to: the next run's takes its place."""


def do_task(site: Site, mailbox: Any, job: str, task: bytes) -> Outcome:
    """Do a task in a worker's process; the function that is called through Ray.

    Args:
        site: what all tasks of the run have in common.
        mailbox: the handle of the `Mailbox`.
        job: this task's name in it.
        task: a pickled `Task`: the classes of its stages may be a plugin's, loaded here first.
    """
    from ray import cloudpickle

    workshop = _open_workshop(site)
    with Reporter(mailbox, job) as reporter, reporter.warnings():
        try:
            if reporter.stopping:
                return Outcome(stopped=True)
            outcome: Outcome = cloudpickle.loads(task)(workshop, reporter)
            return outcome
        except MacpoError as error:
            return Outcome(error=error)
        except KeyboardInterrupt:
            return Outcome(stopped=True)
        finally:
            if workshop.pool is not None:
                workshop.pool.close()  # engines that served would outlive this process


def stand_by(site: Site, mailbox: Any, job: str, node: int) -> Outcome:
    """Be the ranks of one more node for a stage of several; called through Ray, beside `do_task`.

    Args:
        site: what all tasks of the run have in common.
        mailbox: the handle of the `Mailbox`.
        job: the task that is rank 0, in it.
        node: which of the task's nodes this is, from 1; rank 0 is on node 0.
    """
    from macpo.execution.following import WORKER, follow  # needs torch

    _open_workshop(site)
    here, size = site.ranks_per_node, site.engine.processes or 1
    while (address := mailbox.met.remote(job).future().result()) is None:
        time.sleep(WAIT_SECONDS)
    host, port = address
    seat = Seat(node * here, size, host, port, 0, here)
    use_threads(site.threads * here)  # which are shared out
    try:
        with standing_by(seat, WORKER, _own_address()) as ranks:
            follow(ranks, threading.Event())
        return Outcome()
    except MacpoError as error:
        return Outcome(error=error)
    finally:
        use_threads(site.threads)


def _own_address() -> str:
    """Return the address at which Ray's other nodes find this one."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _open_workshop(site: Site) -> Workshop:
    """Return this process's workshop for a run."""
    if site not in _WORKSHOPS:
        load_plugins()
        for name in site.plugins:
            load_plugin(name)
        _WORKSHOPS.clear()
        _WORKSHOPS[site] = Workshop(site, site.open_store())
        if site.device != "cuda":
            tune_allocator()
    return _WORKSHOPS[site]
