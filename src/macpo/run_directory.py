"""The folder of a run: all names in it, and reading what is there.

RUN/config.yaml            the config as it was last run, what was left to its default left out
RUN/config.resolved.yaml   the same with the defaults, and with the dtype that `auto` came to
RUN/run.json               what was resolved once for the run: dtype, device, versions
RUN/plan.json              the stages, whom they train and whom they measure
RUN/evaluations/           the same of each evaluation that came afterwards (`macpo eval`)
RUN/store/                 artifacts by content key
RUN/stages/                the same under readable names
RUN/journal.jsonl          what happened when
RUN/progress.json          where the running stage is
RUN/progress/              the same of stages that run side by side, on a cluster
RUN/metrics.jsonl          one line per policy, round and metric
RUN/final/                 the aligned policies
RUN/annotations/           what people judged
RUN/report.html            what came of it, for people
RUN/lock                   held by the process at work

Nothing here needs a model library, so a run can be asked about at any time from another process.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from macpo.config import RunConfig, load_config
from macpo.dtype import Resolved, read_resolved
from macpo.errors import DamagedError, DataError, StoreError
from macpo.records import read_jsonl
from macpo.store import MANIFEST, artifact_folder, read_journal, read_manifest, read_progress

FINAL = "final"
"""The folder with the aligned policies; in the journal, where a run stops that hands them out."""

COLLAPSE = "collapse"
"""The kind of the stages that decide whether a run ends early; see `macpo.evaluation.collapse`."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One measurement of one policy after one round (0: after initialisation)."""

    policy: str
    round: int
    metric: str
    value: float

    def to_json(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of the plan, whose key is the hash of kind, version and `Stage.identity`."""

    name: str
    kind: str
    key: str
    identity: Mapping[str, Any]
    version: int = 1

    def input(self, field: str) -> str | None:
        """Return the key of the stage in a field; None when there is none in it."""
        value = self.identity.get(field)
        if not isinstance(value, Mapping):
            return None
        return value.get("stage") or value.get("weights") or None

    @property
    def inputs(self) -> frozenset[str]:
        """The keys of all stages whose artifacts it reads."""
        return frozenset(_keys_in(self.identity))


def _keys_in(value: Any) -> Iterator[str]:
    """Yield the keys of stages in what `Stage.identity` returned."""
    if isinstance(value, Mapping):
        for name in ("stage", "weights"):
            if value.get(name) and isinstance(value[name], str):
                yield value[name]
        for inner in value.values():
            yield from _keys_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _keys_in(inner)


@dataclass(frozen=True, slots=True)
class PlannedPolicy:
    """An agent's positive policy after a round.

    `trained` is the key of the stage that trained it, None for the bare base model; `measured` are
    those of the stages that measure it, empty where nobody does. `chosen` is that of the stage with
    its answers to test prompts where the method chose them; None where it answers as itself.
    """

    policy: str
    round: int
    trained: str | None
    measured: tuple[str, ...]
    chosen: str | None = None


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """Where a run ended before its last round, because of signs of collapse after `round`.

    `kept` is the round whose policies it hands out, `stages` how many of its plan it consists of.
    """

    round: int
    kept: int
    signs: tuple[str, ...]
    stages: int


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run consists of, as plan.json has it: its stages in order, and its policies."""

    stages: tuple[PlannedStage, ...]
    policies: tuple[PlannedPolicy, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunPlan:
        """Read what `to_json` wrote."""
        return cls(
            tuple(PlannedStage(**stage) for stage in value["stages"]),
            tuple(
                PlannedPolicy(**{**policy, "measured": tuple(policy["measured"])})
                for policy in value["policies"]
            ),
        )

    def keep(self, keys: Iterable[str]) -> RunPlan:
        """Return this plan with only the stages that read nothing else than those keys.

        Args:
            keys: of stages that are there. Stages that are kept may read one another.
        """
        there = set(keys)
        stages = []
        for stage in self.stages:  # each stands after its inputs
            if stage.inputs <= there:
                stages.append(stage)
                there.add(stage.key)
        kept = {stage.key for stage in stages}
        policies = (
            replace(policy, measured=tuple(key for key in policy.measured if key in kept))
            for policy in self.policies
        )
        return RunPlan(tuple(stages), tuple(policies))

    def stage(self, key: str) -> PlannedStage:
        """Return the stage with a key of this plan.

        Raises:
            DamagedError: it refers to one that it does not have.
        """
        found = next((stage for stage in self.stages if stage.key == key), None)
        if found is None:
            raise DamagedError(f"the plan has no stage of key {key[:80]}; run the config again")
        return found

    def policy(
        self, agent: str, round: int | None = None, ended: EarlyEnd | None = None
    ) -> PlannedPolicy:
        """Return an agent's positive policy after a round, by default the one that is handed out.

        That is the one after its last round, or after the one that a run kept which ended early.

        Raises:
            StoreError: there is no such agent, or no such round of it; names the nearest.
        """
        agents = list(dict.fromkeys(policy.policy for policy in self.policies))
        if agent not in agents:
            raise StoreError(f"no agent {agent!r} in this run{_nearest(agent, agents)}")
        own = {p.round: p for p in self.policies if p.policy == agent}
        if round is None:
            return own[max(r for r in own if ended is None or r <= ended.kept)]
        if round not in own:
            nearest = min(own, key=lambda known: abs(known - round))
            raise StoreError(
                f"{agent} has no policy of round {round}; its rounds are {min(own)} to {max(own)}, "
                f"the nearest is {nearest}"
            )
        return own[round]

    def answers(self, policy: PlannedPolicy, split: str) -> list[PlannedStage]:
        """Return the stages in which a policy answers the prompts of a split as itself.

        That is without the system prompts and the other ways in which methods draw bad answers. Of
        answers that a method chose for it to test prompts, it is these.
        """
        if split == "test" and policy.chosen is not None:
            return [self.stage(policy.chosen)]
        found = []
        for stage in self.stages:
            asked = stage.identity.get("policy")
            if stage.kind != "respond" or not isinstance(asked, Mapping):
                continue
            speaks = (asked["agent"]["name"], asked["role"], asked["weights"])
            plain = not stage.identity.get("system") and not stage.identity.get("away_from")
            if (
                speaks == (policy.policy, "positive", policy.trained or "")
                and plain
                and stage.identity["split"] == split
            ):
                found.append(stage)
        return found


class RunDir:
    """A run directory, which need not be there yet.

    Attributes:
        path: the folder itself; the others are the files and folders in it, see the module.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.resolved_config_file = self.path / "config.resolved.yaml"
        self.run_file = self.path / "run.json"
        self.plan_file = self.path / "plan.json"
        self.evaluations = self.path / "evaluations"
        self.store = self.path / "store"
        self.stages = self.path / "stages"
        self.journal_file = self.path / "journal.jsonl"
        self.progress_file = self.path / "progress.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.final = self.path / FINAL
        self.annotations = self.path / "annotations"
        self.report_file = self.path / "report.html"
        self.lock = self.path / "lock"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.journal_file.is_file() or self.run_file.is_file()

    def config(self) -> RunConfig:
        """Return the config of the run, resolved where that was written down.

        Raises:
            ConfigError: it is not there, or cannot be read.
        """
        resolved = self.resolved_config_file
        return load_config(resolved if resolved.is_file() else self.config_file)

    def resolved(self) -> Resolved | None:
        """Return what was resolved once for the run; None before it first ran.

        Raises:
            StoreError: it cannot be read.
        """
        return read_resolved(self.run_file)

    def plan(self) -> RunPlan | None:
        """Return what the run consists of; None when it was last run before macpo wrote that.

        Raises:
            DamagedError: it cannot be read.
        """
        try:
            return _read_plan(self.plan_file, "run the config again")
        except FileNotFoundError:
            return None

    def evaluated(self, plan: RunPlan) -> list[RunPlan]:
        """Return what evaluations after the run consist of, as far as they belong to it still.

        After a change of the config its answers may be others; what was measured of the former
        ones is left out.

        Args:
            plan: the run's own.

        Raises:
            DamagedError: one cannot be read.
        """
        keys = [stage.key for stage in plan.stages]
        files = sorted(self.evaluations.glob("*.json"))
        remedy = "remove it and evaluate again"
        return [_read_plan(file, remedy).keep(keys) for file in files]

    def journal(self) -> list[dict[str, Any]]:
        """Return what happened, oldest first; see `macpo.store.read_journal`.

        What happened to a stage says to which.
        """
        return [
            event
            for event in read_journal(self.journal_file)
            if "stage" in event or "key" not in event
        ]

    def progress(self) -> dict[str, Any] | None:
        """Return where the running stage is; see `macpo.store.read_progress`."""
        return read_progress(self.progress_file)

    def progress_of(self, key: str) -> Path:
        """Return where it stands how far a stage is that runs beside others."""
        return self.path / "progress" / f"{key[:16]}.json"

    def metrics(self) -> list[MetricRow]:
        """Return the rows of metrics.jsonl; none when it is not there.

        Raises:
            DataError: it cannot be read.
        """
        if not self.metrics_file.is_file():
            return []
        return [_metric_row(self.metrics_file, row) for row in read_jsonl(self.metrics_file)]

    def ended(self) -> EarlyEnd | None:
        """Return where the run ended early; None if it did not, or has not yet.

        Raises:
            DamagedError: what decided it cannot be read.
        """
        plan = self.plan()
        for number, stage in enumerate(() if plan is None else plan.stages, 1):
            if stage.kind != COLLAPSE or not self.is_done(stage):
                continue
            meta = read_manifest(self.artifact(stage)).fields["meta"]
            if meta["stop"]:
                return EarlyEnd(stage.identity["round"], meta["kept"], tuple(meta["signs"]), number)
        return None

    def artifact(self, stage: PlannedStage) -> Path:
        """Return where the artifact of a stage is, or would be."""
        return artifact_folder(self.store, stage.kind, stage.key)

    def stage(self, name: str) -> Path:
        """Return the artifact's folder of a finished stage, such as `round-1/student/pairs`.

        Raises:
            StoreError: no finished stage has this name; names the nearest.
        """
        plan = self.plan()
        plans = [] if plan is None else [*self.evaluated(plan), plan]
        stages = {stage.name: stage for part in plans for stage in part.stages}
        folder = self.artifact(stages[name]) if name in stages else self.stages / name
        if (plan is None or name in stages) and (folder / MANIFEST).is_file():
            return folder
        state = "is not done yet" if name in stages else "is no stage of this run"
        done = [other for other, stage in stages.items() if self.is_done(stage)]
        raise StoreError(f"{self.path}: {name} {state}{_nearest(name, done)}")

    def is_done(self, stage: PlannedStage) -> bool:
        """Tell whether the artifact of a stage is there."""
        return (self.artifact(stage) / MANIFEST).is_file()


def _metric_row(path: Path, row: Mapping[str, Any]) -> MetricRow:
    """Read a line of metrics.jsonl.

    Raises:
        DataError: it is none.
    """
    try:
        return MetricRow(
            str(row["policy"]), int(row["round"]), str(row["metric"]), float(row["value"])
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: a line is no measurement ({type(error).__name__}: {error}); run the config "
            "again, which writes it anew"
        ) from error


def _checked(plan: RunPlan) -> RunPlan:
    """Return a plan whose keys are of its own stages; an evaluation's policies are another's.

    Raises:
        ValueError: they are not, or not all in it is of the type that it should be.
    """
    for stage in plan.stages:
        artifact_folder(Path(), stage.kind, stage.key)
        if not isinstance(stage.name, str) or not isinstance(stage.identity, Mapping):
            raise ValueError(f"the stage of key {stage.key} is none")
    known = {stage.key for stage in plan.stages}
    for policy in plan.policies:
        if not isinstance(policy.policy, str) or not isinstance(policy.round, int):
            raise ValueError(f"{policy.policy!r:.60} after round {policy.round!r:.20} is no policy")
        for key in policy.measured:
            if key not in known:
                raise ValueError(f"there is no stage of key {key!r:.80}")
        for other in (policy.trained, policy.chosen):
            if other is not None and not isinstance(other, str):
                raise ValueError(f"{other!r:.80} is no key")
    return plan


def _read_plan(path: Path, remedy: str) -> RunPlan:
    """Read the stages and policies that a file holds.

    Raises:
        DamagedError: it cannot be read; says `remedy`.
        FileNotFoundError: it is not there.
    """
    try:
        return _checked(RunPlan.from_json(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); {remedy}") from error


def find_runs(*parents: Path) -> list[Path]:
    """List the run directories directly below some folders."""
    found: dict[Path, None] = {}
    for parent in parents:
        try:
            children = sorted(child for child in parent.iterdir() if RunDir(child).exists)
        except OSError:  # no such folder, or not ours to read: nothing to suggest from it
            continue
        found |= dict.fromkeys(children)
    return list(found)


def _nearest(name: str, known: Iterable[str]) -> str:
    """Name what may have been meant, else all there is."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(names)}" if names else ""
