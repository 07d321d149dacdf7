"""What a run directory tells of its run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from macpo.agents import assemble_team
from macpo.config import load_config
from macpo.data.stages import content_digest
from macpo.errors import StoreError
from macpo.methods.build import build_plan
from macpo.run_directory import PlannedPolicy, PlannedStage, RunDir, RunPlan, find_runs
from macpo.runner import describe_plan
from macpo.seeds import digest
from tests.runs import FinishedRun, python_environment, run_cli, write_config

POLICIES = tuple(
    PlannedPolicy(name, t, None, ()) for t in range(3) for name in ("student", "weak-a")
)


def test_plan_file_holds_the_plan_as_it_was_laid_out(finished: FinishedRun) -> None:
    config = load_config(finished.config)
    team = assemble_team(config, "float32", fetch=True)
    plan = build_plan(config, team, content_digest(config.data, fetch=True))

    written = RunDir(finished.folder).plan()

    assert written is not None
    assert written == RunPlan.from_json(written.to_json()) == describe_plan(plan)
    assert [(s.name, s.kind, s.key) for s in written.stages] == [
        (s.name, s.kind, s.key) for s in plan
    ]
    for policy in written.policies:
        laid_out = plan.policies[policy.round][policy.policy]
        assert policy.trained == laid_out.weights_key
        assert policy.measured == tuple(
            stage.key for stage in plan.evaluations[policy.round][policy.policy]
        )


def test_answers_that_a_method_chose_stand_for_the_policys_own(tmp_path: Path) -> None:
    method = {"name": "weak-to-strong-search", "samples": 2}
    path = write_config(tmp_path, method=method)
    raw = yaml.safe_load(path.read_text())
    del raw["rounds"], raw["negative_sft"]
    path.write_text(yaml.safe_dump(raw))
    config = load_config(path)
    laid_out = build_plan(config, assemble_team(config, "float32", fetch=True), "digest")
    plan = RunPlan.from_json(describe_plan(laid_out).to_json())

    before, after = (plan.policy("student", t) for t in (0, 1))
    assert before.trained == after.trained

    found = [[stage.name for stage in plan.answers(policy, "test")] for policy in (before, after)]
    assert found[0] == ["init/student/test-answers", "round-1/student/test-answers-1"]
    assert found[1] == ["round-1/student/best-answers"]
    assert plan.answers(after, "student") == []


def test_plan_file_is_there_before_the_first_stage_is_done(tmp_path: Path) -> None:
    config = write_config(tmp_path, limits={"prompt_tokens": 8, "response_tokens": 64})

    failed = run_cli(["run", config, "--out", tmp_path / "run"])

    assert "every prompt is over limits.prompt_tokens" in failed.err
    assert RunDir(tmp_path / "run").plan() is not None


def test_inputs_of_a_stage_are_found_by_their_field(finished: FinishedRun) -> None:
    run = RunDir(finished.folder)
    plan = run.plan()
    assert plan is not None

    last = plan.policy("student")
    assert last.trained is not None
    trained = plan.stage(last.trained)
    pairs, start = trained.input("pairs"), trained.input("start")

    assert (trained.name, last.round) == ("round-2/student/train", 2)
    assert pairs is not None
    assert plan.stage(pairs).name == "round-2/student/pairs"
    assert start == plan.policy("student", 1).trained
    assert trained.input("seed") is trained.input("nothing") is None


def test_answers_are_those_of_one_policy_to_one_split(finished: FinishedRun) -> None:
    plan = RunDir(finished.folder).plan()
    assert plan is not None

    def found(agent: str, t: int, split: str) -> list[str]:
        return [stage.name for stage in plan.answers(plan.policy(agent, t), split)]

    assert found("student", 1, "test") == ["round-1/student/test-answers"]
    assert found("student", 1, "student") == ["round-1/student/positive-answers"]
    assert found("weak-b", 1, "student") == ["round-2/weak-b/positive-answers"]
    assert found("weak-b", 2, "student") == []


def test_answers_leave_out_those_that_were_drawn_to_be_bad() -> None:
    speaker = {"agent": {"name": "student"}, "role": "positive", "weights": ""}
    plain = {"policy": speaker, "split": "student", "system": "", "away_from": None}
    stages = tuple(
        PlannedStage(name, "respond", name, {**plain, **changes})
        for name, changes in {
            "plain": {},
            "prompted": {"system": "Be rude."},
            "pushed": {"away_from": speaker},
            "negative": {"policy": {**speaker, "role": "negative"}},
            "another": {"policy": {**speaker, "agent": {"name": "weak-a"}}},
            "other split": {"split": "test"},
        }.items()
    )
    plan = RunPlan(stages, POLICIES)

    assert [s.name for s in plan.answers(plan.policy("student", 0), "student")] == ["plain"]


def test_unknown_agents_and_rounds_are_told_the_nearest() -> None:
    plan = RunPlan((), POLICIES)

    assert plan.policy("weak-a").round == 2
    with pytest.raises(StoreError, match=r"^no agent 'studnet' in this run; did you mean student"):
        plan.policy("studnet", 1)
    with pytest.raises(StoreError, match=r"^no agent 'x' in this run; there are student, weak-a$"):
        plan.policy("x", 1)
    with pytest.raises(
        StoreError,
        match=r"^student has no policy of round 7; its rounds are 0 to 2, the nearest is 2$",
    ):
        plan.policy("student", 7)


def test_artifacts_are_found_by_the_name_of_their_stage(finished: FinishedRun) -> None:
    run = RunDir(finished.folder)

    assert (run.stage("round-1/student/pairs") / "pairs.jsonl").is_file()
    with pytest.raises(
        StoreError, match=r"pears is no stage of this run; did you mean round-1/stu"
    ):
        run.stage("round-1/student/pears")


def test_artifacts_of_an_older_plan_are_not_taken_for_those_of_this_one(
    copied: FinishedRun,
) -> None:
    run = RunDir(copied.folder)
    plan = run.plan()
    assert plan is not None
    changed = [replace(s, key="f" * 64) if s.name == "data" else s for s in plan.stages]
    run.plan_file.write_text(json.dumps(replace(plan, stages=tuple(changed)).to_json()))

    with pytest.raises(StoreError, match=r": data is not done yet"):
        run.stage("data")
    run.plan_file.unlink()  # as of an older macpo: the readable names are all there is
    assert (run.stage("data") / "test.jsonl").is_file()


def test_key_is_the_hash_of_what_the_plan_file_says(finished: FinishedRun) -> None:
    plan = RunDir(finished.folder).plan()
    assert plan is not None

    for stage in plan.stages:
        assert digest([stage.kind, stage.version, stage.identity]) == stage.key


def test_run_is_a_folder_with_a_journal_or_what_was_resolved(tmp_path: Path) -> None:
    for name, file in (("one", "journal.jsonl"), ("two", "run.json"), ("no-run", "config.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()

    assert find_runs(tmp_path, tmp_path / "missing") == [tmp_path / "one", tmp_path / "two"]


@pytest.mark.parametrize(
    "module", ["macpo.run_directory", "macpo.run_status", "macpo.evaluation.gather"]
)
def test_asking_about_a_run_imports_no_model_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout

    assert shown == "[]\n"
