"""Policies by the names that people give them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from macpo.errors import ConfigError, MacpoError, StoreError
from macpo.run_directory import RunDir
from macpo.sides import Side, find_side, parse_policy, untrained
from tests.runs import FinishedRun


def find(text: str, home: Path) -> Side:
    return find_side(text, home, untrained)


@pytest.mark.parametrize(
    ("text", "agent", "round"),
    [
        ("", "student", 2),
        ("student", "student", 2),
        ("student@0", "student", 0),
        ("weak-a", "weak-a", 2),
        ("weak-b@0", "weak-b", 0),
    ],
)
def test_agent_and_round_name_a_policy(
    finished: FinishedRun, text: str, agent: str, round: int
) -> None:
    side = find(text, finished.folder)

    assert (side.policy.policy, side.policy.round) == (agent, round)
    assert side.label == f"{agent}@{round}"


def test_another_run_stands_before_it(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished.folder, other, symlinks=True)
    monkeypatch.chdir(tmp_path)

    assert find(f"{other}:student@1", finished.folder).label == "other:student@1"
    assert find("other:weak-a@0", finished.folder).label == "other:weak-a@0"
    assert find("other", finished.folder).label == "other:student@2"
    assert find_side("other", finished.folder, untrained, "weak-b").label == "other:weak-b@2"
    assert find(f"{finished.folder}:student@1", finished.folder).label == "student@1"


def test_policy_without_a_round_is_the_last_that_is_trained(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    shutil.rmtree(run.stage("round-2/student/train"))

    assert find("student", copied.folder).label == "student@1"
    with pytest.raises(StoreError, match=r"run: round-2/student/train is not done yet; run the co"):
        find("student@2", copied.folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("studnet", r"^no agent 'studnet' in this run; did you mean student\?$"),
        (
            "student@7",
            r"^student has no policy of round 7; its rounds are 0 to 2, the nearest is 2",
        ),
        ("student@", r"^'student@' names no policy; write an agent and a round, such as student@1"),
        ("student@last", r"^'student@last' names no policy"),
        ("@1", r"^'@1' names no policy"),
        ("nowhere/tiny", r"^nowhere/tiny: no run here"),
        ("nowhere:student", r"^nowhere: no run here"),
    ],
)
def test_names_that_mean_nothing_are_told_the_nearest(
    finished: FinishedRun, text: str, message: str
) -> None:
    with pytest.raises(MacpoError, match=message):
        find(text, finished.folder)


def test_round_is_a_number() -> None:
    assert parse_policy("weak-a@12") == ("weak-a", 12)
    assert parse_policy("weak-a") == ("weak-a", None)
    with pytest.raises(ConfigError):
        parse_policy("weak-a@-1")
