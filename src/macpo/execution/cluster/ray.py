"""All that is asked of Ray: connecting to a cluster, its nodes, tasks on them.

A task is tried once (`max_retries=0`, which also turns off Ray's own retries for want of memory,
unbounded by default): how often a stage is begun anew is for the driver to say, who counts and
writes it down.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macpo.config import ExecutionConfig
from macpo.errors import ClusterError, ConfigError, MacpoError
from macpo.execution.cluster.mailbox import Mailbox, Message
from macpo.execution.cluster.shared import Seen, see
from macpo.execution.cluster.work import Outcome, Site, Task, do_task, lost_another, stand_by

OWN_OBJECT_STORE = 100 * 2**20  # bytes; what goes through Ray is small: everything else is on disk
WAIT_SECONDS = 0.25
END_SECONDS = 5.0  # that those who stood by have to end after rank 0 has
GRACE_SECONDS = 60.0  # that rank 0 has to end after one of those has
KNOCK_SECONDS = 30.0  # in which a head node takes a connection
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a task reserves on one node, or on each of several."""

    cpus: int
    gpus: float
    nodes: int = 1

    def __str__(self) -> str:
        where = "one node" if self.nodes == 1 else f"each of {self.nodes} nodes"
        return f"{self.cpus} CPU, {self.gpus:g} GPU on {where}"

    def can_ever_be_met(self, nodes: Sequence[Node]) -> bool:
        """Tell whether there is room on nodes when nothing else runs there."""
        return sum(n.cpus >= self.cpus and n.gpus >= self.gpus for n in nodes) >= self.nodes


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive, and what it has in all."""

    id: str
    host: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A task that ended without a word, and what is known of why."""

    reason: str


@dataclass(slots=True)
class Others:
    """The tasks that stand by another one on more nodes (`stand_by`), and what they reserve.

    `ended` is when one of them was first seen to have ended.
    """

    refs: list[Any]
    group: Any
    ended: float | None = None

    def have_left(self) -> bool:
        """Tell whether one has ended so long ago that rank 0 would know of it."""
        import ray

        if self.ended is None and ray.wait(self.refs, timeout=0)[0]:
            self.ended = time.monotonic()
        return self.ended is not None and time.monotonic() > self.ended + GRACE_SECONDS

    def blamed(self, outcome: Outcome | Lost) -> Outcome | Lost:
        """Return a task's outcome, or if it has lost its others what became of them."""
        import ray

        ended, _ = ray.wait(self.refs, num_returns=len(self.refs), timeout=END_SECONDS)
        if isinstance(outcome, Lost) or not lost_another(outcome.error):
            return outcome
        for found in map(_outcome, ended):
            if isinstance(found, Lost):
                return Lost(f"on another node {found.reason}")
            if found.error is not None and not lost_another(found.error):
                return found
        return outcome

    def end(self) -> None:
        """End those that are there still, and give back what was reserved."""
        import ray

        for ref in self.refs:
            ray.cancel(ref, force=True)
        ray.util.remove_placement_group(self.group)


@dataclass(slots=True)
class Job:
    """A task that was handed to Ray.

    `outcome` is None while it runs, `messages` are those that nobody has taken yet.
    """

    id: str
    ref: Any
    messages: list[Message] = field(default_factory=list)
    outcome: Outcome | Lost | None = None
    others: Others | None = None

    def take_messages(self) -> list[Message]:
        """Return the messages since this was last asked for."""
        messages, self.messages = self.messages, []
        return messages


