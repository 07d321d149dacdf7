"""How the driver walks a plan, on a cluster of a test's own: what it is told, and what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from macpo.config import EngineConfig, ExecutionConfig
from macpo.errors import ClusterError, MacpoError, RanksDifferError, RanksError, TrainingError
from macpo.execution.cluster.executor import ClusterExecutor
from macpo.execution.cluster.mailbox import Message
from macpo.execution.cluster.ray import Job, Lost, Needs, Node
from macpo.execution.cluster.shared import Seen, see
from macpo.execution.cluster.work import Outcome, RunStage, Site, Workshop
from macpo.run_directory import RunDir
from macpo.stage import Stage
from macpo.store import Artifact, Store
from tests.cluster.stages import Ends, Fails, Write
from tests.test_resume import Quiet


class Post:
    """What a task tells, straight into its job."""

    def __init__(self, job: Job, stopping: bool) -> None:
        self.job = job
        self.stopping = stopping

    def tell(self, kind: str, **fields: Any) -> None:
        self.job.messages.append(Message(kind, fields))

    def post(self) -> None:
        pass

    def wait_to_stop(self, seconds: float) -> bool:
        return self.stopping


@dataclass
class Handed:
    """A task that was handed over and has not run."""

    task: Any
    name: str
    site: Site
    needs: Needs


class OneNode:
    """A cluster that does a task when it is waited for, the last one first; some are lost."""

    def __init__(self, lost: dict[str, int] | None = None, locked: bool = True) -> None:
        self.at_work: set[str] = set()
        self.failed: dict[str, MacpoError] = {}
        self.handed: dict[str, Handed] = {}
        self.most = 0
        self.lost = lost or {}
        self.locked = locked
        self.stopped: list[str] = []
        self.leases: set[float | None] = set()

    def nodes(self) -> list[Node]:
        return [Node("1", "one", 2.0, 0.0)]

    def look_from_all(self, path: Path) -> list[Seen]:
        seen = see(path)
        return [Seen(seen.host, seen.word, self.locked, seen.macpo, seen.python)]

    def submit(self, task: Any, name: str, site: Site, needs: Needs) -> Job:
        job = Job(name, None)
        self.handed[name] = Handed(task, name, site, needs)
        self.leases.add(site.lease_seconds)
        return job

    def wait(self, jobs: list[Job]) -> None:
        self.most = max(self.most, len(jobs))
        if not jobs:
            return
        job = jobs[-1]
        handed = self.handed.pop(job.id)
        if self.lost.get(job.id, 0) > 0:
            self.lost[job.id] -= 1
            job.messages.append(Message("started", {"node": "one"}))
            job.outcome = Lost("its process died")
            return
        post = Post(job, job.id in self.stopped)
        try:
            job.outcome = handed.task(Workshop(handed.site, handed.site.open_store()), post)
        except MacpoError as error:
            job.outcome = Outcome(error=error)
        except KeyboardInterrupt:
            job.outcome = Outcome(stopped=True)

    def stop(self, jobs: list[Job]) -> None:
        self.stopped += [job.id for job in jobs]

    def kill(self, jobs: list[Job]) -> None:
        pass


def execute(
    folder: Path,
    stages: list[Stage],
    cluster: OneNode,
    observer: Quiet | None = None,
    stop: threading.Event | None = None,
    **keys: Any,
) -> dict[str, Artifact]:
    executor = ClusterExecutor(
        folder,
        Store(folder / "store"),
        EngineConfig(),
        torch.device("cpu"),
        observer or Quiet(),
        cluster=cluster,  # type: ignore[arg-type]
        config=ExecutionConfig(backend="ray", **keys),
        asked="cpu",
        stop=stop,
    )
    return executor.execute(stages)


def events(folder: Path, *kinds: str) -> list[tuple[str, str]]:
    return [(e["event"], e["stage"]) for e in RunDir(folder).journal() if e["event"] in kinds]


def text(artifact: Artifact) -> str:
    return (artifact.path / "text").read_text()


def test_stages_run_as_soon_as_their_inputs_are_there(tmp_path: Path) -> None:
    first, other = Write("first", "1"), Write("other", "2")
    stages = [first, Write("second", "b", first), other, Write("last", "c", other)]
    cluster, observer = OneNode(), Quiet()

    made = execute(tmp_path, stages, cluster, observer)

    assert cluster.most == 2
    assert observer.ran == ["other", "last", "first", "second"]
    assert text(made[stages[1].key]) == "1b"
    assert (tmp_path / "stages" / "second" / "text").read_text() == "1b"
    assert sorted(events(tmp_path, "finished")) == sorted(("finished", s.name) for s in stages)
    assert not list((tmp_path / "progress").iterdir())
    again = Quiet()
    execute(tmp_path, stages, OneNode(), again)
    assert (again.ran, len(again.found)) == ([], 4)


def test_a_lost_stage_is_begun_anew_and_both_are_written_down(tmp_path: Path) -> None:
    observer = Quiet()

    execute(tmp_path, [Write("first", "1")], OneNode({"first": 2}), observer, retries=2)

    kinds = [event for event, _ in events(tmp_path, "started", "stopped", "finished")]
    assert kinds == ["started", "stopped"] * 2 + ["started", "finished"]
    assert observer.notes == ["first is begun anew: its process died"] * 2


@pytest.mark.parametrize(
    ("error", "again"),
    [(RanksError("it has lost another one"), True), (RanksDifferError("others differ"), False)],
)
def test_a_stage_that_has_lost_a_rank_is_begun_anew_and_one_whose_ranks_differ_is_not(
    error: RanksError, again: bool, tmp_path: Path
) -> None:
    class Losing(OneNode):
        def wait(self, jobs: list[Job]) -> None:
            if self.lost.pop("first", 0):
                jobs[0].outcome = Outcome(error=error)
                return
            super().wait(jobs)

    observer, cluster = Quiet(), Losing({"first": 1})
    if again:
        made = execute(tmp_path, [Write("first", "1")], cluster, observer)
        assert [text(artifact) for artifact in made.values()] == ["1"]
        assert observer.notes == ["first is begun anew: it has lost another one"]
    else:
        with pytest.raises(RanksDifferError, match="others differ"):
            execute(tmp_path, [Write("first", "1")], cluster, observer)


def test_a_stage_that_is_lost_too_often_ends_the_run(tmp_path: Path) -> None:
    cluster = OneNode({"first": 9})

    with pytest.raises(ClusterError, match=r"first: its process died, 2 times in all"):
        execute(tmp_path, [Write("first", "1")], cluster, retries=1)

    assert cluster.lost["first"] == 7


def test_a_failure_stops_the_others_and_keeps_what_is_finished(tmp_path: Path) -> None:
    stages: list[Stage] = [Write("first", "1"), Write("second", "2"), Fails("fails")]
    stages.append(Write("third", "3", stages[1]))
    cluster = OneNode()

    with pytest.raises(TrainingError, match="the loss is nan"):
        execute(tmp_path, stages, cluster)

    assert ("started", "third") not in events(tmp_path, "started")
    assert cluster.stopped == ["first", "second"]
    assert len(events(tmp_path, "finished")) == 2
    assert events(tmp_path, "stopped") == [("stopped", "fails")]


def test_another_run_that_shares_a_failed_stage_fails_without_running_it(tmp_path: Path) -> None:
    cluster = OneNode()
    with pytest.raises(TrainingError):
        execute(tmp_path / "one", [Fails("fails")], cluster)

    with pytest.raises(ClusterError, match="it shares a stage that failed, fails: the loss is nan"):
        execute(tmp_path / "other", [Fails("fails")], cluster)

    assert events(tmp_path / "other", "started") == []


def test_a_stage_that_another_run_has_is_waited_for(tmp_path: Path) -> None:
    stage, cluster = Write("first", "1"), OneNode()
    cluster.at_work.add(stage.key)
    waited: list[int] = []

    def wait(jobs: list[Job]) -> None:
        waited.append(len(jobs))
        if len(waited) == 3:
            cluster.at_work.clear()
            cluster.wait = original  # type: ignore[method-assign]

    original: Callable[[list[Job]], None] = cluster.wait
    cluster.wait = wait  # type: ignore[method-assign]
    made = execute(tmp_path, [stage], cluster)

    assert waited == [0, 0, 0]
    assert text(made[stage.key]) == "1"


def test_what_stands_after_a_stage_that_may_end_the_run_waits_for_it(tmp_path: Path) -> None:
    first = Write("first", "1")
    ends = Ends("ends", first)
    stages = [first, ends, Write("independent", "2"), Write("second", "2", first)]
    observer = Quiet()

    made = execute(tmp_path, stages, OneNode(), observer)

    assert made.keys() == {first.key, ends.key}
    assert observer.ran == ["first", "ends"]


def test_the_wish_to_stop_is_passed_on(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()

    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, [Write("first", "1")], OneNode(), stop=stop)

    assert events(tmp_path, "started") == []


@pytest.mark.parametrize(
    ("locked", "claims", "lease"),
    [(True, "auto", None), (False, "auto", 7.0), (True, "lease", 7.0), (False, "lock", None)],
)
def test_claims_are_leases_where_locks_do_not_reach(
    tmp_path: Path, locked: bool, claims: str, lease: float | None
) -> None:
    cluster = OneNode(locked=locked)
    keys = {} if claims == "lock" else {"lease_seconds": 7.0}

    execute(tmp_path, [Write("first", "1")], cluster, claims=claims, **keys)

    assert cluster.leases == {lease}


def test_a_damaged_artifact_is_set_aside_and_made_again(tmp_path: Path) -> None:
    stage = Write("first", "1")
    made = execute(tmp_path, [stage], OneNode())
    (made[stage.key].path / "text").write_text("2")
    observer = Quiet()

    again = execute(tmp_path, [stage], OneNode(), observer)

    assert text(again[stage.key]) == "1"
    assert "first is run again" in observer.notes[0]
    assert [event for event, _ in events(tmp_path, "set_aside")] == ["set_aside"]


def test_only_models_reserve_what_the_config_says(tmp_path: Path) -> None:
    executor = ClusterExecutor(
        tmp_path,
        Store(tmp_path / "store"),
        EngineConfig(processes=4),
        torch.device("cpu"),
        Quiet(),
        cluster=OneNode(),  # type: ignore[arg-type]
        config=ExecutionConfig(backend="ray", cpus_per_stage=8, gpus_per_stage=1),
        asked="auto",
    )

    class Model(Write):
        uses_model = True

    class Shared(Model):
        by_all_ranks = True

    assert executor.needs(Write("texts", "1"), 1) == Needs(1, 0)
    assert executor.needs(Model("model", "1"), 1) == Needs(8, 1)
    assert executor.needs(Shared("shared", "1"), 1) == Needs(32, 4)
    spread = ExecutionConfig(backend="ray", cpus_per_stage=8, processes_per_node=2)
    executor.config = spread
    assert executor.needs(Model("model", "1"), 1) == Needs(8, 1)
    assert executor.needs(Shared("shared", "1"), 1) == Needs(16, 2, nodes=2)


def test_a_task_is_told_where_its_inputs_are(tmp_path: Path) -> None:
    first = Write("first", "1")
    seen: list[RunStage] = []

    class Looking(OneNode):
        def submit(self, task: Any, name: str, site: Site, needs: Needs) -> Job:
            seen.append(task)
            return super().submit(task, name, site, needs)

    execute(tmp_path, [first, Write("second", "2", first)], Looking())

    assert [list(task.artifacts) for task in seen] == [[], [first.key]]
