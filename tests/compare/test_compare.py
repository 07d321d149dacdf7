"""Comparisons from end to end on tiny models: shared stages, resuming, failures, files."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.compare import Cell, Comparison, Design, compare, load_design, plan_comparison
from macpo.compare.folder import finished_metrics, mark_finished
from macpo.config import load_config
from macpo.errors import RunLockedError, StoreError
from macpo.run_directory import MetricRow
from macpo.run_status import status
from macpo.runner import run
from macpo.seeds import digest
from macpo.stage import Stage
from macpo.store import Artifact, RunLock
from tests.compare.test_figures import PNG
from tests.runs import CliResult, finished_stages, journal_of, run_cli, write_config
from tests.test_resume import Quiet

METHODS = {"macpo": "macpo", "ceiling": {"name": "ceiling", "dpo": False}}


class QuietCompare(Quiet):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Cell] = []
        self.done: list[Cell] = []
        self.reasons: list[str] = []

    def comparison_started(self, design: Design, total: int, distinct: int, done: int) -> None:
        self.counts = (total, distinct, done)

    def cell_started(self, cell: Cell, number: int, total: int, seconds_left: float | None) -> None:
        self.started.append(cell)

    def cell_finished(self, cell: Cell, seconds: float) -> None:
        self.done.append(cell)

    def cell_found(self, cell: Cell) -> None:
        self.done.append(cell)

    def cell_failed(self, cell: Cell, reason: str) -> None:
        self.reasons.append(reason)


class Interrupting(QuietCompare):
    """Presses Ctrl-C at the start of the n-th stage that runs."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        super().stage_started(stage, number, total)
        if len(self.ran) == self.after:
            raise KeyboardInterrupt

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        super().stage_finished(stage, seconds, artifact)


def write_comparison(folder: Path, **keys: Any) -> Path:
    """Write tiny models, a base config and a compare file over it; return the latter's path.

    Args:
        folder: where they go.
        **keys: of the compare file, replaced as a whole.
    """
    write_config(folder, rounds=1)
    content = {"name": "both", "base": "tiny.yaml", "seeds": [1, 2], "methods": METHODS, **keys}
    path = folder / f"compare-{digest(content)[:8]}.yaml"  # one file for each content
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def planned_in(cell: Path) -> list[list[str]]:
    """Return names and keys of the stages that a cell's journal has as planned."""
    planned = next(event for event in journal_of(cell) if event["event"] == "planned")
    return list(planned["stages"])


