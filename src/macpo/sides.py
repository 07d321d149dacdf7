"""Policies of runs by the names that people give them: `student@3`, a run's folder, or both.

    student            the student after the last round that will do
    weak-a@2           a teacher after round 2
    runs/other         the same agent of another run
    runs/other:student@1

Commands that look at one policy or hold two against each other read them here, without a model
library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from macpo.errors import ConfigError, StoreError
from macpo.run_directory import PlannedPolicy, RunDir, RunPlan
from macpo.run_status import status
from macpo.store import MANIFEST

STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Side:
    """An agent's positive policy after a round, in a run.

    Attributes:
        run: the run that made it.
        plan: of that run.
        policy: as planned there.
        home: the run that the command was given, from which another one is told apart.
    """

    run: RunDir
    plan: RunPlan
    policy: PlannedPolicy
    home: Path

    @property
    def label(self) -> str:
        """Its name: `student@3`, with the folder's before it where that is another run's."""
        name = f"{self.policy.policy}@{self.policy.round}"
        same = self.run.path.resolve() == self.home.resolve()
        return name if same else f"{self.run.path.resolve().name}:{name}"


Missing = Callable[[Side], str | None]
"""Says what a side lacks for what is wanted of it, None when nothing."""


def find_side(text: str, home: str | Path, missing: Missing, agent: str = STUDENT) -> Side:
    """Return the policy that is meant.

    Args:
        text: as people write it, see the module; empty for `agent`.
        home: the run whose policies need no folder before them.
        missing: a policy without a round is the last one that lacks nothing.
        agent: who is meant where only a run is named.

    Raises:
        StoreError: there is no such run, agent or round, or it lacks something; names the nearest.
        ConfigError: the name cannot be read.
    """
    folder, name = _split(text, Path(home))
    status(folder)  # says which run may have been meant
    run = RunDir(folder)
    plan = run.plan()
    if plan is None:
        raise StoreError(
            f"{run.path}: has no {run.plan_file.name}, an older macpo ran it; run its config "
            "again, which finds what is done and writes one"
        )
    who, round = parse_policy(name or agent)
    if round is not None:
        side = Side(run, plan, plan.policy(who, round), Path(home))
        lack = missing(side)
        if lack is not None:
            raise StoreError(f"{run.path}: {lack}")
        return side
    last = plan.policy(who).round
    own = sorted((p for p in plan.policies if p.policy == who), key=lambda p: -p.round)
    sides = [Side(run, plan, policy, Path(home)) for policy in own]
    ready = next((side for side in sides if missing(side) is None), None)
    if ready is None:
        raise StoreError(
            f"{run.path}: {missing(Side(run, plan, plan.policy(who, last), run.path))}"
        )
    return ready


def parse_policy(text: str) -> tuple[str, int | None]:
    """Read `agent` or `agent@round`.

    Raises:
        ConfigError: it is neither.
    """
    agent, at, round = text.partition("@")
    if not agent or (at and not re.fullmatch(r"\d{1,9}", round)):
        raise ConfigError(
            f"{text[:60]!r} names no policy; write an agent and a round, such as {STUDENT}@1 "
            "(0 is before the first), or the agent alone for its last"
        )
    return agent, int(round) if at else None


def untrained(side: Side) -> str | None:
    """Say that a policy's weights are not there yet: a `Missing`."""
    if side.policy.trained is None:
        return None
    stage = side.plan.stage(side.policy.trained)
    if (side.run.artifact(stage) / MANIFEST).is_file():
        return None
    return f"{stage.name} is not done yet; run the config to go on"


def _split(text: str, home: Path) -> tuple[Path, str]:
    """Tell the folder of a run from the name of a policy; either may be left out."""
    if text and RunDir(text).exists:
        return Path(text), ""
    folder, colon, name = text.rpartition(":")
    if colon and folder:
        return Path(folder), name
    if os.sep in text or (text and Path(text).is_dir()):
        return Path(text), ""
    return home, text
