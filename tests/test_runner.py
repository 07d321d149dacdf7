"""What the runner writes on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from macpo.config import load_config
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.runner import run
from macpo.stage import Stage
from tests.runs import write_config
from tests.test_resume import Quiet


class StoppingBefore(Quiet):
    """An observer that asks to stop when a stage is about to start."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        super().stage_started(stage, number, total)
        if stage.name == self.name:
            raise KeyboardInterrupt


def test_metrics_are_written_as_evaluations_finish(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "home"), ["rounds=1"])
    home = RunDir(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(config, home.path, StoppingBefore("round-1/student/evaluate"))

    stopped, report = home.metrics(), status(home.path)
    finished = run(config, home.path, Quiet())

    assert {row.round for row in stopped} == {0}
    assert {row.policy for row in stopped} == {"student", "weak-a", "weak-b"}
    assert [row.to_json() for row in stopped] == list(report.metrics)
    assert report.state == "stopped"
    assert report.pairs == 8
    assert finished.metrics == home.metrics()
    assert finished.metrics[: len(stopped)] == stopped
    assert finished.pairs == 8


def test_change_of_the_config_takes_the_rows_of_the_old_one_along(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "home"), ["rounds=1"])
    home = RunDir(tmp_path / "run")
    first = run(config, home.path, Quiet())
    changed = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"teachers": False})}
    )

    second = run(changed, home.path, Quiet())

    assert {row.policy for row in second.metrics} == {"student"}
    assert second.metrics == [row for row in first.metrics if row.policy == "student"]
    assert list(status(home.path).metrics) == [row.to_json() for row in second.metrics]
    plan = home.plan()
    assert plan is not None
    assert plan.policy("weak-a", 1).measured == ()
