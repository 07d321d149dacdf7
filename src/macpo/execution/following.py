"""Several ranks on one plan: rank 0 walks it and gives orders, the others do as they are told.

What is to be done is decided by rank 0 alone: it finds, claims, journals and commits. The others
lay out the same plan from the run directory, and then wait: for a base to be loaded, for a stage to
be run by all.

    rank 0                                  the others
    Orders(ranks).plan(folder, stages)      the plan, from the same config
    orders.load(agents)                     load the bases, so that what will not do is known
    run_stage(...) after orders.stage(s)    help_stage(...)
    orders.end()                            `follow` returns
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.agents import Agent, Policy, assemble_team
from macpo.data.stages import content_digest
from macpo.errors import RanksDifferError
from macpo.execution.single import Bench, help_stage
from macpo.machine import choose_device, tune_allocator
from macpo.memory import translate_memory_errors
from macpo.plugins import load_plugin, named_plugins
from macpo.ranks import Ranks
from macpo.run_directory import RunDir
from macpo.seeds import digest
from macpo.stage import Stage
from macpo.store import Artifact, Store

if TYPE_CHECKING:
    from macpo.policies import PolicyPool

WORKER = (sys.executable, "-m", "macpo.execution.worker")
"""The command of the ranks that rank 0 starts on its machine."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What rank 0 tells the others to do; with one rank nobody listens and nothing is said."""

    ranks: Ranks

    def plan(self, folder: Path, store: Path, keys: Sequence[str]) -> None:
        """Lay out the plan of a run.

        Args:
            folder: the run directory, which has its resolved config.
            store: where artifacts are.
            keys: those of the plan's stages, to be compared.
        """
        if self.ranks.size > 1:
            import torch

            self._say(
                do="plan",
                threads=torch.get_num_threads(),
                folder=str(folder.absolute()),
                store=str(store.absolute()),
                plugins=named_plugins(),
                keys=digest(list(keys)),
            )

    def load(self, agents: Iterable[Agent]) -> None:
        """Load the bases of agents."""
        self._say(do="load", agents=[agent.name for agent in agents])

    def stage(self, stage: Stage, artifacts: Mapping[str, Artifact]) -> None:
        """Run a stage that all run, given the artifacts of its inputs by stage key."""
        if self.ranks.size > 1 and stage.by_all_ranks:
            inputs = {i.key: artifacts[i.key] for i in stage.inputs.values()}
            self._say(do="stage", key=stage.key, artifacts=[_written(a) for a in inputs.values()])

    def end(self) -> None:
        """Stop listening."""
        self._say(do="end")

    def _say(self, **order: Any) -> None:
        if self.ranks.size > 1:
            self.ranks.hear(order)


def follow(ranks: Ranks, stop: threading.Event) -> None:
    """Do what rank 0 says, until it says that this is the end.

    Args:
        ranks: the ranks; this one is not the first.
        stop: set when this process is asked to stop; then all stop after the next step.

    Raises:
        MacpoError: the plan is another one here, a stage failed, or a rank was lost.
        KeyboardInterrupt: the ranks were asked to stop.
    """
    follower: _Follower | None = None
    while (order := ranks.hear())["do"] != "end":
        if order["do"] == "plan":
            follower = _Follower(order, ranks, stop)
        elif follower is not None:
            follower.obey(order)


class _Follower:
    """A rank with a plan: its models, and the artifacts that it was told of."""

    def __init__(self, order: Mapping[str, Any], ranks: Ranks, stop: threading.Event) -> None:
        import torch

        torch.set_num_threads(order["threads"])
        for name in order["plugins"]:
            load_plugin(name)
        config = RunDir(order["folder"]).config()
        self._stop = stop
        self._store = Store(Path(order["store"]))
        self._artifacts: dict[str, Artifact] = {}
        self._device = choose_device(config.device, ranks.on_this_machine, ranks.local_rank)
        if self._device.type == "cpu":
            tune_allocator()
        from macpo.methods.build import build_plan  # it needs torch, which whoever leads may not

        team = assemble_team(config, config.dtype, fetch=True)
        plan = build_plan(config, team, content_digest(config.data, fetch=True))
        if digest([stage.key for stage in plan.stages]) != order["keys"]:
            raise RanksDifferError(
                f"rank {ranks.rank} finds other data, models or plugins than rank 0 in the same "
                "places; give all machines the same files"
            )
        self._agents = {agent.name: agent for agent in team.agents}
        self._stages = {stage.key: stage for stage in plan.stages}
        self._pool: PolicyPool | None = None
        self._bench = Bench(self._policies, config.engine, ranks=ranks)

    def obey(self, order: Mapping[str, Any]) -> None:
        """Load bases, or help with a stage."""
        if order["do"] == "load":
            for name in order["agents"]:
                with translate_memory_errors(f"loading {name}"):
                    self._policies().load(Policy(self._agents[name], "positive"))
            return
        self._artifacts |= {a.key: a for a in map(self._read, order["artifacts"])}
        stage = self._stages[order["key"]]
        help_stage(self._store, stage, self._artifacts, self._bench, self._report)

    def _policies(self) -> PolicyPool:
        from macpo.policies import PolicyPool

        if self._pool is None:
            self._pool = PolicyPool(
                self._device,
                lambda key: self._artifacts[key].path,
                ranks=self._bench.ranks,
                sharded=self._bench.engine.sharding != "none",
            )
        return self._pool

    def _read(self, value: Mapping[str, Any]) -> Artifact:
        """Return an artifact that rank 0 has found or made, and verified."""
        path = self._store.root / value["folder"]
        return Artifact(
            value["kind"], value["key"], path, value["digest"], value["inputs"], value["meta"]
        )

    def _report(self, done: int, total: int, **fields: float) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt


def _written(artifact: Artifact) -> dict[str, Any]:
    """Return an artifact as JSON, its folder below the store's."""
    return {
        "kind": artifact.kind,
        "key": artifact.key,
        "folder": artifact.path.name,
        "digest": artifact.digest,
        "inputs": dict(artifact.inputs),
        "meta": dict(artifact.meta),
    }
