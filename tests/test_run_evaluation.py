"""Evaluating a run afterwards: what is there is measured, nothing of the run is run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import macpo
from macpo.config.evaluators import EVALUATORS, LabelledConfig
from macpo.errors import ConfigError, RunLockedError, StoreError
from macpo.evaluation import Evaluator, Subject
from macpo.evaluation.gather import measuring_stages
from macpo.evaluation.measures import Item, read_items, write_measures
from macpo.records import read_responses
from macpo.run_directory import RunDir
from macpo.stage import Stage, StageContext
from macpo.store import RunLock
from tests.runs import FinishedRun, finished_stages, journal_of, python_environment, run_cli


class Letters(LabelledConfig, Evaluator):
    """How often a letter stands in an answer, and how much more often than before."""

    name: Literal["letters"] = "letters"
    letter: str = "e"

    def faults(self, source: str, answers: int) -> Iterator[str]:
        if not answers:
            yield "reads answers, but evaluation.answers is 0"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        assert subject.answers is not None
        own = self._count(subject)
        yield own
        if subject.first is not None:
            yield Growth(f"{subject.place}/growth", own, self._count(subject.first))

    def _count(self, subject: Subject) -> Stage:
        assert subject.answers is not None
        return Count(f"{subject.place}/{self.title}", subject.answers, self.letter, self.title)


@dataclass(frozen=True, eq=False)
class Count(Stage):
    kind: ClassVar[str] = "count-letters"

    answers: Stage
    letter: str
    metric: str

    def run(self, context: StageContext) -> Mapping[str, Any]:
        found = {
            r.prompt_id: float(r.text.count(self.letter))
            for r in read_responses(context.path(self.answers))
        }
        metrics = {self.metric: sum(found.values()) / len(found)}
        items = [Item(prompt, {self.metric: value}) for prompt, value in found.items()]
        write_measures(context.output, metrics, items, answers=len(found))
        return metrics


@dataclass(frozen=True, eq=False)
class Growth(Stage):
    kind: ClassVar[str] = "letter-growth"

    now: Stage
    before: Stage

    def run(self, context: StageContext) -> Mapping[str, Any]:
        now, before = (
            sum(sum(item.values.values()) for item in read_items(context.path(stage)))
            for stage in (self.now, self.before)
        )
        write_measures(context.output, {"letter_growth": now - before})
        return {}


@pytest.fixture(autouse=True)
def letters() -> Iterator[None]:
    EVALUATORS.register("letters", Letters)
    yield
    EVALUATORS.unregister("letters")


def metrics_of(folder: Path) -> dict[tuple[str, int, str], float]:
    return {(r.policy, r.round, r.metric): r.value for r in RunDir(folder).metrics()}


def letters_in(folder: Path, agent: str, round: int) -> float:
    answers = macpo.open_run(folder).answers(round, agent)
    return sum(r.text.count("e") for _, r in answers) / len(answers)


def test_everybody_is_measured_in_every_round_and_nothing_of_the_run_is_run(
    copied: FinishedRun,
) -> None:
    before, events = metrics_of(copied.folder), len(journal_of(copied.folder))

    result = run_cli(["eval", copied.folder, "letters"])

    assert result.code == 0, result.err
    after = metrics_of(copied.folder)
    assert before.items() < after.items()
    for agent in ("student", "weak-a", "weak-b"):
        for number in (0, 1, 2):
            counted = letters_in(copied.folder, agent, number)
            assert after[agent, number, "letters"] == counted
        assert (agent, 0, "letter_growth") not in after
        assert (agent, 2, "letter_growth") in after
    ran = finished_stages(copied.folder, events)
    assert sorted({name.rpartition("/")[2] for name in ran}) == ["growth", "letters"]
    assert "letters" in result.out


def test_numbers_stay_when_the_config_is_run_again_and_are_found_the_second_time(
    copied: FinishedRun,
) -> None:
    run_cli(["eval", copied.folder, "letters"])
    metrics, events = metrics_of(copied.folder), len(journal_of(copied.folder))

    assert run_cli(["run", copied.config, "--out", copied.folder]).code == 0
    assert run_cli(["eval", copied.folder, "letters"]).code == 0

    assert metrics_of(copied.folder) == metrics
    assert finished_stages(copied.folder, events) == []
    report = macpo.status(copied.folder)
    assert report.state == "finished"
    assert {row["metric"] for row in report.metrics} >= {"letters", "letter_growth"}


def test_stages_have_the_keys_that_they_would_have_had_in_the_run(copied: FinishedRun) -> None:
    run_cli(["eval", copied.folder, "letters"])
    events = len(journal_of(copied.folder))

    with_it = "evaluation={answers: 4, evaluators: [preference, answers, letters]}"
    run_cli(["run", copied.config, "--out", copied.folder, "--set", with_it])

    ran = finished_stages(copied.folder, events)
    assert {name.rpartition("/")[2] for name in ran} == {"collapse"}  # which reads all there are


def test_models_are_found_again_for_evaluators_that_need_one(copied: FinishedRun) -> None:
    plan = RunDir(copied.folder).plan()
    assert plan is not None
    for stage in plan.stages:
        if stage.kind in ("evaluate", "measure-answers"):
            shutil.rmtree(RunDir(copied.folder).artifact(stage))
    before = metrics_of(copied.folder)

    result = macpo.evaluate(copied.folder, ["preference", "answers"])

    assert result.missing == ()
    assert metrics_of(copied.folder) == before


def test_numbers_of_each_answer_are_found_with_the_stages_that_measured(
    copied: FinishedRun,
) -> None:
    macpo.evaluate(copied.folder, ["letters"])
    run = RunDir(copied.folder)
    plan = run.plan()
    assert plan is not None

    found = {
        (policy.policy, policy.round): read_items(folder)
        for policy, stage, folder in measuring_stages(run, plan)
        if stage.kind == "count-letters"
    }

    answers = macpo.open_run(copied.folder).answers(2, "weak-b")
    assert [v.prompt_id for v in found["weak-b", 2]] == [prompt.id for prompt, _ in answers]
    assert macpo.open_run(copied.folder).artifact("round-2/weak-b/letters").is_dir()


def test_an_unfinished_run_is_measured_as_far_as_it_got(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    plan = run.plan()
    assert plan is not None
    later = [s for s in plan.stages if s.name.startswith(("round-2/student", "round-2/weak-b"))]
    for stage in later:
        shutil.rmtree(run.artifact(stage))

    result = run_cli(["eval", copied.folder, "letters"])

    assert result.code == 0, result.err
    assert "has not come so far: student after round 2, weak-b after round 2" in result.err
    assert ("student", 1, "letters") in metrics_of(copied.folder)
    assert ("weak-a", 2, "letters") in metrics_of(copied.folder)


def test_numbers_of_answers_that_the_run_no_longer_has_are_left_out(copied: FinishedRun) -> None:
    run_cli(["eval", copied.folder, "letters"])

    changed = ["--set", "dpo.beta=0.5", "--set", "rounds=1"]
    run_cli(["run", copied.config, "--out", copied.folder, *changed])

    found = metrics_of(copied.folder)
    assert ("student", 0, "letters") in found
    assert ("student", 1, "letters") not in found
    assert ("student", 1, "preference_accuracy") in found


def test_two_of_a_kind_are_told_apart_by_labels(copied: FinishedRun) -> None:
    both = [{"name": "letters"}, {"name": "letters", "letter": "a", "label": "a"}]

    macpo.evaluate(copied.folder, both)

    assert ("student", 2, "letters[a]") in metrics_of(copied.folder)
    assert ("student", 2, "letters") in metrics_of(copied.folder)
    with pytest.raises(ConfigError, match="letters is there 2 times; name it once, or give each a"):
        macpo.evaluate(copied.folder, ["letters", "letters"])


def test_other_options_under_the_same_title_replace_and_say_so(copied: FinishedRun) -> None:
    run_cli(["eval", copied.folder, "letters"])

    result = run_cli(["eval", copied.folder, "letters", "--set", "letter=o"])

    assert "letters: its former numbers, with other options, give way" in result.err
    answers = macpo.open_run(copied.folder).answers(2)
    counted = sum(r.text.count("o") for _, r in answers) / len(answers)
    assert metrics_of(copied.folder)["student", 2, "letters"] == counted


def test_former_numbers_stay_while_the_new_ones_fail(
    copied: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cli(["eval", copied.folder, "letters"])
    before = metrics_of(copied.folder)

    def fail(self: Count, context: StageContext) -> Mapping[str, Any]:
        raise StoreError("no luck")

    monkeypatch.setattr(Growth, "run", fail)
    assert run_cli(["eval", copied.folder, "letters", "--set", "letter=o"]).code == 1

    assert metrics_of(copied.folder) == before


def test_a_list_of_evaluators_comes_from_a_file(copied: FinishedRun, tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("- answers\n- {name: letters, letter: t}\n")

    assert run_cli(["eval", copied.folder, "--config", path]).code == 0

    assert ("student", 2, "letters") in metrics_of(copied.folder)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "name one evaluator ("),
        (["lettres"], "there is no evaluator 'lettres'; did you mean letters?"),
        (["letters", "--set", "leter=a"], "evaluators.0.leter: unknown key; did you mean 'letter'"),
        (["letters", "--set", "letter"], "--set letter: write it as section.key=value"),
        (["letters", "--config", "x.yaml"], "name one evaluator ("),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such evaluation file"),
        (["letters", "--set", "label=a b"], "is no label; use letters, digits"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(finished: FinishedRun, args: list[str], said: str) -> None:
    result = run_cli(["eval", finished.folder, *args])

    assert result.code == 1
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_run_without_answers_is_refused_by_who_needs_them(copied: FinishedRun) -> None:
    run_cli(["run", copied.config, "--out", copied.folder, "--set", "evaluation.answers=0"])

    with pytest.raises(ConfigError, match=r"letters reads answers, but evaluation\.answers is 0"):
        macpo.evaluate(copied.folder, ["letters"])


def test_a_folder_without_a_run_and_a_run_at_work_are_refused(
    copied: FinishedRun, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no run here"):
        macpo.evaluate(tmp_path / "nowhere", ["letters"])
    with RunLock(RunDir(copied.folder).lock), pytest.raises(RunLockedError):
        macpo.evaluate(copied.folder, ["letters"])


def test_options_that_contradict_the_run_itself_are_refused(copied: FinishedRun) -> None:
    with_it = "evaluation={answers: 4, evaluators: [letters]}"
    run_cli(["run", copied.config, "--out", copied.folder, "--set", with_it])

    with pytest.raises(ConfigError, match="letters has other options in the run itself"):
        macpo.evaluate(copied.folder, [{"name": "letters", "letter": "x"}])


def test_an_evaluation_that_fails_leaves_the_run_finished(
    copied: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Count, context: StageContext) -> Mapping[str, Any]:
        raise StoreError("no luck")

    monkeypatch.setattr(Growth, "run", fail)
    assert run_cli(["eval", copied.folder, "letters"]).err.endswith("macpo: no luck\n")

    report = macpo.status(copied.folder)
    assert report.state == "finished"
    assert report.last_stop is not None
    assert report.last_stop.reason == "StoreError: no luck"
    assert ("student", 0, "letters") in metrics_of(copied.folder)
    monkeypatch.undo()
    assert run_cli(["eval", copied.folder, "letters"]).code == 0
    assert macpo.status(copied.folder).last_stop is None


def test_no_model_library_is_imported_where_no_model_is_needed(
    copied: FinishedRun, tmp_path: Path
) -> None:
    plugin = tmp_path / "my_evaluator.py"
    page = (Path(__file__).parents[1] / "docs" / "own-evaluator.md").read_text(encoding="utf-8")
    plugin.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    code = (
        "import sys, macpo, macpo.plugins\n"
        f"macpo.plugins.load_plugin({str(plugin)!r})\n"
        f"result = macpo.evaluate({str(copied.folder)!r}, ['politeness'])\n"
        "print(len(result.metrics), 'torch' in sys.modules, 'transformers' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout == "9 False False\n"


def test_what_an_evaluation_consists_of_is_written_down(copied: FinishedRun) -> None:
    macpo.evaluate(copied.folder, [{"name": "letters", "letter": "i"}])

    value = json.loads((copied.folder / "evaluations" / "letters.json").read_text())

    assert value["evaluator"] == {"label": None, "name": "letters", "letter": "i"}
    assert len(value["policies"]) == 9
