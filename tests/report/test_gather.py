"""What a report gathers of a run: finished, stopped, damaged, or of an older macpo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from macpo.evaluation.measures import ITEMS_FILE
from macpo.metrics import metric
from macpo.report.data import Curve, Point, Series
from macpo.report.gather import gather_run
from macpo.report.gather.measurements import error_of
from macpo.report.making import leave_report, write_runs_report
from macpo.report.page import render_run
from macpo.report.pairing import difference, paired, verdict
from macpo.run_directory import RunDir
from macpo.store import MANIFEST, Manifest, read_manifest
from macpo.store.manifest import scan
from tests.annotation.files import judge_all, make_file
from tests.runs import FinishedRun, python_environment, run_cli, write_config


def test_finished_run_has_every_part(finished: FinishedRun) -> None:
    report = gather_run(finished.folder)
    assert (report.name, report.state, report.rounds) == ("tiny", "finished", 2)
    assert report.faults == ()
    assert report.agents == ("student", "weak-a", "weak-b")
    accuracy = next(c for c in report.curves if c.metric.name == "preference_accuracy")
    student = accuracy.of("student")
    assert student is not None
    assert [point.round for point in student.points] == [0, 1, 2]
    for point in student.points:  # an interval of the pairs, and not the bound
        values = [value for own in point.items.values() for value in own]
        assert len(values) == 8
        assert point.value == pytest.approx(sum(values) / 8)
        assert point.half_width is not None
        assert not point.at_most
    assert [(f.round, f.learner) for f in report.filters] == [(1, "student"), (2, "student")]
    for found in report.filters:
        assert found.prompts == 8
        assert sum(spread.won for spread in found.spreads) == 8
        assert {spread.policy for spread in found.spreads} == {"weak-a", "weak-b"}
        assert all(example.prompt for example in found.examples)
    assert {log.stage for log in report.logs} >= {"init/student/negative", "round-2/student/train"}
    assert all(stage.seconds is not None for stage in report.stages)
    assert report.cost.keys() == {"seconds", "written", "scored", "trained"}
    (call,) = report.provenance.invocations
    assert call.versions["macpo"]
    assert "fingerprint (content and how it is read)" in report.provenance.data
    assert "answers that are empty" in {failure.what for failure in report.failures}


def test_transcripts_have_everybodys_answer_in_every_round(finished: FinishedRun) -> None:
    report = gather_run(finished.folder)
    assert report.transcripts.total == 4
    for entry in report.transcripts.shown:
        said = {(answer.agent, answer.round) for answer in entry.answers}
        assert said == {(a, t) for a in report.agents for t in range(3)}
        assert all("answer_tokens" in answer.values for answer in entry.answers)
    # No measure of single answers has a better side here, so repetition orders them.
    assert report.transcripts.ranked_by == metric("answer_repetition")
    assert {"random", "best", "worst"} <= report.transcripts.orders.keys()
    assert gather_run(finished.folder).transcripts.orders == report.transcripts.orders


def test_more_prompts_than_a_page_carries_are_capped_openly(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macpo.report.transcripts.MOST_PROMPTS", 3)
    monkeypatch.setattr("macpo.report.transcripts.EACH_END", 1)
    found = gather_run(finished.folder).transcripts
    assert len(found.shown) == 3
    assert found.total == 4
    assert "3 of 4 prompts are here" in found.why
    monkeypatch.setattr("macpo.report.transcripts.MOST_CHARACTERS", 1)
    assert len(gather_run(finished.folder).transcripts.shown) == 1


def test_long_answers_are_cut_and_say_by_how_much(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gather_run(finished.folder).transcripts.shown
    monkeypatch.setattr("macpo.report.transcripts.ANSWER_CHARACTERS", 2)
    for entry, before in zip(gather_run(finished.folder).transcripts.shown, whole, strict=True):
        for cut, answer in zip(entry.answers, before.answers, strict=True):
            assert len(cut.text) <= 2
            assert cut.cut > 0 or len(answer.text) <= 2
            assert answer.cut == 0


def test_gathering_and_drawing_need_no_model_library(finished: FinishedRun) -> None:
    code = (
        "import sys\n"
        "from macpo.report.making import write_run_report\n"
        f"write_run_report({str(finished.folder)!r}, __import__('pathlib').Path(sys.argv[1]))\n"
        "assert not {'torch', 'transformers', 'peft', 'matplotlib'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-c", code, str(finished.folder.parent / "elsewhere.html")]
    subprocess.run(command, check=True, env=python_environment())


def test_run_ends_with_its_report(finished: FinishedRun) -> None:
    page = finished.folder / "report.html"
    assert finished.result.out.splitlines()[-1] == f"report: {page}"
    assert page.stat().st_size < 3_000_000
    assert "<title>tiny: " in page.read_text(encoding="utf-8")


def test_run_that_has_stopped_is_shown_as_far_as_it_is(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    lines = run.journal_file.read_text().splitlines()
    cut = next(i for i, line in enumerate(lines) if "round-1/student/train" in line and i > 1)
    run.journal_file.write_text("\n".join(lines[: cut + 1]) + "\n")
    report = gather_run(copied.folder)
    assert report.state == "stopped"
    assert report.stages_done < (report.stages_total or 0)
    assert report.last_stop.startswith("round-1/student/train: killed")
    assert "The run has not finished" in render_run(report)


def test_run_of_an_older_version_is_reported_with_what_it_has(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    run.plan_file.unlink()
    run.resolved_config_file.unlink()
    events = [json.loads(line) for line in run.journal_file.read_text().splitlines()]
    kept = [event for event in events if event["event"] != "invoked"]
    run.journal_file.write_text("".join(json.dumps(event) + "\n" for event in kept))
    report = gather_run(copied.folder)
    assert report.curves
    assert report.stages
    assert "older macpo" in report.notes[0]
    page = render_run(report)
    assert "The command was not written down" in page


def test_measurements_without_single_values_have_the_widest_interval(copied: FinishedRun) -> None:
    for path in (copied.folder / "store").rglob(ITEMS_FILE):
        path.unlink()
        fields = read_manifest(path.parent).fields
        manifest = path.with_name(MANIFEST)
        manifest.unlink()
        manifest.write_text(Manifest(scan(path.parent), fields).to_text())
    report = gather_run(copied.folder)
    accuracy = next(c for c in report.curves if c.metric.name == "preference_accuracy")
    assert all(point.at_most for series in accuracy.series for point in series.points)
    assert report.transcripts.ranked_by is None
    assert "at most" in render_run(report)


def test_part_that_cannot_be_read_is_named_and_the_rest_is_there(copied: FinishedRun) -> None:
    stage = copied.folder / "stages" / "round-1" / "student" / "pairs" / "filter.jsonl"
    stage.write_text("no JSON\n")
    report = gather_run(copied.folder)
    assert any("the filter could not be read" in fault for fault in report.faults)
    assert report.curves
    assert "the filter could not be read" in render_run(report)


def test_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    result = run_cli(["report", tmp_path])
    assert result.code == 1
    assert f"{tmp_path}: no run here" in result.err


def test_report_that_fails_does_not_fail_the_run() -> None:
    notes: list[str] = []

    def fail() -> Path:
        raise ZeroDivisionError("division by zero")

    assert leave_report(fail, notes.append) is None
    assert notes == [
        "no report was made (ZeroDivisionError: division by zero); macpo report RUN tries again"
    ]


def test_alerts_and_secrets(copied: FinishedRun) -> None:
    from macpo.store import Journal

    run = RunDir(copied.folder)
    for _ in range(2):  # told again after a resume
        Journal(run.journal_file).append("alert", title="student, round 1: copying", text="41 %")
    text = run.config_file.read_text()
    run.config_file.write_text(text + "# api_key: sk-abcdefghijklmnop\n")
    report = gather_run(copied.folder)
    assert [(alert.title, alert.text) for alert in report.alerts] == [
        ("student, round 1: copying", "41 %")
    ]
    assert "sk-abcdef" not in render_run(report)


def test_several_runs_are_compared_prompt_by_prompt(copied: FinishedRun, tmp_path: Path) -> None:
    other = tmp_path / "two"
    config = write_config(tmp_path / "home", name="two", dpo={"learning_rate": 0.01}, rounds=1)
    assert run_cli(["run", config, "--out", other]).code == 0
    out = write_runs_report([copied.folder, other], tmp_path / "both.html")
    page = out.read_text(encoding="utf-8")
    assert "How the students differ from tiny" in page
    assert 'href="two/report.html"' in page
    assert "4 prompts that every run" in " ".join(page.split())
    assert "different prompts" not in page


def test_runs_on_different_prompts_are_not_compared(copied: FinishedRun, tmp_path: Path) -> None:
    other = tmp_path / "two"
    config = write_config(tmp_path / "home", name="two", seed=5, rounds=1)
    assert run_cli(["run", config, "--out", other]).code == 0
    out = tmp_path / "both.html"
    result = run_cli(["report", copied.folder, other, "--out", out])
    assert result.out == f"{out}\n"
    page = out.read_text(encoding="utf-8")
    assert "no difference: measured on different prompts" in page


def test_pairing_refuses_what_does_not_belong_together() -> None:
    assert paired({"a": (1.0,)}, {"b": (1.0,)}) == (
        "measured on different prompts: 0 in common of 1 and 1"
    )
    assert paired({"a": (1.0,)}, {"a": (1.0, 0.0)}) == (
        "measured on different numbers of values a prompt"
    )
    assert "keeps no single values" in str(paired({}, {}))
    # Differences 1, 0, 1, 0: mean 1/2, s = .577, t(3) = 3.182, so .577 * 3.182 / 2.
    found = paired(
        {"a": (1.0,), "b": (0.0,), "c": (1.0,), "d": (1.0,)},
        {"a": (0.0,), "b": (0.0,), "c": (0.0,), "d": (1.0,)},
    )
    assert not isinstance(found, str)
    assert (found.mean, found.n) == (0.5, 4)
    assert found.half_width == pytest.approx(0.57735 * 3.182446 / 2, rel=1e-4)


def test_unpaired_difference_adds_up_both_uncertainties() -> None:
    found = difference(Point(1, 0.7, 0.04), Point(0, 0.5, 0.03))
    assert (found.mean, found.half_width) == (pytest.approx(0.2), pytest.approx(0.05))
    assert difference(Point(1, 0.7), Point(0, 0.5)).half_width is None
    assert verdict(metric("preference_accuracy"), found) == "better"
    assert verdict(metric("gold_perplexity"), found) == "worse"
    assert verdict(metric("answer_tokens"), found) == "changed"
    unsure = difference(Point(1, 0.52, 0.04), Point(0, 0.5, 0.03))
    assert verdict(metric("preference_accuracy"), unsure) == "unclear"


def test_curve_knows_its_agents() -> None:
    found = Curve(metric("x"), (Series("a", ()),), of_answers=False)
    assert found.of("a") == Series("a", ())
    assert found.of("b") is None


def test_standard_errors_of_evaluators_are_found_by_name() -> None:
    assert error_of("judge_win_rate_lc") == "judge_win_rate_lc_se"
    assert error_of("reward[mine]") == "reward_se[mine]"


def test_peoples_judgments_are_gathered_and_files_without_any_are_not(copied: FinishedRun) -> None:
    assert gather_run(copied.folder).judgments == ()
    file = make_file(copied.folder)
    assert gather_run(copied.folder).judgments == ()
    judge_all(file, "Anna", ["one", "one", "tie", "other", "one"])
    file.close()

    [found] = gather_run(copied.folder).judgments
    assert (found.one, found.other, found.judgments) == ("student@2", "student@0", 5)
    assert found.win_rate == pytest.approx(0.7)


def test_judgments_that_cannot_be_read_are_a_fault(copied: FinishedRun) -> None:
    (copied.folder / "annotations").mkdir()
    (copied.folder / "annotations" / "a.sqlite").write_text("nothing of the kind")
    report = gather_run(copied.folder)
    assert report.judgments == ()
    [fault] = report.faults
    assert fault.startswith("people's judgments could not be read: ")
