"""Trackers are told the run's numbers, and whatever they do, the run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from macpo.config import RunConfig
from macpo.errors import ConfigError
from macpo.monitors.protocol import TrackedRun
from macpo.monitors.tracking import Tracking, training_axis
from macpo.run_directory import MetricRow, RunDir
from macpo.store import Artifact
from macpo.trackers import TRACKERS, Tracker, register_tracker
from tests.runs import python_environment, run_cli, write_config
from tests.test_resume import Quiet

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "d"},
    "student": {"model": "m"},
    "teachers": [{"name": "weak", "model": "m"}],
}
RUN = TrackedRun("tiny", "a" * 16, Path("run"), {"seed": 0})


class Kept:
    """A monitor that keeps what it is told; `fails` names the call that raises."""

    where = "in memory"

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.told: list[tuple[Any, ...]] = []

    def numbers(self, axis: str, place: int, values: Mapping[str, float]) -> None:
        self._tell("numbers", axis, place, dict(values))

    def alert(self, title: str, text: str) -> None:
        self._tell("alert", title, text)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, *what: Any) -> None:
        if what[0] == self.fails:
            raise OSError(28, "No space left on device")
        self.told.append(what)


def stage(name: str, kind: str = "dpo", agent: str = "student") -> Any:
    return SimpleNamespace(name=name, kind=kind, agent=SimpleNamespace(name=agent))


def artifact(**meta: Any) -> Artifact:
    return Artifact("dpo", "0" * 64, Path("store"), "0" * 64, {}, meta)


def test_metrics_are_told_once_each_round_together() -> None:
    monitor = Kept()
    tracking = Tracking(Quiet(), {"kept": monitor})
    rows = [MetricRow(who, 0, "reward", value) for who, value in (("student", 1.0), ("weak", 2.0))]
    tracking.measured(rows)
    tracking.measured([*rows, MetricRow("student", 1, "reward", 3.0)])
    assert monitor.told == [
        ("numbers", "round", 0, {"student/reward": 1.0, "weak/reward": 2.0}),
        ("numbers", "round", 1, {"student/reward": 3.0}),
    ]


def test_training_is_counted_on_from_stage_to_stage_found_ones_included() -> None:
    monitor = Kept()
    tracking = Tracking(Quiet(), {"kept": monitor})
    tracking.stage_found(stage("round-1/student/train"), artifact(steps=30))
    tracking.stage_progress(stage("round-2/student/train"), 1, 30, loss=0.5, other=1.0)
    tracking.stage_finished(stage("round-2/student/train"), 1.0, artifact(steps=30))
    tracking.stage_progress(stage("round-3/student/train"), 2, 30, loss=0.25, margin=0.1)
    tracking.stage_progress(stage("round-3/student/answers", "respond"), 2, 30)
    assert monitor.told == [
        ("numbers", "train/student", 31, {"train/student/loss": 0.5}),
        (
            "numbers",
            "train/student",
            62,
            {"train/student/loss": 0.25, "train/student/margin": 0.1},
        ),
    ]


def test_negative_policies_have_an_axis_of_their_own() -> None:
    assert training_axis(stage("init/weak/positive", agent="weak")) == "train/weak"
    assert training_axis(stage("init/weak/negative", agent="weak")) == "train/weak/negative"


def test_signs_of_collapse_and_alerts_are_told() -> None:
    monitor, observer = Kept(), Quiet()
    tracking = Tracking(observer, {"kept": monitor})
    signs = artifact(signs=["student: copying from the prompt 41 %"])
    tracking.stage_finished(stage("round-2/collapse", "collapse"), 0.1, signs)
    tracking.alert("title", "text")
    tracking.close()
    assert monitor.told == [
        ("alert", "round-2/collapse: sign of collapse", "student: copying from the prompt 41 %"),
        ("alert", "title", "text"),
        ("close",),
    ]
    assert observer.alerts == [("title", "text")]


def test_monitor_that_fails_is_left_out_and_told_of_once() -> None:
    bad, good, observer = Kept("numbers"), Kept(), Quiet()
    tracking = Tracking(observer, {"bad": bad, "good": good})
    for t in range(3):
        tracking.measured([MetricRow("student", t, "reward", 1.0)])
    tracking.close()
    assert observer.notes == [
        "track: bad failed and is left out from here on; the run goes on (OSError: [Errno 28] No "
        "space left on device)"
    ]
    assert bad.told == []
    assert len(good.told) == 4


@pytest.fixture
def broken() -> Iterator[None]:
    """A tracker whose start fails."""

    def start(run: TrackedRun) -> Kept:
        raise RuntimeError("no server")

    register_tracker(Tracker("broken", "json", start))
    yield
    TRACKERS.unregister("broken")


@pytest.mark.usefixtures("broken")
def test_tracker_that_does_not_start_does_not_fail_the_run(tmp_path: Path) -> None:
    observer = Quiet()
    config = RunConfig.model_validate({**MINIMAL, "track": "broken"})
    Tracking.start(config, RunDir(tmp_path), observer).close()
    assert observer.notes == [
        "track: broken failed and is left out from here on; the run goes on (RuntimeError: no "
        "server)"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tensorbord", "did you mean tensorboard?"),
        (["wandb", "wandb"], "name it once"),
    ],
)
def test_tracker_that_is_not_known_is_refused_with_the_nearest(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        RunConfig.model_validate({**MINIMAL, "track": value})


def test_one_tracker_needs_no_list() -> None:
    assert RunConfig.model_validate({**MINIMAL, "track": "trackio"}).track == ("trackio",)


def test_missing_package_names_the_extra_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError) as raised:
        TRACKERS.get("wandb").load()
    assert str(raised.value) == (
        "track: wandb needs the package wandb, which is not here; pip install 'macpo[wandb]', or "
        "leave wandb out of track"
    )


def test_tensorboard_can_be_read_back(tmp_path: Path) -> None:
    """A whole run with it: curves of every agent, and training step by step."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = write_config(tmp_path, track="tensorboard", rounds=1)
    result = run_cli(["run", config, "--out", tmp_path / "run"])
    assert result.code == 0
    assert "note: track: tensorboard: tensorboard --logdir " in result.err
    found = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    told = {(e.step, round(e.value, 5)) for e in found.Scalars("student/preference_accuracy")}
    rows = RunDir(tmp_path / "run").metrics()
    assert told == {
        (row.round, round(row.value, 5))
        for row in rows
        if (row.policy, row.metric) == ("student", "preference_accuracy")
    }
    assert [e.step for e in found.Scalars("train/student/loss")] == [1, 2, 3, 4]
    assert [e.step for e in found.Scalars("train/weak-a/negative/loss")] == [1, 2]
    again = run_cli(["run", write_config(tmp_path, rounds=1), "--out", tmp_path / "run"])
    assert "stages were done already" in again.err  # track is part of no key