class Cluster:
    """A Ray cluster that this process is connected to; see `open_cluster`.

    Several runs of one process may use it, each in a thread of its own, of which one at a time does
    anything at all: it holds `turn`, but for when it waits.

    Attributes:
        turn: held by the thread whose turn it is.
        at_work: the keys of the stages that were handed to Ray and are not done, of all runs.
        failed: why stages failed, by key, of all runs.
    """

    def __init__(self) -> None:
        import ray

        self.turn = threading.RLock()
        self.at_work: set[str] = set()
        self.failed: dict[str, MacpoError] = {}
        self._jobs: dict[str, Job] = {}
        here = ray.get_runtime_context().get_node_id()
        on_this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, False)
        actor = ray.remote(num_cpus=0)(Mailbox)
        self._mailbox = actor.options(scheduling_strategy=on_this_node).remote()
        # A process with a GPU ends with its task, and gives the GPU's memory back.
        self._kept = ray.remote(max_calls=0, max_retries=0)(do_task)
        self._ended = ray.remote(max_calls=1, max_retries=0)(do_task)
        self._kept_by = ray.remote(max_calls=0, max_retries=0)(stand_by)
        self._ended_by = ray.remote(max_calls=1, max_retries=0)(stand_by)

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        import ray

        return [
            Node(
                node["NodeID"],
                node["NodeManagerHostname"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def room(self) -> int:
        """Return about how many stages run at once: as many as there are GPUs, else CPUs."""
        nodes = self.nodes()
        return max(int(sum(n.gpus for n in nodes) or sum(n.cpus for n in nodes)), 1)

    def look_from_all(self, path: Path) -> list[Seen]:
        """Let every node look at a probe (`macpo.execution.cluster.shared`).

        Those that are gone since they were listed are left out.

        Raises:
            ClusterError: a node cannot: macpo is not there.
        """
        import ray

        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        look = ray.remote(num_cpus=0, max_retries=0)(see)
        seen = []
        nodes = self.nodes()
        refs = [
            look.options(scheduling_strategy=affinity(node.id, False)).remote(path)
            for node in nodes
        ]
        for node, ref in zip(nodes, refs, strict=True):
            try:
                seen.append(ray.get(ref))
            except ray.exceptions.TaskUnschedulableError:
                continue
            except ray.exceptions.RayError as error:
                if all(other.id != node.id for other in self.nodes()):
                    continue
                raise ClusterError(
                    f"node {node.host} cannot work for macpo ({_first_line(error)}); install macpo "
                    "there in the environment in which `ray start` runs"
                ) from error
        return seen

    def submit(self, task: Task, name: str, site: Site, needs: Needs) -> Job:
        """Hand a task to Ray, which starts it as soon as a node has room.

        Args:
            task: what to do.
            name: for those who look at Ray itself.
            site: what all tasks of the run have in common.
            needs: what the task reserves.
        """
        from ray import cloudpickle

        function = self._ended if needs.gpus else self._kept
        options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "name": name}
        id = uuid.uuid4().hex
        others = None
        if needs.nodes > 1:
            places = _reserve(needs)
            options["scheduling_strategy"] = places[0]
            others = Others([], places[0].placement_group)
        placed = function.options(**options)
        ref = placed.remote(site, self._mailbox, id, cloudpickle.dumps(task))
        if others is not None:
            for node, place in enumerate(places[1:], 1):
                options |= {"scheduling_strategy": place, "name": f"{name}, node {node}"}
                placed = (self._ended_by if needs.gpus else self._kept_by).options(**options)
                others.refs.append(placed.remote(site, self._mailbox, id, node))
        self._jobs[id] = job = Job(id, ref, others=others)
        return job

    def wait(self, jobs: Sequence[Job]) -> None:
        """Let others have their turn until one of the jobs is done, for a moment at most.

        Afterwards the jobs have their messages, and those that are done their outcome.

        Raises:
            Exception: what a task raised that is no error of the user's, as it was raised there.
        """
        import ray

        with self._aside():
            if jobs:
                ray.wait([job.ref for job in jobs], timeout=WAIT_SECONDS)
            else:
                time.sleep(WAIT_SECONDS)
        ready = ray.wait([j.ref for j in jobs], num_returns=len(jobs), timeout=0)[0] if jobs else []
        done = {ref.hex() for ref in ready}
        # A task posts all of its messages before it ends, so they are here when its outcome is.
        for id, messages in ray.get(self._mailbox.drain.remote()):
            if id in self._jobs:
                self._jobs[id].messages += messages
        for job in jobs:
            if job.ref.hex() in done:
                self._jobs.pop(job.id, None)
                job.outcome = self._settled(job)
            elif job.others is not None and job.others.have_left():
                self.kill([job])
                job.outcome = Lost("the processes of another node ended")

    def _settled(self, job: Job) -> Outcome | Lost:
        """Return what came of a job that has ended; nothing of it is left then."""
        if job.others is None:
            return _outcome(job.ref)
        try:
            return job.others.blamed(_outcome(job.ref))
        finally:
            job.others.end()

    def jobs(self) -> list[Job]:
        """Return the jobs that are not done, of all runs."""
        return list(self._jobs.values())

    def stop(self, jobs: Sequence[Job]) -> None:
        """Ask jobs to stop at their next safe point."""
        import ray

        ray.get(self._mailbox.stop.remote([job.id for job in jobs]))

    def kill(self, jobs: Sequence[Job]) -> None:
        """End jobs at once."""
        import ray

        for job in jobs:
            self._jobs.pop(job.id, None)
            ray.cancel(job.ref, force=True)
            if job.others is not None:
                job.others.end()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Let go of the turn while the block runs, if this thread holds it."""
        try:
            self.turn.release()
        except RuntimeError:  # a single run, which needs no turns
            yield
            return
        try:
            yield
        finally:
            self.turn.acquire()


def _knock(address: str, own: str) -> None:
    """Connect once to where a head node is said to be; Ray would try for many minutes.

    Args:
        address: `host:port`; other words of Ray's, such as `auto`, pass.
        own: this machine's address among others, which Ray takes for the loopback one.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    places = (host, own) if host in LOOPBACK else (host,)
    for number, place in enumerate(places, start=1):
        try:
            socket.create_connection((place, int(port)), KNOCK_SECONDS).close()
            return
        except OSError:
            if number == len(places):
                raise


@contextlib.contextmanager
def open_cluster(config: ExecutionConfig) -> Iterator[Cluster]:
    """Connect to the cluster of a config, or start one on this machine while the block runs.

    A connection that this process has already is used, and kept.

    Raises:
        ConfigError: Ray is not installed.
        ClusterError: there is no cluster at the address.
    """
    # Both are read when Ray is imported or started: it sends no usage statistics, and a cluster of
    # this machine alone listens on the loopback interface alone, as it does on macOS.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "execution: ray needs Ray, which is not installed: pip install 'macpo[ray]'"
        ) from None
    if ray.is_initialized():
        yield Cluster()
        return
    options: dict[str, Any] = {"address": config.address}
    if config.address is None:
        options = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OWN_OBJECT_STORE,
        }
    try:
        if config.address is not None:
            _knock(config.address, ray.util.get_node_ip_address())
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        raise ClusterError(
            f"execution.address: no Ray cluster can be reached at {config.address} "
            f"({_first_line(error)}); start one with `ray start --head`, or leave address out"
        ) from error
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _reserve(needs: Needs) -> list[Any]:
    """Reserve as much on several nodes; returns where tasks go, one for each node.

    Either all of it is reserved or nothing, so that no two stages wait for one another's rest.
    """
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    each = {"CPU": needs.cpus, "GPU": needs.gpus} if needs.gpus else {"CPU": needs.cpus}
    group = placement_group([each] * needs.nodes, strategy="STRICT_SPREAD")
    return [PlacementGroupSchedulingStrategy(group, number) for number in range(needs.nodes)]


