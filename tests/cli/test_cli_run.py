"""`macpo run` from end to end on tiny models, and how it fails."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from macpo.ranks.launch import Launched, check_processes
from macpo.report.console import ConsoleObserver
from macpo.run_status import StatusReport, status
from macpo.stage import Stage
from macpo.store import RunLock
from tests.runs import FinishedRun, finished_stages, journal_of, run_cli, write_config


def test_run_prints_metrics_adapters_and_answers(finished: FinishedRun) -> None:
    out = finished.result.out

    assert finished.result.code == 0
    assert re.search(r"before +round 1 +round 2", out)
    for title in ("preference accuracy", "gold perplexity", "tokens in an answer"):
        rows = out.partition(title)[2].splitlines()[1:4]
        assert [row.split()[0] for row in rows] == ["student", "weak-a", "weak-b"]
        assert [len(row.replace(" %", "").split()) for row in rows] == [4, 4, 4]
    assert "on 8 held-out pairs; the standard error of an accuracy is up to 17.7 points" in (
        " ".join(out.split())
    )
    for agent in ("student", "weak-a", "weak-b"):
        assert f"{finished.folder / 'final' / agent}" in out
        assert (finished.folder / "final" / agent / "adapter_model.safetensors").is_file()
    answers = out.partition("the student on held-out prompts:")[2]
    for label in ("prompt", "before", "round 2"):
        assert len(re.findall(rf"^  {label} +\S", answers, re.MULTILINE)) == 3


def test_run_says_what_it_runs_and_one_line_for_each_stage(finished: FinishedRun) -> None:
    lines = finished.result.err.splitlines()

    assert lines[0] == f"run       tiny in {finished.folder}; seed 0"
    assert lines[2].startswith("teachers  weak-a (")
    assert lines[4] == "method    macpo"
    assert lines[5].startswith("rounds    2; dpo beta 0.1, gamma 0.2, learning rate 0.001")
    told = [line.split()[0] for line in lines[7:]]
    assert told == finished_stages(finished.folder)
    assert len(told) == 70


def test_run_keeps_chatter_of_libraries_and_control_codes_from_a_log(
    finished: FinishedRun,
) -> None:
    for noise in ("Loading weights", "Warning", "\x1b", "\r"):
        assert noise not in finished.result.err
        assert noise not in finished.result.out


def test_running_again_finds_every_stage(copied: FinishedRun) -> None:
    events = journal_of(copied.folder)

    again = run_cli(["run", copied.config, "--out", copied.folder])

    assert again.code == 0
    assert "all 70 stages were done already" in again.err
    added = journal_of(copied.folder)[len(events) :]
    told = [event["event"] for event in added]
    assert told == ["invoked", "planned", "publishing", "published"]
    assert again.out.replace(str(copied.folder), "RUN") == copied.result.out.replace(
        str(finished_folder(copied)), "RUN"
    )


def finished_folder(run: FinishedRun) -> Path:
    """Return the directory that the finished run was made in."""
    return run.config.parent / "runs" / "tiny"


def test_more_rounds_run_only_what_is_new(copied: FinishedRun) -> None:
    before = len(journal_of(copied.folder))

    longer = run_cli(["run", copied.config, "--out", copied.folder, "--set", "rounds=3"])

    ran = finished_stages(copied.folder, since=before)
    assert longer.code == 0
    assert len(ran) == 25
    assert all(name.startswith("round-3/") for name in ran)
    assert "70 of 95 stages were done already" in longer.err
    assert re.search(r"before +round 1 +round 2 +round 3", longer.out)


def test_damaged_artifact_is_named_and_made_again(copied: FinishedRun) -> None:
    before = len(journal_of(copied.folder))
    pairs = copied.folder / "stages" / "round-1" / "student" / "pairs" / "pairs.jsonl"
    content = pairs.read_bytes()
    pairs.write_bytes(content.replace(b"a", b"b", 1))

    mended = run_cli(["run", copied.config, "--out", copied.folder])

    assert mended.code == 0
    assert re.search(
        r"note: round-1/student/pairs is run again: .*pairs\.jsonl does not match its checksum",
        mended.err,
    )
    assert finished_stages(copied.folder, since=before) == ["round-1/student/pairs"]
    assert pairs.read_bytes() == content


def test_second_process_is_refused_with_who_holds_the_run(copied: FinishedRun) -> None:
    with RunLock(copied.folder / "lock"):
        refused = run_cli(["run", copied.config, "--out", copied.folder])

    assert refused.code == 1
    last = refused.err.splitlines()[-1]
    assert last.startswith(
        f"macpo: run directory {copied.folder} is held by process {os.getpid()} on "
    )
    assert last.endswith("wait for it, stop it, or use another --out")


def test_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    config = write_config(tmp_path)

    refused = run_cli(["run", config, "--out", tmp_path / "run", "--set", "dpo.betta=0.2"])

    assert refused.code == 1
    assert refused.err == (
        f"macpo: {config}: 1 fault\n  dpo.betta: unknown key; did you mean 'beta'?\n"
    )
    assert not (tmp_path / "run").exists()


def test_all_faults_of_a_config_are_listed(tmp_path: Path) -> None:
    config = write_config(tmp_path, rounds=0, dpo={"beta": -1})

    refused = run_cli(["run", config])

    lines = refused.err.splitlines()
    assert refused.code == 1
    assert lines[0] == f"macpo: {config}: 2 faults"
    assert sorted(line.split(":")[0] for line in lines[1:]) == ["  dpo.beta", "  rounds"]


def test_data_option_names_other_data(tmp_path: Path) -> None:
    refused = run_cli(
        ["run", write_config(tmp_path), "--data", "no such.jsonl", "--out", tmp_path / "run"]
    )

    assert refused.code == 1
    assert refused.err.splitlines()[-1].startswith("macpo: no such.jsonl: no such file")


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    refused = run_cli(["run", "no\x1b[2Jsuch\x07.yaml"])

    assert refused.code == 1
    assert "no such config file" in refused.err
    assert "\x1b" not in refused.err
    assert "\x07" not in refused.err


LAUNCHED = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize("asked", [1, 2])
def test_launcher_that_disagrees_with_the_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    config = write_config(tmp_path, engine={"processes": asked})

    refused = run_cli(["run", config, "--out", tmp_path / "run"])

    assert refused.code == 1
    assert refused.err == (
        f"macpo: engine.processes is {asked}, but the launcher has started 4 processes "
        "(WORLD_SIZE); remove the key, or start as many\n"
    )
    assert not (tmp_path / "run").exists()


def test_launcher_that_does_not_say_which_process_this_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)

    refused = run_cli(["run", write_config(tmp_path), "--out", tmp_path / "run"])

    assert refused.code == 1
    assert "one of 4 processes (WORLD_SIZE), but 'RANK' is not set" in refused.err


def test_comparison_under_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)

    refused = run_cli(["compare", tmp_path / "none.yaml"])

    assert refused.code == 1
    assert refused.err.startswith("macpo: started as one of 4 processes (WORLD_SIZE)")


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}])
def test_one_process_is_not_refused(environment: dict[str, str]) -> None:
    assert check_processes(4, environment) is None
    assert check_processes(4, {**environment, **LAUNCHED}) == Launched(0, 4, 0, 4)


def test_bases_are_not_divided_by_one_process(tmp_path: Path) -> None:
    config = write_config(tmp_path, engine={"sharding": "fsdp"}, generation={"backend": "scripted"})

    refused = run_cli(["run", config, "--out", tmp_path / "run"])

    assert refused.code == 1
    assert "but there is one; set engine.processes" in refused.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_are_refused_before_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = write_config(tmp_path, device="cuda", engine={"processes": 3})

    refused = run_cli(["run", config, "--out", tmp_path / "run"])

    assert refused.code == 1
    assert refused.err.splitlines()[-1] == (
        "macpo: 3 processes are to run on this machine, one to a GPU, but it has 1; lower "
        "engine.processes, or set device: cpu"
    )
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("macpo.runner"), "run", interrupted)

    stopped = run_cli(["run", write_config(tmp_path), "--out", tmp_path / "run"])

    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "macpo: stopped; run the same command to go on"


def test_signal_stops_the_run_and_the_same_command_goes_on(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", finished.config, "--out", tmp_path / "run"]
    seen: list[StatusReport] = []
    show = ConsoleObserver.stage_progress

    def stop_at_first_step(
        self: ConsoleObserver, stage: Stage, done: int, total: int, **fields: float
    ) -> None:
        show(self, stage, done, total, **fields)
        if stage.name == "init/weak-b/positive":
            seen.append(status(tmp_path / "run"))
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleObserver, "stage_progress", stop_at_first_step)
        stopped = run_cli(command)
    between = status(tmp_path / "run")
    resumed = run_cli(command)

    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "macpo: stopped; run the same command to go on"
    during = seen[0]
    assert during.state == "running"
    assert during.holder is not None
    assert during.holder.pid == os.getpid()
    assert during.running is not None
    assert (during.running.name, during.running.done, during.running.total) == (
        "init/weak-b/positive",
        1,
        2,
    )
    assert len(during.finished) == 2
    assert between.state == "stopped"
    assert between.last_stop is not None
    assert (between.last_stop.stage, between.last_stop.reason) == (
        "init/weak-b/positive",
        "KeyboardInterrupt",
    )
    assert resumed.code == 0
    assert "2 of 70 stages were done already" in resumed.err
    assert resumed.out.replace(str(tmp_path / "run"), "RUN") == finished.result.out.replace(
        str(finished.folder), "RUN"
    )
    assert status(tmp_path / "run").state == "finished"


def test_bug_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(importlib.import_module("macpo.runner"), "run", broken)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_cli(["run", write_config(tmp_path), "--out", tmp_path / "run"])


def test_metrics_file_has_a_row_for_each_policy_round_and_metric(finished: FinishedRun) -> None:
    lines = (finished.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]

    accuracy = [row for row in rows if row["metric"] == "preference_accuracy"]
    assert {(row["policy"], row["round"]) for row in accuracy} == {
        (policy, t) for policy in ("student", "weak-a", "weak-b") for t in range(3)
    }
