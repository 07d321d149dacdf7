"""Runs on a Ray cluster of two nodes on this machine, with kills of tasks, nodes and drivers.

`make test-ray` runs them. A node is a raylet with its workers; both share this machine's disk.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
import yaml

from macpo.compare import compare, load_design
from macpo.config import EngineConfig, ExecutionConfig, RunConfig, load_config
from macpo.errors import ClusterError, TrainingError
from macpo.execution.cluster.executor import ClusterExecutor
from macpo.execution.cluster.ray import Cluster, Needs, open_cluster
from macpo.execution.cluster.shared import probe
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.runner import run
from macpo.stage import Stage
from macpo.store import Store
from tests.cluster.stages import Dies, Ends, Fails, Waits, Write
from tests.compare.test_compare import QuietCompare
from tests.runs import journal_of, start_cli, write_config
from tests.test_resume import Quiet, digests

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(2000),
    # Ray's own, at the end of a process or when a node is gone.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


PATIENCE = 900.0  # seconds; a run takes a minute on two free cores
OPTIONS = ["rounds=1", "engine.checkpoint_steps=1"]


def small(folder: Path) -> Path:
    """Write a config of few stages."""
    return write_config(folder, evaluation={"answers": 0, "evaluators": ["preference"]})


class Nodes:
    """A cluster of a head and a second node, each with one CPU, and this process connected."""

    arguments: ClassVar[dict[str, Any]] = {"num_cpus": 1}
    settings: ClassVar[dict[str, Any]] = {"health_check_timeout_ms": 60_000}
    """A node on a busy machine may be silent for long; one that is killed is noticed as ever."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only; read on import
        from ray.cluster_utils import Cluster as RayCluster

        self.made = RayCluster(
            initialize_head=True,
            head_node_args={
                **self.arguments,
                "include_dashboard": False,
                "_system_config": self.settings,
            },
        )
        self.second = self.add()

    @property
    def address(self) -> str:
        return str(self.made.address)

    def add(self, **arguments: Any) -> Any:
        """Add a node."""
        return patiently(lambda: self.made.add_node(**{**self.arguments, **arguments}))

    def kill_second(self) -> None:
        """As when a machine loses its power."""
        self.made.remove_node(self.second, allow_graceful=False)

    def mend(self) -> None:
        """Have two nodes again."""
        if self.second not in self.made.worker_nodes:
            self.second = self.add()


def patiently(start: Callable[[], Any]) -> Any:
    """Start a node or more; Ray gives one 30 s, which a busy machine may not keep to."""
    for attempt in range(4):
        try:
            return start()
        except Exception as error:
            if attempt == 3 or "during startup" not in str(error):
                raise
    raise AssertionError


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes: Nodes = patiently(Nodes)
    import ray

    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.made.shutdown()


@pytest.fixture(autouse=True)
def _two_nodes(nodes: Nodes) -> Iterator[None]:
    yield
    nodes.mend()


class Told(Quiet):
    """An observer that also does something when a stage starts or tells its progress."""

    def __init__(self, act: Callable[[Stage], None] = lambda stage: None) -> None:
        super().__init__()
        self.act = act
        self.finished: list[str] = []

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        self.act(stage)

    def stage_finished(self, stage: Stage, seconds: float, artifact: object) -> None:
        self.finished.append(stage.name)


def execute(folder: Path, stages: list[Stage], observer: Quiet, *overrides: str) -> dict[str, Any]:
    config = load_config(write_config(folder / "config"), ["execution.backend=ray", *overrides])
    with open_cluster(config.execution) as cluster:
        executor = ClusterExecutor(
            folder,
            Store(folder / "store"),
            EngineConfig(),
            torch.device("cpu"),
            observer,
            cluster=cluster,
            config=config.execution,
            asked="cpu",
        )
        return executor.execute(stages)


