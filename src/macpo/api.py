"""What a notebook calls to run a config: `macpo.runner.run`, shown as it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from macpo.config import RunConfig
from macpo.runner import RunResult
from macpo.runner import run as run_told

if TYPE_CHECKING:
    from macpo.execution.protocol import ExecutorFactory, Observer


def run(
    config: RunConfig,
    folder: str | Path,
    observer: Observer | None = None,
    executor: ExecutorFactory | None = None,
) -> RunResult:
    """Run a config in a run directory; what was finished there before is not run again.

    Args:
        config: what to run.
        folder: the run directory, made if it is not there.
        observer: is told what happens; by default it is shown on stderr.
        executor: makes what runs the stages; by default one after another in this process.

    Raises:
        MacpoError: something is wrong; see macpo.errors.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    if observer is not None:
        return run_told(config, folder, observer, executor)
    from macpo.report.console import ConsoleObserver

    with ConsoleObserver() as console:
        return run_told(config, folder, console, executor)
