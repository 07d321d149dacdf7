"""One tiny finished run, made once and copied by tests that change it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runs import CliResult, run_cli, write_config


@dataclass(frozen=True)
class FinishedRun:
    """A config, the directory of its run, and what running it said."""

    config: Path
    folder: Path
    result: CliResult


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of two rounds, for reading only."""
    home = tmp_path_factory.mktemp("finished")
    config = write_config(home)
    folder = home / "runs" / "tiny"
    return FinishedRun(config, folder, run_cli(["run", config, "--out", folder]))


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the finished run, to be changed."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return FinishedRun(finished.config, folder, finished.result)