def events(folder: Path, *kinds: str) -> list[tuple[str, str]]:
    return [(e["event"], e["stage"]) for e in RunDir(folder).journal() if e["event"] in kinds]


def artifacts(run: Path) -> dict[str, str]:
    """The checksums of all artifacts in a run's store."""
    return {
        name: checksum
        for name, checksum in digests(run / "store").items()
        if not name.startswith((".", "times"))
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(small(tmp_path_factory.mktemp("config")), OPTIONS)


@pytest.fixture(scope="module")
def local(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as the local executor runs it, with as many threads as a task has."""
    folder = tmp_path_factory.mktemp("local") / "run"
    torch.set_num_threads(1)
    run(config, folder, Quiet())
    return folder


def on_ray(config: RunConfig, **keys: Any) -> RunConfig:
    return config.model_copy(update={"execution": ExecutionConfig(backend="ray", **keys)})


def assert_same(run: Path, local: Path) -> None:
    assert artifacts(run) == artifacts(local)
    assert digests(run / "final") == digests(local / "final")
    assert (run / "metrics.jsonl").read_bytes() == (local / "metrics.jsonl").read_bytes()


# Whole runs


def test_a_run_leaves_the_bytes_of_the_local_executor_with_teachers_side_by_side(
    config: RunConfig, local: Path, nodes: Nodes, tmp_path: Path
) -> None:
    run(on_ray(config), tmp_path / "run", Quiet())

    assert_same(tmp_path / "run", local)
    open_stages: set[str] = set()
    together: set[frozenset[str]] = set()
    for event in journal_of(tmp_path / "run"):
        if event["event"] == "started":
            open_stages.add(event["stage"])
            together.add(frozenset(open_stages))
        elif event["event"] == "finished":
            open_stages.discard(event["stage"])
    pairs = [
        names
        for names in together
        if any("weak-a" in name for name in names) and any("weak-b" in name for name in names)
    ]
    assert pairs
    assert status(tmp_path / "run").state == "finished"
    again = Quiet()
    run(config, tmp_path / "run", again)
    assert again.ran == []


def test_a_node_killed_in_the_middle_costs_no_byte(
    config: RunConfig, local: Path, nodes: Nodes, tmp_path: Path
) -> None:
    """Under leases, as without locks between nodes: who is dead is found by its silence."""
    observer, killed = Told(), threading.Event()

    def kill(stage: Stage) -> None:
        if stage.name.endswith("/train") and not killed.is_set():
            killed.set()
            nodes.kill_second()

    observer.act = kill
    section = {"claims": "lease", "lease_seconds": 3.0}
    run(on_ray(config, **section), tmp_path / "run", observer)

    assert killed.is_set()
    assert_same(tmp_path / "run", local)


def test_a_driver_killed_in_the_middle_is_started_again(
    config: RunConfig, local: Path, nodes: Nodes, tmp_path: Path
) -> None:
    file = small(tmp_path / "config")  # the same models and data, at another place
    options = [*OPTIONS, "execution.backend=ray", f"execution.address={nodes.address}"]
    args = ["run", file, "--out", tmp_path / "run", *(a for o in options for a in ("--set", o))]
    driver = start_cli(args)
    wait_for(lambda: len(events_if_any(tmp_path / "run", "finished")) >= 6, driver)
    driver.kill()
    driver.communicate()
    at_kill = status(tmp_path / "run")
    assert at_kill.state == "stopped"

    again = start_cli(args)
    _, errors = again.communicate(timeout=PATIENCE)

    assert again.returncode == 0, errors
    done = [stage for event, stage in events(tmp_path / "run", "finished")]
    assert len(done) == len(set(done))  # nothing was run twice to its end
    assert_same_numbers(tmp_path / "run", local)


def test_a_driver_asked_to_stop_stops_at_a_safe_point_and_goes_on(
    config: RunConfig, nodes: Nodes, tmp_path: Path
) -> None:
    file = small(tmp_path / "config")
    options = [*OPTIONS, "execution.backend=ray", f"execution.address={nodes.address}"]
    args = ["run", file, "--out", tmp_path / "run", *(a for o in options for a in ("--set", o))]
    driver = start_cli(args)
    wait_for(lambda: len(events_if_any(tmp_path / "run", "finished")) >= 3, driver)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=PATIENCE)

    assert driver.returncode == 130, errors
    assert "stopping at the next safe point" in errors
    assert status(tmp_path / "run").running is None


def wait_for(happened: Callable[[], bool], process: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def events_if_any(folder: Path, kind: str) -> list[tuple[str, str]]:
    return events(folder, kind) if (folder / "journal.jsonl").exists() else []


def assert_same_numbers(run: Path, local: Path) -> None:
    assert (
        digests(run / "final" / "student")["adapter_model.safetensors"]
        == (digests(local / "final" / "student")["adapter_model.safetensors"])
    )
    assert (run / "metrics.jsonl").read_bytes() == (local / "metrics.jsonl").read_bytes()


# Stages that go wrong


def test_a_stage_whose_process_dies_is_begun_anew_as_often_as_allowed(
    nodes: Nodes, tmp_path: Path
) -> None:
    observer = Quiet()
    stage = Dies("dies", tmp_path / "count", 2)

    made = execute(tmp_path, [stage, Write("after", "x")], observer)

    assert sorted(p.name for p in made[stage.key].path.iterdir()) == ["half", "manifest.json"]
    mine = [
        event
        for event, name in events(tmp_path, "started", "stopped", "finished")
        if name == "dies"
    ]
    assert mine == ["started", "stopped"] * 2 + ["started", "finished"]
    assert [note for note in observer.notes if "dies is begun anew: its process died" in note]


def test_a_stage_that_dies_too_often_ends_the_run_in_one_line(nodes: Nodes, tmp_path: Path) -> None:
    stage = Dies("dies", tmp_path / "count", 9)

    with pytest.raises(ClusterError, match=r"its process died.*2 times in all") as caught:
        execute(tmp_path, [stage], Quiet(), "execution.retries=1")

    assert "\n" not in str(caught.value)
    assert (tmp_path / "count").read_text() == "xx"


def test_an_error_of_the_users_is_not_tried_again_and_stops_the_others(
    nodes: Nodes, tmp_path: Path
) -> None:
    stages = [Waits("waits", 1, tmp_path / "never"), Fails("fails")]

    with pytest.raises(TrainingError, match="the loss is nan"):
        execute(tmp_path, stages, Quiet())

    assert events(tmp_path, "started").count(("started", "fails")) == 1
    reasons = {e["stage"]: e["reason"] for e in RunDir(tmp_path).journal() if "reason" in e}
    assert reasons["fails"] == "TrainingError: the loss is nan; lower the learning rate"
    assert reasons.get("waits", "KeyboardInterrupt") == "KeyboardInterrupt"


def test_a_bug_keeps_its_traceback(nodes: Nodes, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        execute(tmp_path, [Fails("fails", bug=True)], Quiet())


def test_a_stage_on_a_killed_node_is_begun_anew_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    started: list[str] = []
    killed = threading.Event()

    def kill(stage: Stage) -> None:
        started.append(stage.name)
        if len(set(started)) == 2 and not killed.is_set():  # one on each node
            killed.set()
            nodes.kill_second()

    def go_on(text: str) -> None:  # only then: a worker outlives its node for a moment
        observer.notes.append(text)
        if "is begun anew" in text:
            (tmp_path / "go").touch()

    stages = [Waits(f"waits-{n}", n, tmp_path / "go") for n in (1, 2)]
    observer = Told(kill)
    observer.note = go_on  # type: ignore[method-assign]
    made = execute(
        tmp_path, stages, observer, "execution.claims=lease", "execution.lease_seconds=3"
    )

    assert [(made[s.key].path / "text").read_text() for s in stages] == ["1", "2"]
    assert len(events(tmp_path, "started")) == 3
    assert sorted(observer.finished) == ["waits-1", "waits-2"]


def test_what_no_node_has_is_refused_before_anything_starts(nodes: Nodes, tmp_path: Path) -> None:
    config = load_config(
        write_config(tmp_path / "config"),
        ["execution.backend=ray", "execution.cpus_per_stage=64"],
    )

    with pytest.raises(ClusterError, match="asks for 64 CPU, 0 GPU on one node") as caught:
        run(config, tmp_path / "run", Quiet())

    assert "\n" not in str(caught.value)
    assert events(tmp_path / "run", "started") == []


def test_gpus_that_are_not_there_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    overrides = ["execution.backend=ray", "execution.gpus_per_stage=1", "device=auto"]
    config = load_config(write_config(tmp_path / "config"), overrides)

    with pytest.raises(ClusterError, match="asks for 1 CPU, 1 GPU on one node"):
        run(config, tmp_path / "run", Quiet())


def test_a_node_that_is_gone_since_it_was_listed_is_left_out(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_cluster(ExecutionConfig(backend="ray")) as cluster, probe(tmp_path) as (path, word):
        there = cluster.nodes()
        gone = replace(there[0], id="ab" * 28)
        monkeypatch.setattr(Cluster, "nodes", lambda self: [gone, *there])
        seen = cluster.look_from_all(path)

    assert [look.word for look in seen] == [word, word]


def test_nothing_after_a_stage_that_ends_the_run_is_run(nodes: Nodes, tmp_path: Path) -> None:
    first = Write("first", "1")
    ends = Ends("ends", first)
    stages = [first, ends, Write("independent", "2"), Write("second", "2", first)]

    made = execute(tmp_path, stages, Quiet())

    assert made.keys() == {first.key, ends.key}


def test_a_store_that_another_driver_uses_is_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    """Two drivers, one store: a stage is run once, and the other one finds it."""
    store, release = Store(tmp_path / "store"), threading.Event()
    stage = Write("first", "1")

    def hold() -> None:
        with store.claim(stage.kind, stage.key, lambda: None):
            release.wait(PATIENCE)

    def let_go(text: str) -> None:
        observer.notes.append(text)
        if "waiting for first" in text:
            release.set()

    observer = Quiet()
    observer.note = let_go  # type: ignore[method-assign]
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        made = execute(tmp_path, [stage], observer)
    finally:
        release.set()
        holder.join()

    assert (made[stage.key].path / "text").read_text() == "1"
    assert any("waiting for first" in note for note in observer.notes)


def test_cluster_needs_an_address_that_answers(tmp_path: Path, nodes: Nodes) -> None:
    config = write_config(tmp_path / "config")
    args = ["run", config, "--out", tmp_path / "run", "--set", "execution.backend=ray"]

    # In a process of its own, for this one is connected.
    process = start_cli([*args, "--set", "execution.address=127.0.0.1:9"])
    _, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 1
    assert "no Ray cluster can be reached at 127.0.0.1:9" in errors.strip().splitlines()[-1]


def test_nodes_are_counted(nodes: Nodes) -> None:
    assert sorted(node.cpus for node in Cluster().nodes()) == [1.0, 1.0]


# Comparisons, and several processes


def test_a_comparison_runs_its_cells_side_by_side_and_shared_stages_once(
    nodes: Nodes, tmp_path: Path
) -> None:
    small(tmp_path)
    content = {
        "name": "both",
        "base": "tiny.yaml",
        "seeds": [1],
        "methods": {"macpo": "macpo", "spin": "spin"},
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    torch.set_num_threads(1)
    alone, beside = QuietCompare(), QuietCompare()

    here = compare(load_design(tmp_path / "compare.yaml", OPTIONS), tmp_path / "here", alone)
    overrides = [*OPTIONS, "execution=ray"]
    there = compare(load_design(tmp_path / "compare.yaml", overrides), tmp_path / "there", beside)

    assert not there.failures
    assert (tmp_path / "there/results.csv").read_bytes() == (
        tmp_path / "here/results.csv"
    ).read_bytes()
    assert len(there.finished) == len(here.finished) == 2
    ran = [name.partition(": ")[2] for name in beside.ran]
    assert sorted(ran) == sorted(alone.ran)  # no stage twice
    assert artifacts(tmp_path / "there") == artifacts(tmp_path / "here")


def test_a_stage_of_several_processes_takes_as_many_cpus_of_one_node(
    nodes: Nodes, tmp_path: Path
) -> None:
    options = [*OPTIONS, "engine.processes=2", "execution.backend=ray"]
    config = load_config(small(tmp_path / "config"), options)

    with pytest.raises(ClusterError, match="asks for 2 CPU, 0 GPU on one node"):
        run(config, tmp_path / "run", Quiet())

    large = nodes.add(num_cpus=2)
    try:
        run(config, tmp_path / "run", Quiet())
    finally:
        nodes.made.remove_node(large)
    torch.set_num_threads(2)  # one for each rank
    local = config.model_copy(update={"execution": ExecutionConfig()})
    run(local, tmp_path / "local", Quiet())
    torch.set_num_threads(1)
    assert artifacts(tmp_path / "run") == artifacts(tmp_path / "local")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A config of two ranks on two nodes, and its run by two ranks of this machine."""
    home = tmp_path_factory.mktemp("two-ranks")
    options = [
        *OPTIONS,
        "engine.processes=2",
        "execution.backend=ray",
        "execution.processes_per_node=1",
        "dpo.epochs=30",  # long enough that a rank can be found in the middle
    ]
    config = load_config(small(home / "config"), options)
    torch.set_num_threads(2)  # one for each rank
    local = config.model_copy(update={"execution": ExecutionConfig()})
    run(local, home / "run", Quiet())
    torch.set_num_threads(1)
    return config, home / "run"


def test_a_stage_over_two_nodes_leaves_the_bytes_of_two_processes_here(
    nodes: Nodes, two_ranks: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, local = two_ranks
    assert Needs(2, 0).can_ever_be_met(Cluster().nodes()) is False  # no node has both

    run(config, tmp_path / "run", Quiet())

    assert artifacts(tmp_path / "run") == artifacts(local)
    assert digests(tmp_path / "run/final") == digests(local / "final")


@pytest.mark.parametrize("what", ["rank", "node"])
def test_a_rank_killed_on_another_node_costs_no_byte(
    what: str, nodes: Nodes, two_ranks: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, local = two_ranks
    observer, killed = Told(), threading.Event()

    def kill(stage: Stage) -> None:
        if not stage.name.endswith("/train") or killed.is_set():
            return
        found = standing_by(stage.name)
        if found is None:  # it has just ended
            return
        killed.set()
        if what == "node":
            nodes.kill_second()
            nodes.mend()
        else:
            os.kill(found, signal.SIGKILL)

    observer.act = kill
    section = {"claims": "lease", "lease_seconds": 5.0}
    execution = config.execution.model_copy(update=section)
    run(config.model_copy(update={"execution": execution}), tmp_path / "run", observer)

    assert killed.is_set()
    assert [note for note in observer.notes if "/train is begun anew: " in note]
    assert artifacts(tmp_path / "run") == artifacts(local)
    assert digests(tmp_path / "run/final") == digests(local / "final")


def standing_by(stage: str) -> int | None:
    """The process that is the second rank of a stage, while it is."""
    for process in psutil.process_iter(["name", "cmdline"]):
        name, words = process.info["name"] or "", process.info["cmdline"] or []
        if name.startswith("ray::") and f"{stage}, node 1" in " ".join(words):
            return int(process.pid)
    return None
