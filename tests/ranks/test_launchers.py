"""Whole runs of two ranks that `torchrun` and `accelerate launch` have started: the real commands.

What launchers set in the environment is tried without them elsewhere (tests.ranks.test_lost_ranks).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.test_lost_ranks import free_port, small_config
from tests.runs import python_environment
from tests.test_resume import digests

PATIENCE = 900.0  # seconds; it takes half a minute on two free cores
LAUNCHERS = {
    "torchrun": ("torchrun", "--nproc-per-node", "2", "--master-port", "PORT"),
    "accelerate": (
        *("accelerate", "launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "PORT"),
    ),
}


def command(words: tuple[str, ...]) -> list[str]:
    """Return a launcher's command line, with its program from this environment and a free port.

    Skips the test where the program is not installed.
    """
    program = Path(sys.executable).parent / words[0]
    if not program.exists():
        pytest.skip(f"{words[0]} is not installed beside {sys.executable}")
    port = str(free_port())
    return [str(program), *(port if word == "PORT" else word for word in words[1:])]


def ended(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with the sources and one thread a process, as launchers give."""
    environment = python_environment(OMP_NUM_THREADS="1")
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def of_two_processes(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("processes") / "run"
    macpo = [sys.executable, "-m", "macpo", "run", str(config), "--out", str(folder)]
    done = ended([*macpo, "--set", "engine.processes=2"])
    assert done.returncode == 0, done.stderr
    return digests(folder / "final")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_a_real_launcher_leave_the_bytes_of_as_many_processes(
    launcher: str, config: Path, of_two_processes: dict[str, str], tmp_path: Path
) -> None:
    run = ["-m", "macpo", "run", str(config), "--out", str(tmp_path / "run")]

    done = ended([*command(LAUNCHERS[launcher]), *run])

    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "run/final") == of_two_processes


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_real_launcher_with_another_number_than_the_configs_is_refused_before_work(
    launcher: str, config: Path, tmp_path: Path
) -> None:
    run = ["-m", "macpo", "run", str(config), "--out", str(tmp_path / "run")]

    refused = ended([*command(LAUNCHERS[launcher]), *run, "--set", "engine.processes=3"])

    assert refused.returncode != 0
    assert "macpo: engine.processes is 3, but the launcher has started 2 processes" in (
        refused.stderr
    )
    assert not (tmp_path / "run").exists()