@dataclass(frozen=True)
class Finished:
    """A compare file, the folder in which it was run, and what running it said."""

    file: Path
    folder: Path
    result: CliResult


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data, for every comparison here."""
    folder = tmp_path_factory.mktemp("compare")
    write_comparison(folder)
    return folder


@pytest.fixture(scope="module")
def finished(home: Path) -> Finished:
    """Two methods over two seeds, for reading only."""
    file = write_comparison(home)
    return Finished(file, home / "out", run_cli(["compare", file, "--out", home / "out"]))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """A copy of that comparison, to be changed."""
    folder = tmp_path / "out"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Finished(finished.file, folder, finished.result)


def cells_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("cells/*/seed-*"))


def events_of(folder: Path) -> int:
    return sum(len(journal_of(cell)) for cell in cells_of(folder))


def test_table_goes_to_stdout_and_progress_to_stderr(finished: Finished) -> None:
    out, err = finished.result.out, finished.result.err

    assert finished.result.code == 0
    assert re.search(r"^ +macpo +1 +2 +\d\.\d+ ± \d", out, re.MULTILINE)
    assert re.search(r"^ +ceiling +0 +2 ", out, re.MULTILINE)
    assert f"results: {finished.folder}/tables.md, results.csv" in out
    lines = err.splitlines()
    assert lines[0] == f"comparison both in {finished.folder}"
    assert lines[1] == "4 cells: 2 methods, 1 setting, 2 seeds"
    assert lines[3] == "cell 1 of 4: macpo, seed 1"
    assert sum(line.startswith("finished ") for line in lines) == 4
    assert re.search(
        r"^cell 2 of 4: ceiling, seed 1; about [\d.]+ (s|min \d+ s) left in all$", err, re.M
    )
    assert "\x1b" not in out + err


def test_every_stage_runs_once_and_the_saving_is_told(finished: Finished) -> None:
    cells = cells_of(finished.folder)
    ran = [name for cell in cells for name in finished_stages(cell)]
    keys = [e["key"] for c in cells for e in journal_of(c) if e["event"] == "finished"]
    planned = [len(planned_in(cell)) for cell in cells]

    assert [cell.relative_to(finished.folder / "cells").parts for cell in cells] == [
        (method, seed) for method in ("ceiling", "macpo") for seed in ("seed-1", "seed-2")
    ]
    assert len(set(keys)) == len(keys) == len(ran)
    assert sum(planned) > len(ran)
    saving = json.loads((finished.folder / "results.json").read_text())["saving"]
    assert saving["stages_run"] == len(ran)
    assert saving["stages_separate"] == sum(planned)
    seconds = [e["seconds"] for c in cells for e in journal_of(c) if e["event"] == "finished"]
    assert saving["seconds_run"] == pytest.approx(sum(seconds))
    assert saving["seconds_separate"] > saving["seconds_run"]
    assert f"stages: {len(ran)} run; separate runs would have run {sum(planned)}" in (
        finished.result.out
    )


def test_tables_are_written_as_markdown(finished: Finished) -> None:
    lines = (finished.folder / "tables.md").read_text(encoding="utf-8").splitlines()

    assert lines[:3] == ["# both", "", "## student, last round"]
    assert lines[4].startswith("|  | round | seeds | preference accuracy |")
    assert lines[6].startswith("| macpo | 1 | 2 | ")
    assert lines[4].count("|") == lines[5].count("|") == lines[6].count("|")
    accuracy = lines.index("## student, each round: preference accuracy")
    assert lines[accuracy + 2] == "|  | 0 | 1 |"
    assert re.match(r"\| macpo \| \d\.\d+ ± [\d.]+ \| \d\.\d+ ± [\d.]+ \|$", lines[accuracy + 4])
    assert lines[accuracy + 5].endswith("|  |")  # the ceiling has no round 1
    assert any(line.startswith("- stages: ") for line in lines)


def test_a_second_comparison_over_the_same_store_runs_nothing_twice(
    finished: Finished, home: Path, tmp_path: Path
) -> None:
    file = write_comparison(home, name="other", methods={"naive": "naive-sft", "macpo": "macpo"})
    store = finished.folder / "store"
    first = run_cli(["compare", file, "--out", tmp_path / "out", "--store", store])

    assert first.code == 0
    cells = cells_of(tmp_path / "out")
    assert [name for cell in cells for name in finished_stages(cell)] == []
    saving = json.loads((tmp_path / "out" / "results.json").read_text())["saving"]
    assert saving["seconds_run"] > 0
    assert (cells[0] / "store").resolve() == store.resolve()


def test_two_comparisons_at_once_share_a_store(home: Path, tmp_path: Path) -> None:
    file = write_comparison(home, name="at-once", seeds=[7], methods={"macpo": "macpo"})
    command = [sys.executable, "-m", "macpo", "compare", str(file), "--store", tmp_path / "store"]
    both = [
        subprocess.Popen([*command, "--out", tmp_path / name], stderr=subprocess.DEVNULL)
        for name in ("one", "two")
    ]
    assert [process.wait(timeout=250) for process in both] == [0, 0]

    cells = [cell for name in ("one", "two") for cell in cells_of(tmp_path / name)]
    keys = [e["key"] for c in cells for e in journal_of(c) if e["event"] == "finished"]
    planned = {key for c in cells for _, key in planned_in(c)}
    assert sorted(keys) == sorted(planned)
    results = [(tmp_path / name / "results.csv").read_bytes() for name in ("one", "two")]
    assert results[0] == results[1]


def test_cells_are_ordinary_runs_over_one_store(finished: Finished, tmp_path: Path) -> None:
    cell = finished.folder / "cells" / "ceiling" / "seed-2"

    assert os.readlink(cell / "store") == "../../../store"
    assert status(cell).state == "finished"
    assert (cell / "final" / "student" / "adapter_model.safetensors").is_file()
    alone = run(load_config(cell / "config.yaml"), tmp_path / "alone", Quiet())
    assert (alone.folder / "metrics.jsonl").read_bytes() == (cell / "metrics.jsonl").read_bytes()


def test_results_hold_every_measurement_of_every_cell(finished: Finished) -> None:
    rows = [
        json.loads(line) for line in (finished.folder / "results.jsonl").read_text().splitlines()
    ]
    count = Counter((r["method"], r["seed"]) for r in rows if r["policy"] != "teachers")

    for cell in cells_of(finished.folder):
        measured = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
        method, seed = cell.parent.name, int(cell.name.removeprefix("seed-"))
        gaps = [
            r
            for r in rows
            if (r["method"], r["seed"]) == (method, seed) and r["metric"].startswith("pgr_")
        ]
        assert count[(method, seed)] == len(measured) + len(gaps)
        assert bool(gaps) == (method == "macpo")
    assert len((finished.folder / "results.csv").read_text().splitlines()) == len(rows) + 1


def test_figures_are_png_files(finished: Finished) -> None:
    figures = sorted((finished.folder / "figures").iterdir())

    assert "preference_accuracy.png" in [path.name for path in figures]
    assert all(path.read_bytes().startswith(PNG) for path in figures)


def test_running_again_only_looks_up(copied: Finished) -> None:
    before = events_of(copied.folder)
    results = (copied.folder / "results.json").read_bytes()

    again = run_cli(["compare", copied.file, "--out", copied.folder, "--round", "0"])

    assert again.code == 0
    assert "4 cells were done already" in again.err
    assert events_of(copied.folder) == before
    assert (copied.folder / "results.json").read_bytes() == results
    assert re.search(r"^ +macpo +0 +2 ", again.out, re.MULTILINE)


@pytest.mark.parametrize("damage", ["{", '{"policy": "student"}\n', "\0" * 50])
def test_cell_with_damaged_metrics_is_not_taken_for_finished(tmp_path: Path, damage: str) -> None:
    row = MetricRow("student", 0, "preference_accuracy", 0.5)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row.to_json()) + "\n")
    mark_finished(tmp_path, "plan")
    assert finished_metrics(tmp_path, "plan") == [row]
    assert finished_metrics(tmp_path, "another plan") is None
    (tmp_path / "metrics.jsonl").write_text(damage)
    assert finished_metrics(tmp_path, "plan") is None


def test_one_more_method_runs_what_it_does_not_share(copied: Finished, home: Path) -> None:
    file = write_comparison(home, methods={**METHODS, "naive": "naive-sft"})
    watched = QuietCompare()

    comparison = compare(load_design(file), copied.folder, watched)

    assert [cell.method for cell in watched.started] == ["naive", "naive"]
    assert watched.ran == []
    naive = comparison.results.at("default", "naive", "student", "preference_accuracy", 0)
    assert naive is not None
    assert naive.against is not None
    assert (naive.against.mean, naive.against.half_width) == (0.0, 0.0)


def test_one_more_setting_finds_the_stages_in_the_other_layout(
    copied: Finished, home: Path
) -> None:
    file = write_comparison(
        home, settings={"plain": {}, "sharp": {"dpo.beta": 0.3}}, methods={"macpo": "macpo"}
    )
    watched = QuietCompare()

    comparison = compare(load_design(file), copied.folder, watched)

    assert {cell.setting for cell in watched.started} == {"plain", "sharp"}
    assert all(name.startswith("round-1/") for name in watched.ran)
    assert comparison.results.at("sharp", "macpo", "student", "preference_accuracy") is not None
    assert (copied.folder / "cells" / "sharp" / "macpo" / "seed-1" / "metrics.jsonl").is_file()


def test_interrupted_comparison_keeps_all_and_goes_on(finished: Finished, tmp_path: Path) -> None:
    design = load_design(finished.file)
    first = len(finished_stages(finished.folder / "cells" / "macpo" / "seed-1"))

    with pytest.raises(KeyboardInterrupt):
        compare(design, tmp_path / "out", Interrupting(after=first + 3))
    so_far = json.loads((tmp_path / "out" / "results.json").read_text())
    went_on = QuietCompare()
    compare(design, tmp_path / "out", went_on)

    assert [cell["state"] for cell in so_far["cells"]] == ["finished", *["not run"] * 3]
    assert [(cell.method, cell.seed) for cell in went_on.started] == [
        ("ceiling", 1),
        ("macpo", 2),
        ("ceiling", 2),
    ]
    for name in ("results.jsonl", "results.csv"):
        unbroken = (finished.folder / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == unbroken


def test_sigterm_between_cells_ends_a_comparison_as_ctrl_c_does(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        "macpo.compare.running.write_layout",
        lambda design, folder: os.kill(os.getpid(), signal.SIGTERM),
    )
    ended = run_cli(["compare", finished.file, "--out", tmp_path / "out"])
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "macpo: stopped; run the same command to go on"
    assert signal.getsignal(signal.SIGTERM) == before


def test_failing_cells_are_left_out_and_told(home: Path, tmp_path: Path) -> None:
    file = write_comparison(
        home,
        seeds=[1],
        methods={"naive": "naive-sft", "confident": "confident-loss"},
        set={"evaluation.answers": 0},
        settings={
            "tight": {"limits.prompt_tokens": 2},
            "fine": {},
            "lost": {"student.model": "./no-such-model"},
        },
    )
    failed = run_cli(["compare", file, "--out", tmp_path / "out"])

    assert failed.code == 1
    reason = r"pairs\.jsonl: every prompt is over limits\.prompt_tokens; raise the limit"
    assert re.search(rf"^failed: tight/naive, seed 1: \S+{reason}$", failed.err, re.MULTILINE)
    assert re.search(
        rf"^failed: tight/confident, seed 1: it shares a stage that failed, data: \S+{reason}$",
        failed.err,
        re.MULTILINE,
    )
    assert "./no-such-model: no such model folder" in " ".join(failed.out.split())
    assert re.search(r"^ +naive +- +0 of 1 +- ", failed.out, re.MULTILINE)
    assert re.search(r"^ +naive +0 +1 +[\d.]+ ", failed.out, re.MULTILINE)
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert [cell["state"] for cell in cells] == ["failed"] * 2 + ["finished"] * 2 + ["failed"] * 2
    assert not (tmp_path / "out" / "cells" / "lost").exists()

    mended = write_comparison(
        home,
        seeds=[1],
        methods={"naive": "naive-sft", "confident": "confident-loss"},
        set={"evaluation.answers": 0},
        settings={"tight": {"limits.prompt_tokens": 100}, "fine": {}},
    )
    assert run_cli(["compare", mended, "--out", tmp_path / "out"]).code == 0


def test_dry_run_counts_stages_and_writes_nothing(finished: Finished, tmp_path: Path) -> None:
    fresh = run_cli(["compare", finished.file, "--dry-run", "--out", tmp_path / "none"])
    after = run_cli(["compare", finished.file, "--dry-run", "--out", finished.folder])

    saving = json.loads((finished.folder / "results.json").read_text())["saving"]
    run_once, separate = saving["stages_run"], saving["stages_separate"]
    assert fresh.code == 0
    assert f"4 cells: {separate} stages in separate runs, {run_once} distinct" in fresh.out
    assert f"0 of {run_once} are done" in fresh.out
    assert f"{run_once} of {run_once} are done" in after.out
    assert re.search(r"^ +macpo, seed 1 +(\d+) +\1 *$", fresh.out, re.MULTILINE)
    assert not (tmp_path / "none").exists()


def test_dry_run_shows_no_results(finished: Finished) -> None:
    refused = run_cli(["compare", finished.file, "--dry-run", "--round", "1"])

    assert refused.code == 1
    assert refused.err == (
        "macpo: --dry-run has no results to show; leave out --round and --policy\n"
    )


def test_dtype_is_decided_once_for_all_cells(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = []

    def time_dtypes(device: object) -> tuple[str, dict[str, float]]:
        decided.append(device)
        return "float32", {"float32": 10.0, "bfloat16": 5.0}

    monkeypatch.setattr(importlib.import_module("macpo.machine"), "fastest_dtype", time_dtypes)
    file = write_comparison(
        home,
        methods={"naive": "naive-sft"},
        set={"dtype": "auto", "evaluation.answers": 0},
    )
    design = load_design(file)
    planned = plan_comparison(design, tmp_path / "out")
    watched = QuietCompare()
    for _ in range(2):
        compare(design, tmp_path / "out", watched)

    assert len(decided) == 1
    assert watched.notes == [
        "dtype: float32 for all cells (float32 10 GFLOP/s, bfloat16 5 GFLOP/s measured here)"
    ]
    assert planned.notes[0].startswith("dtype: auto is decided by timing when the comparison")
    assert plan_comparison(design, tmp_path / "out").notes == ()
    for cell in cells_of(tmp_path / "out"):
        assert json.loads((cell / "run.json").read_text())["dtype"] == "float32"


def test_comparison_in_a_notebook_is_shown_on_stderr(
    copied: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(load_design(copied.file), copied.folder)

    assert "cells were done already" in capsys.readouterr().err


def test_second_process_is_refused(finished: Finished) -> None:
    with RunLock(finished.folder / "lock"), pytest.raises(RunLockedError, match="is held by pro"):
        compare(load_design(finished.file), finished.folder, QuietCompare())


def test_folder_of_a_single_run_is_refused(finished: Finished) -> None:
    single = finished.folder / "cells" / "macpo" / "seed-1"
    with pytest.raises(StoreError, match="is the directory of a single run; give the comparison"):
        compare(load_design(finished.file), single, QuietCompare())


def test_cell_with_a_store_of_its_own_fails_with_the_remedy(
    finished: Finished, tmp_path: Path
) -> None:
    (tmp_path / "out" / "cells" / "macpo" / "seed-1" / "store").mkdir(parents=True)
    watched = QuietCompare()
    design = load_design(
        write_comparison(finished.file.parent, seeds=[1], methods={"macpo": "macpo"})
    )

    comparison = compare(design, tmp_path / "out", watched)

    assert len(comparison.failures) == 1
    assert re.search("store is no link to the comparison's store; move .* away", watched.reasons[0])


def test_view_is_checked_before_anything_runs(finished: Finished, tmp_path: Path) -> None:
    refused = run_cli(["compare", finished.file, "--out", tmp_path / "out", "--policy", "weak-c"])

    assert refused.code == 1
    assert refused.err.startswith("macpo: --policy weak-c: there is no such agent; did you mean w")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Comparison:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("macpo.compare"), "compare", interrupted)
    stopped = run_cli(["compare", finished.file, "--out", tmp_path / "out"])

    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "macpo: stopped; run the same command to go on"


def test_comparison_ends_with_a_page_that_links_to_its_runs(finished: Finished) -> None:
    page = finished.folder / "report.html"
    assert finished.result.out.splitlines()[-1] == f"report: {page}"
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'href="(cells/[^"]*)"', text)
    assert len(links) == 4
    assert all((finished.folder / link).is_file() for link in links)
    assert "preference accuracy" in text
    assert "After each method" in text


def test_report_of_a_comparison_can_be_written_elsewhere(
    finished: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    result = run_cli(["report", finished.folder, "--out", out])
    assert (result.code, result.out) == (0, f"{out}\n")
    (link, *_) = re.findall(r'href="([^"#][^"]*)"', out.read_text(encoding="utf-8"))
    assert (tmp_path / link).is_file()
    both = run_cli(["report", finished.folder, finished.folder])
    assert both.code == 1
    assert "is a comparison, which has a report of its own" in both.err


def test_report_of_a_comparison_without_results_says_so(copied: Finished) -> None:
    (copied.folder / "results.json").unlink()
    result = run_cli(["report", copied.folder])
    assert result.code == 1
    assert "this comparison has no results yet" in result.err