def refuse_impossible(needs: Needs, what: str, nodes: Sequence[Node]) -> None:
    """Refuse what the nodes could never run, which Ray would wait for in silence.

    Raises:
        ClusterError: in one line: what is asked for, and what there is.
    """
    if needs.can_ever_be_met(nodes):
        return
    there = "; ".join(f"{node.host}: {node.cpus:g} CPU, {node.gpus:g} GPU" for node in nodes)
    that = "no node of the cluster has that" if needs.nodes == 1 else "there are not as many"
    raise ClusterError(
        f"{what} asks for {needs}, and {that} ({there}); lower "
        "execution.cpus_per_stage or execution.gpus_per_stage, or add such a node"
    )


def _outcome(ref: Any) -> Outcome | Lost:
    """Return what came of a task that has ended.

    Raises:
        Exception: what the task raised.
    """
    import ray

    gone = ray.exceptions
    try:
        outcome: Outcome = ray.get(ref)
        return outcome
    except gone.TaskCancelledError:
        return Outcome(stopped=True)
    except gone.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except gone.OutOfMemoryError:
        return Lost("Ray ended its process, for its node was short of memory")
    except gone.WorkerCrashedError:
        return Lost("its process died (killed, or out of memory)")
    except gone.NodeDiedError:
        return Lost("its node died")
    except (gone.ObjectLostError, gone.RaySystemError, gone.RpcError) as error:
        return Lost(f"its node was lost ({_first_line(error)})")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
