"""What holds for every test: no network, a cache of its own, one thread (fastest for tiny models).

And one tiny finished run, made once and copied by tests that change it.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.runs import FinishedRun

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set first
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # tests side by side have it set; what is printed would be wrapped

# That a machine is busy is no fault of the code; and no change is to fail by what chance finds in
# older code: `make faults` looks further, with --hypothesis-profile=chance.
settings.register_profile("chance", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("macpo", settings.get_profile("chance"), derandomize=True)
settings.load_profile("macpo")


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what was imported, which stays: a fifth of the CPU time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep PyTorch from spreading tiny products over all cores; tests without it skip this."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests, and the programs that they start, out of the user's cache."""
    os.environ["MACPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of two rounds, for reading only."""
    from tests.runs import FinishedRun, run_cli, write_config

    home = tmp_path_factory.mktemp("finished")
    config = write_config(home)
    folder = home / "runs" / "tiny"
    return FinishedRun(config, folder, run_cli(["run", config, "--out", folder]))


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the finished run, to be changed."""
    from tests.runs import FinishedRun

    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return FinishedRun(finished.config, folder, finished.result)