def test_trackio_can_be_read_back(tmp_path: Path) -> None:
    """In a process of its own, for trackio's folder is settled when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "import json, pathlib\n"
        "from macpo.monitors.protocol import TrackedRun\n"
        "from macpo.monitors.trackio_monitor import start\n"
        "monitor = start(TrackedRun('tiny', 'a' * 16, pathlib.Path('run'), {'seed': 0}))\n"
        "monitor.numbers('round', 0, {'student/reward': 0.5})\n"
        "monitor.numbers('train/student', 7, {'train/student/loss': 0.25})\n"
        "monitor.alert('student, round 2: copying', '41 %')\n"
        "monitor.close()\n"
        "from trackio.sqlite_storage import SQLiteStorage as Storage\n"
        "logs = Storage.get_logs('macpo', 'tiny aaaaaa')\n"
        "print(json.dumps([logs, Storage.get_alerts('macpo', 'tiny aaaaaa')]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=python_environment(TRACKIO_DIR=str(tmp_path)),
    )
    logs, alerts = json.loads(done.stdout)  # trackio itself has written nothing there
    first, second = logs
    assert (first["round"], first["student/reward"]) == (0, 0.5)
    assert (second["train/student"], second["train/student/loss"]) == (7, 0.25)
    assert [(alert["title"], alert["text"]) for alert in alerts] == [
        ("student, round 2: copying", "41 %")
    ]


def test_wandb_is_told_which_numbers_stand_on_which_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for the module, for W&B wants an account or an offline folder."""
    said: list[tuple[str, Any]] = []

    class Run:
        url = "https://wandb.ai/me/macpo/runs/a"
        offline = False

        def define_metric(self, name: str, step_metric: str | None) -> None:
            said.append(("define", (name, step_metric)))

        def log(self, values: Mapping[str, float]) -> None:
            said.append(("log", dict(values)))

        def alert(self, title: str, text: str) -> None:
            said.append(("alert", (title, text)))

        def finish(self) -> None:
            said.append(("finish", None))

    stand_in = ModuleType("wandb")
    started: dict[str, Any] = {}

    def init(**settings: Any) -> Run:
        started.update(settings)
        return Run()

    stand_in.init = init  # type: ignore[attr-defined]
    stand_in.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    from macpo.monitors.wandb_monitor import start

    monitor = start(RUN)
    monitor.numbers("round", 0, {"student/reward": 0.5})
    monitor.numbers("round", 1, {"student/reward": 0.6})
    monitor.alert("title", "text")
    monitor.close()
    assert (started["project"], started["id"], started["resume"]) == ("mine", RUN.id, "allow")
    assert said == [
        ("define", ("round", None)),
        ("define", ("student/reward", "round")),
        ("log", {"student/reward": 0.5, "round": 0}),
        ("log", {"student/reward": 0.6, "round": 1}),
        ("alert", ("title", "text")),
        ("finish", None),
    ]


def test_wandb_itself_takes_what_it_is_told(tmp_path: Path) -> None:
    """In a process of its own, at whose end it writes the rest of its file."""
    pytest.importorskip("wandb")
    code = (
        "import sys, pathlib\n"
        "from macpo.monitors.protocol import TrackedRun\n"
        "from macpo.monitors.wandb_monitor import start\n"
        "monitor = start(TrackedRun('tiny', 'b' * 16, pathlib.Path(sys.argv[1]), {'seed': 0}))\n"
        "monitor.numbers('round', 0, {'student/reward': 0.5})\n"
        "monitor.alert('title', 'text')\n"
        "monitor.close()\n"
        "print(monitor.where)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env=python_environment(WANDB_MODE="offline"),
    )
    assert done.stdout == f"wandb sync {tmp_path}/wandb/offline-run-*\n"
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"student/reward" in written.read_bytes()
