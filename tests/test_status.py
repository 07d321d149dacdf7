"""How far a run is, told from its folder."""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from macpo.errors import DamagedError, StoreError
from macpo.evaluation.measures import METRICS_FILE, write_measures
from macpo.report.status import render_status
from macpo.run_directory import PlannedPolicy, PlannedStage, RunDir, RunPlan
from macpo.run_status import status
from macpo.store import Journal, Progress, RunLock, artifact_folder, commit_directory

KEYS = {name: name.encode().hex().ljust(64, "0")[:64] for name in ("data", "sft", "dpo", "eval")}
START = datetime(2025, 1, 31, 12, tzinfo=UTC).timestamp()


class Writer:
    """Writes a run's journal as the executor does, a second an event."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = RunDir(folder)
        self.now = START
        self.journal = Journal(self.run.journal_file, lambda: self.now)

    def event(self, event: str, name: str = "", key: str = "", **fields: Any) -> None:
        self.now += 1
        if name:
            fields = {"stage": name, "key": key or KEYS.get(name, ""), **fields}
        self.journal.append(event, **fields)

    def stage(self, name: str, seconds: float, key: str = "") -> None:
        """A stage that ran to its end."""
        self.event("started", name, key)
        self.event("finished", name, key, seconds=seconds)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def names(report: Any) -> list[str]:
    return [stage.name for stage in report.finished]


def shown(report: Any) -> str:
    file = io.StringIO()
    Console(width=150, file=file).print(render_status(report, 150))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def test_run_that_nobody_holds_is_stopped(writer: Writer) -> None:
    writer.stage("data", 1.5)
    writer.stage("sft", 2.5)

    report = status(writer.folder)

    assert report.state == "stopped"
    assert names(report) == ["data", "sft"]
    assert report.finished[1].seconds == 2.5
    assert report.finished[1].ended == "2025-01-31T12:00:04.000Z"
    assert report.worked_seconds == 4.0
    assert report.running is report.last_stop is report.holder is None
    assert "not running; macpo run goes on where it stopped" in shown(report)


def test_run_with_metrics_and_nothing_open_is_finished(writer: Writer) -> None:
    writer.stage("data", 1.0)
    writer.run.metrics_file.write_text("", encoding="utf-8")

    assert status(writer.folder).state == "finished"


def test_plan_in_the_journal_gives_the_total(writer: Writer) -> None:
    writer.event("planned", stages=[[name, key] for name, key in KEYS.items()])
    writer.stage("data", 1.0)
    writer.run.metrics_file.write_text("", encoding="utf-8")  # of an earlier, shorter plan

    report = status(writer.folder)

    assert report.total == 4
    assert report.state == "stopped"
    assert "1 of 4 stages done; 1.0 s of work so far" in shown(report)


def test_stages_that_no_longer_belong_to_the_plan_do_not_count(writer: Writer) -> None:
    writer.stage("sft", 1.0, "a" * 64)
    writer.stage("dpo", 1.0, "b" * 64)
    writer.event("planned", stages=[["sft", "a" * 64], ["dpo", "c" * 64]])

    report = status(writer.folder)

    assert [(s.name, s.key) for s in report.finished] == [("sft", "a" * 64)]
    assert report.total == 2


def test_stage_that_a_changed_config_runs_anew_replaces_the_old_one(writer: Writer) -> None:
    writer.stage("sft", 1.0, "a" * 64)
    writer.stage("sft", 1.0, "b" * 64)

    assert [s.key for s in status(writer.folder).finished] == ["b" * 64]


def test_artifact_set_aside_is_not_done(writer: Writer) -> None:
    writer.stage("data", 1.0)
    writer.event("set_aside", "data", reason="damaged")

    assert status(writer.folder).finished == ()


def test_running_stage_with_progress(writer: Writer) -> None:
    writer.stage("data", 1.0)
    writer.now = datetime.now(UTC).timestamp() - 31
    writer.event("started", "sft")

    clock = iter([0.0, 10.0]).__next__
    with (
        RunLock(writer.run.lock),
        Progress(writer.run.progress_file, "sft", KEYS["sft"], clock=clock) as progress,
    ):
        progress.update(5, 20, loss=0.25, tokens_per_second=1234.5)
        report = status(writer.folder)

    running = report.running
    assert report.state == "running"
    assert report.holder is not None
    assert report.holder.pid == os.getpid()
    assert running is not None
    assert (running.name, running.done, running.total) == ("sft", 5, 20)
    assert running.seconds == pytest.approx(30, abs=5)
    # 5 units took 10 seconds, 15 are left.
    assert running.seconds_left == pytest.approx(30, abs=5)
    assert running.numbers == {"loss": 0.25, "tokens_per_second": 1234.5}
    text = shown(report)
    assert f"running, process {os.getpid()} on " in text
    assert ": 5 of 20, loss 0.25, 1.23k tokens/s, " in text
    assert "no word for" not in text


def test_time_left_of_a_resumed_stage_is_not_guessed(writer: Writer) -> None:
    writer.event("started", "sft")
    writer.event("stopped", "sft", seconds=3.0, reason="KeyboardInterrupt")
    writer.event("started", "sft")

    with (
        RunLock(writer.run.lock),
        Progress(writer.run.progress_file, "sft", KEYS["sft"]) as progress,
    ):
        progress.update(15, 20)
        running = status(writer.folder).running

    assert running is not None
    assert running.done == 15
    assert running.seconds_left is None


def test_silence_of_a_running_stage_is_told(writer: Writer) -> None:
    writer.event("started", "sft")

    with (
        RunLock(writer.run.lock),
        Progress(writer.run.progress_file, "sft", KEYS["sft"]) as progress,
    ):
        progress.update(1, 20)
        past = writer.run.progress_file.stat().st_mtime - 600
        os.utime(writer.run.progress_file, (past, past))
        text = shown(status(writer.folder))

    assert "(no word for 10 min 0" in text


def test_progress_of_another_stage_is_not_shown(writer: Writer) -> None:
    writer.event("started", "dpo")
    writer.run.progress_file.write_text(
        json.dumps({"stage": "sft", "key": KEYS["sft"], "done": 1, "total": 2, "seconds": 1}),
        encoding="utf-8",
    )

    with RunLock(writer.run.lock):
        running = status(writer.folder).running

    assert running is not None
    assert running.name == "dpo"
    assert running.done is None


def test_killed_run_says_where(writer: Writer) -> None:
    writer.stage("data", 1.0)
    writer.event("started", "sft")
    writer.run.metrics_file.write_text("", encoding="utf-8")
    writer.run.progress_file.write_text("{}", encoding="utf-8")

    report = status(writer.folder)

    assert report.state == "stopped"
    assert report.running is None
    assert report.last_stop is not None
    assert report.last_stop.stage == "sft"
    assert report.last_stop.reason.startswith("killed: the process ended without a word")


def test_stage_that_was_killed_before_it_could_say_that_it_was_done_is_done_when_found(
    writer: Writer,
) -> None:
    """Its artifact was committed, and the process died before the journal had the line."""
    plan = [["sft", KEYS["sft"]]]
    writer.event("planned", stages=plan)
    writer.event("started", "sft")
    writer.run.metrics_file.write_text("", encoding="utf-8")
    killed = status(writer.folder)
    writer.event("planned", stages=plan)
    writer.event("found", "sft")

    report = status(writer.folder)

    assert killed.last_stop is not None
    assert (report.state, report.last_stop) == ("finished", None)


def test_run_killed_while_it_handed_its_policies_out_is_not_finished(writer: Writer) -> None:
    writer.event("planned", stages=[["sft", KEYS["sft"]]])
    writer.stage("sft", 1.0)
    writer.run.metrics_file.write_text("", encoding="utf-8")
    writer.event("publishing")
    killed = status(writer.folder)
    writer.event("planned", stages=[["sft", KEYS["sft"]]])
    again = status(writer.folder)
    writer.event("publishing")
    writer.event("stopped", "final", reason="StoreError: the disk is full", key="")
    failed = status(writer.folder)
    writer.event("publishing")
    writer.event("published")

    assert killed.last_stop is not None
    assert killed.last_stop == again.last_stop
    assert (killed.state, killed.last_stop.stage) == ("stopped", "final")
    assert killed.last_stop.reason.startswith("killed: the process ended without a word")
    assert failed.last_stop is not None
    assert failed.last_stop.reason == "StoreError: the disk is full"
    assert (status(writer.folder).state, status(writer.folder).last_stop) == ("finished", None)


def test_failure_is_told_until_the_stage_is_finished(writer: Writer) -> None:
    writer.event("started", "sft")
    writer.event("stopped", "sft", seconds=2.0, reason="TrainingError: loss is [red]nan\x1b[0m")
    failed = status(writer.folder)
    writer.event("started", "sft")
    with RunLock(writer.run.lock):
        again = status(writer.folder)
    writer.event("finished", "sft", seconds=1.0)
    mended = status(writer.folder)

    assert failed.last_stop is not None
    assert "last stop: sft, 2025-01-31T12:00:02.000Z: TrainingError: loss is [red]nan\n" in (
        shown(failed)
    )
    assert again.last_stop == failed.last_stop
    assert mended.last_stop is None
    assert mended.worked_seconds == 3.0


def test_request_to_stop_is_no_failure(writer: Writer) -> None:
    writer.event("started", "sft")
    writer.event("stopped", "sft", seconds=2.0, reason="KeyboardInterrupt")

    assert "asked to stop (Ctrl-C or SIGTERM)" in shown(status(writer.folder))


@pytest.mark.parametrize("killed", [False, True])
def test_stop_at_a_stage_that_no_longer_belongs_to_the_plan_is_past(
    writer: Writer, killed: bool
) -> None:
    writer.event("started", "sft", "a" * 64)
    if not killed:
        writer.event("stopped", "sft", "a" * 64, seconds=2.0, reason="KeyboardInterrupt")
    writer.event("planned", stages=[["data", KEYS["data"]]])
    writer.stage("data", 1.0)
    writer.run.metrics_file.write_text("", encoding="utf-8")

    report = status(writer.folder)

    assert report.last_stop is None
    assert report.state == "finished"


def test_attempt_that_was_killed_is_told_while_the_next_one_runs(writer: Writer) -> None:
    writer.event("started", "sft")
    writer.event("started", "sft")

    with RunLock(writer.run.lock):
        report = status(writer.folder)

    assert report.running is not None
    assert report.last_stop is not None
    assert report.last_stop.time == "2025-01-31T12:00:01.000Z"


def test_stages_that_run_side_by_side_are_all_shown(writer: Writer) -> None:
    """On a cluster: a start names a node, and ends no other stage."""
    for name in ("data", "sft", "dpo"):
        writer.event("started", name, node="node-1")
    writer.event("finished", "data", seconds=1.0)
    file = writer.run.progress_of(KEYS["dpo"])
    file.parent.mkdir()

    with RunLock(writer.run.lock), Progress(file, "dpo", KEYS["dpo"]) as progress:
        progress.update(5, 20)
        report = status(writer.folder)

    assert report.running is not None
    assert [stage.name for stage in (report.running, *report.beside)] == ["sft", "dpo"]
    assert report.beside[0].done == 5
    assert report.last_stop is None
    assert shown(report).count("now: ") == 2
    writer.event("started", "sft", node="node-2")  # the process on the first node died
    with RunLock(writer.run.lock):
        again = status(writer.folder)
    assert again.last_stop is not None
    assert (again.last_stop.stage, len(again.beside)) == ("sft", 1)
    killed = status(writer.folder)
    assert (killed.running, killed.beside) == (None, ())
    assert killed.last_stop is not None


def write_plan(run: RunDir, *policies: tuple[str, int, str, str | None]) -> None:
    """Write a plan: who, after which round, the keys of what measures and of what trained them."""
    keys = [key for _, _, *both in policies for key in both if key is not None]
    plan = RunPlan(
        tuple(PlannedStage(key[:1], "made", key, {}) for key in keys),
        tuple(
            PlannedPolicy(name, t, trained, (measuring,))
            for name, t, measuring, trained in policies
        ),
    )
    run.plan_file.write_text(json.dumps(plan.to_json()), encoding="utf-8")


def write_artifact(run: RunDir, key: str, accuracy: float | None, **meta: float) -> Path:
    """Commit an artifact with measurements on 48 pairs, and return their file."""
    folder = artifact_folder(run.store, "made", key)
    partial = run.path / "partial"
    partial.mkdir()
    if accuracy is not None:
        write_measures(partial, {"preference_accuracy": accuracy}, pairs=48)
    commit_directory(partial, folder, {"kind": "made", "key": key, "inputs": {}, "meta": meta})
    return folder / METRICS_FILE


def test_metrics_so_far_come_from_finished_evaluations(writer: Writer) -> None:
    write_plan(
        writer.run,
        ("student", 0, "a" * 64, None),
        ("weak-a", 3, "b" * 64, "d" * 64),
        ("weak-b", 3, "c" * 64, None),
        ("student", 3, "e" * 64, None),
    )
    for name, key, accuracy in (
        ("an evaluation", "a" * 64, 0.5),
        ("round-3/weak-a/evaluate", "b" * 64, 0.75),
    ):
        writer.stage(name, 1.0, key)
        write_artifact(writer.run, key, accuracy)
    writer.stage("round-3/weak-a/train", 1.0, "d" * 64)
    write_artifact(writer.run, "d" * 64, None, loss=0.25, steps=3)
    writer.stage("round-3/weak-b/evaluate", 1.0, "c" * 64)  # set aside an instant ago
    write_artifact(writer.run, "e" * 64, 1.0)  # not reached

    report = status(writer.folder)

    assert report.pairs == 48
    assert list(report.metrics) == [
        {"policy": "student", "round": 0, "metric": "preference_accuracy", "value": 0.5},
        {"policy": "weak-a", "round": 3, "metric": "preference_accuracy", "value": 0.75},
        {"policy": "weak-a", "round": 3, "metric": "train_loss", "value": 0.25},
    ]
    assert "75.0 %" in shown(report)


def test_metrics_of_a_run_without_a_plan_file_are_those_it_wrote(writer: Writer) -> None:
    writer.stage("round-1/student/evaluate", 1.0, "a" * 64)
    row = {"policy": "student", "round": 1, "metric": "preference_accuracy", "value": 0.75}
    writer.run.metrics_file.write_text(json.dumps(row) + "\n", encoding="utf-8")

    report = status(writer.folder)

    assert names(report) == ["round-1/student/evaluate"]
    assert list(report.metrics) == [row]
    assert "75.0 %" in shown(report)
    assert "held-out" not in shown(report)  # nobody wrote down how many


def test_damaged_metrics_are_named(writer: Writer) -> None:
    write_plan(writer.run, ("student", 0, "a" * 64, None))
    writer.stage("init/student/evaluate", 1.0, "a" * 64)
    write_artifact(writer.run, "a" * 64, 1.0).write_text("{", encoding="utf-8")

    report = status(writer.folder)

    assert report.state == "stopped"
    [fault] = report.faults
    assert fault.startswith("a is damaged: metrics.json has 1 bytes instead of ")
    assert report.metrics == ()
    assert "metrics.json has 1 bytes" in shown(report)
    assert "macpo run makes it again" in shown(report)


def test_damaged_plan_is_named(writer: Writer) -> None:
    writer.stage("data", 1.0)
    writer.run.plan_file.write_text('{"stages": [{}]}', encoding="utf-8")

    with pytest.raises(DamagedError, match=r"plan\.json: cannot be read .*; run the config again$"):
        status(writer.folder)


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    RunDir(tmp_path).run_file.write_text("{}", encoding="utf-8")

    report = status(tmp_path)

    assert report.finished == ()
    assert "0 stages done" in shown(report)


def test_many_finished_stages_are_shown_from_the_end(writer: Writer) -> None:
    for number in range(20):
        writer.stage(f"stage-{number}", 1.0, f"{number:064x}")

    text = shown(status(writer.folder))

    assert "the last 8 finished; --json has all" in text
    assert "stage-19" in text
    assert "stage-11" not in text


def test_report_is_json(writer: Writer) -> None:
    writer.stage("data", 1.0)

    value = json.loads(json.dumps(status(writer.folder).to_json()))

    assert value["folder"] == str(writer.folder)
    assert value["finished"][0]["name"] == "data"


def test_missing_run_lists_those_nearby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"^nowhere: no run here; start one with: macpo run CONF"):
        status("nowhere")
    for name in ("alpha", "beta"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        RunDir(tmp_path / "runs" / name).run_file.touch()
    with pytest.raises(StoreError, match=r"; runs nearby: runs/alpha, runs/beta$"):
        status("nowhere")
    with pytest.raises(StoreError, match=r"^runs: no run here; runs nearby: runs/alpha, runs/beta"):
        status("runs")
    with pytest.raises(StoreError, match=r"; did you mean runs/alpha\?$"):
        status("runs/alhpa")
