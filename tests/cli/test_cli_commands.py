"""The other commands: help, plan, status, data check, export, and how they meet a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from macpo import __version__
from macpo.cli import status as status_command
from macpo.shipped import is_example, locate
from tests.runs import SOURCES, FinishedRun, journal_of, run_cli, write_pairs
from tests.tiny import tiny_folder

COMMANDS = (
    ["init"],
    ["examples"],
    ["run"],
    ["plan"],
    ["status"],
    ["chat"],
    ["annotate"],
    ["annotate", "results"],
    ["compare"],
    ["export"],
    ["data", "check"],
    ["data", "convert"],
)
HEAVY = ("torch", "transformers", "peft", "datasets", "pydantic", "numpy")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_ends_in_examples_one_a_line(command: list[str]) -> None:
    shown = run_cli([*command, "--help"])

    lines = [line.strip() for line in shown.out.split("Examples:")[1].splitlines()]
    examples = [line for line in lines if line]
    assert shown.code == 0
    assert examples
    assert all(f"{line} ".startswith(f"macpo {' '.join(command)} ") for line in examples)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_examples_use_options_and_files_that_exist(command: list[str]) -> None:
    shown = run_cli([*command, "--help"]).out
    options, _, examples = shown.partition("Examples:")

    for word in shlex.split(re.sub(r"\(.*?\)", "", examples)):
        if word.startswith("--"):
            assert word in options
        if is_example(word):
            assert locate(word).is_file(), word
        assert not word.startswith("examples/"), "who has the wheel has no such folder"


def test_help_imports_no_model_library() -> None:
    shown = python(
        "import sys\n"
        "from macpo.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [m for m in {HEAVY} if m in sys.modules])"
    )

    assert "Usage: macpo [OPTIONS] COMMAND" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "heavy: []"


def test_status_imports_no_model_library(finished: FinishedRun) -> None:
    shown = python(
        "import sys\n"
        "from macpo.cli import main\n"
        f"try:\n    main(['status', {str(finished.folder)!r}])\n"
        "except SystemExit: pass\n"
        "print('heavy:', [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )

    assert "finished" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "heavy: []"


def test_version() -> None:
    assert run_cli(["--version"]).out == f"macpo {__version__}\n"


def test_no_arguments_show_the_help() -> None:
    shown = run_cli([])

    assert "Start with: macpo run example:quickstart" in shown.out + shown.err


def test_unknown_option_is_a_usage_error() -> None:
    refused = run_cli(["run", "config.yaml", "--round", "3"])

    assert refused.code == 2
    assert "No such option" in refused.err


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    command = shlex.join([sys.executable, "-m", "macpo", "data", "check", "--json"])

    shown = subprocess.run(
        f"for i in 1 2 3; do {command} {tmp_path / 'pairs.jsonl'}; done | head -n 1",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert shown.stdout == "{\n"
    assert shown.stderr == ""


def test_plan_of_a_finished_run_shows_all_done(finished: FinishedRun) -> None:
    shown = run_cli(["plan", finished.config, "--out", finished.folder])

    assert shown.code == 0
    assert "all 70 stages are done" in shown.out
    assert "to run" not in shown.out


def test_plan_of_more_rounds_shows_what_is_left(finished: FinishedRun) -> None:
    args = ["plan", finished.config, "--out", finished.folder, "--set", "rounds=3", "--json"]

    report = json.loads(run_cli(args).out)

    left = [stage["name"] for stage in report["stages"] if stage["state"] != "done"]
    assert len(report["stages"]) == 95
    assert len(left) == 25
    assert all(name.startswith("round-3/") for name in left)


def test_plan_estimates_time_at_the_pace_of_what_is_done(finished: FinishedRun) -> None:
    args = ["plan", finished.config, "--out", finished.folder, "--set", "rounds=3"]

    stages = json.loads(run_cli([*args, "--json"]).out)["stages"]

    took = {e["stage"]: e["seconds"] for e in journal_of(finished.folder) if "seconds" in e}
    done = [stage for stage in stages if stage["state"] == "done"]
    assert all(stage["seconds"] == took[stage["name"]] for stage in done)
    scores = [stage for stage in done if stage["kind"] == "score"]
    pace = sum(s["seconds"] for s in scores) / sum(s["operations"] for s in scores)
    left = next(stage for stage in stages if stage["name"] == "round-3/weak-a/reference")
    assert left["seconds"] == pytest.approx(left["operations"] * pace)
    assert re.search(
        r"time: at most about .*, at the pace of the stages that are done$",
        run_cli(args).out,
        re.MULTILINE,
    )


def test_plan_after_a_damaged_manifest_says_so(copied: FinishedRun) -> None:
    manifest = copied.folder / "stages" / "round-1" / "student" / "pairs" / "manifest.json"
    manifest.write_text("{}", encoding="utf-8")

    report = json.loads(run_cli(["plan", copied.config, "--out", copied.folder, "--json"]).out)

    states = {stage["name"]: stage["state"] for stage in report["stages"]}
    assert states.pop("round-1/student/pairs") == "damaged"
    assert set(states.values()) == {"done"}


def test_plan_changes_nothing(finished: FinishedRun) -> None:
    def state() -> list[tuple[str, int]]:
        return [(str(p), p.lstat().st_mtime_ns) for p in sorted(finished.folder.rglob("*"))]

    before = state()
    run_cli(["plan", finished.config, "--out", finished.folder, "--set", "rounds=3"])
    run_cli(["status", finished.folder])

    assert state() == before


def test_status_of_a_finished_run(finished: FinishedRun) -> None:
    shown = run_cli(["status", finished.folder])
    report = json.loads(run_cli(["status", finished.folder, "--json"]).out)

    assert shown.code == 0
    assert shown.out.startswith(f"{finished.folder}: finished\n70 ")
    assert "round-2/weak-b/evaluate" in shown.out
    assert report["state"] == "finished"
    assert report["running"] is report["last_stop"] is report["holder"] is None
    assert report["pairs"] == 8
    written = (finished.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.dumps(row) for row in report["metrics"]] == written
    assert {"train_loss", "train_margin"} <= {row["metric"] for row in report["metrics"]}


def test_status_of_no_run_names_the_runs_nearby(finished: FinishedRun) -> None:
    refused = run_cli(["status", finished.folder.with_name("tinny")])

    assert refused.code == 1
    assert refused.err == (
        f"macpo: {finished.folder.with_name('tinny')}: no run here; did you mean "
        f"{finished.folder}?\n"
    )


def test_watching_needs_a_terminal(finished: FinishedRun) -> None:
    refused = run_cli(["status", finished.folder, "--watch"])

    assert refused.code == 1
    assert refused.err.startswith("macpo: --watch needs a terminal")


def test_watching_refreshes_until_ctrl_c(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_command.time, "sleep", wait)
    monkeypatch.setenv("FORCE_COLOR", "1")

    shown = run_cli(["status", finished.folder, "--watch"])

    assert shown.code == 130
    assert waits == [status_command.REFRESH_SECONDS] * 2
    assert "finished" in shown.out


def test_data_check_describes_a_file(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")

    shown = run_cli(["data", "check", tmp_path / "pairs.jsonl"])

    assert shown.code == 0
    assert "24 rows: 24 pairs on 24 prompts" in shown.out
    assert "lengths in words" in shown.out


def test_data_check_counts_tokens_of_a_model(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    folder = tiny_folder(tmp_path / "model")

    shown = run_cli(["data", "check", tmp_path / "pairs.jsonl", "--tokenizer", folder, "--json"])

    report = json.loads(shown.out)
    words = json.loads(run_cli(["data", "check", tmp_path / "pairs.jsonl", "--json"]).out)
    assert report["unit"] == "tokens"
    assert report["lengths"]["chosen"]["mean"] > words["lengths"]["chosen"]["mean"]


def test_data_check_of_a_format_that_does_not_fit(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")

    shown = run_cli(["data", "check", tmp_path / "pairs.jsonl", "--format", "hh"])

    assert "0 pairs" in shown.out
    assert "24 bad rows" in shown.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["{pairs}", "--tokenizer", "no/such/model"], "no/such/model: no such model folder"),
        (["{pairs}", "--criterion", "harmless"], "data.criterion: harmless has no effect"),
    ],
)
def test_data_check_fails_in_one_line(tmp_path: Path, args: list[str], message: str) -> None:
    write_pairs(tmp_path / "pairs.jsonl")

    refused = run_cli(
        ["data", "check", *(arg.format(pairs=tmp_path / "pairs.jsonl") for arg in args)]
    )

    assert refused.code == 1
    assert refused.err.startswith(f"macpo: {message}")
    assert refused.err.count("\n") == 1


def test_data_convert_writes_what_macpo_reads_again(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    args = ["data", "convert", tmp_path / "pairs.jsonl", tmp_path / "new" / "out.json"]

    shown = run_cli([*args, "--to", "macpo"])

    assert shown.code == 0
    assert "24 rows: 24 pairs on 24 prompts" in shown.out
    assert "out.json, 24 pairs in format macpo" in " ".join(shown.out.split())
    assert "24 rows: 24 pairs" in run_cli(["data", "check", args[-1], "--format", "macpo"]).out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.jsonl", "{folder}/x.json"], "missing.jsonl: no such file"),
        (["{folder}/pairs.jsonl", "{folder}/pairs.jsonl"], "{folder}/pairs.jsonl: exists already"),
        (["{folder}/pairs.jsonl", "{folder}/x.csv"], "{folder}/x.csv: what is written is JSON"),
        (["{folder}/pairs.jsonl", "{folder}/x.json", "--criterion", "harmless"], "data.criterion"),
    ],
)
def test_data_convert_fails_in_one_line(tmp_path: Path, args: list[str], message: str) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    before = (tmp_path / "pairs.jsonl").read_bytes()

    refused = run_cli(
        ["data", "convert", "--to", "trl", *(arg.format(folder=tmp_path) for arg in args)]
    )

    assert refused.code == 1
    assert refused.err.startswith(f"macpo: {message.format(folder=tmp_path)}")
    assert refused.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert (tmp_path / "pairs.jsonl").read_bytes() == before


def test_export_merges_the_student(finished: FinishedRun, tmp_path: Path) -> None:
    adapter, merged = finished.folder / "final" / "student", tmp_path / "merged"

    shown = run_cli(["export", adapter, merged])

    assert shown.code == 0
    assert shown.out == f"merged model: {merged}\n"
    assert (merged / "model.safetensors").is_file()
    refused = run_cli(["export", adapter, merged])
    assert refused.code == 1
    assert refused.err.startswith(f"macpo: {merged} exists already")
