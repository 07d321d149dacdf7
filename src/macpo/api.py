"""What a notebook calls to run a config, and to evaluate a run, shown as they go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.config import RunConfig
from macpo.config.loading import check_evaluators
from macpo.evaluation.evaluator import Evaluator
from macpo.run_evaluation import EvaluationResult
from macpo.run_evaluation import evaluate as evaluate_told
from macpo.run_status import status
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

    What came of it is also left as a page: RUN/report.html.

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
        return _run(config, folder, observer, executor)
    from macpo.report.console import ConsoleObserver

    with ConsoleObserver() as console:
        return _run(config, folder, console, executor)


def evaluate(
    folder: str | Path, evaluators: Sequence[Any], observer: Observer | None = None
) -> EvaluationResult:
    """Measure the policies of a run on what it left; what was measured before is found.

    The run's page, RUN/report.html, is made anew.

    Args:
        folder: the run directory.
        evaluators: as in a config's `evaluation.evaluators`: names, mappings with a `name` and
            options, or evaluators.
        observer: is told what happens; by default it is shown on stderr.

    Raises:
        MacpoError: something is wrong; see macpo.errors.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    status(folder)  # says which run may have been meant
    found = check_evaluators(evaluators, "evaluators")
    chosen = [evaluator for evaluator in found if isinstance(evaluator, Evaluator)]
    if observer is not None:
        return _evaluate(folder, chosen, observer)
    from macpo.report.console import ConsoleObserver

    with ConsoleObserver() as console:
        return _evaluate(folder, chosen, console)


def _evaluate(
    folder: str | Path, evaluators: Sequence[Evaluator], observer: Observer
) -> EvaluationResult:
    """Evaluate and leave a report."""
    from macpo.report.making import leave_report, write_run_report

    result = evaluate_told(folder, evaluators, observer)
    leave_report(lambda: write_run_report(folder), observer.note)
    return result


def _run(
    config: RunConfig, folder: str | Path, observer: Observer, executor: ExecutorFactory | None
) -> RunResult:
    """Run and leave a report."""
    from macpo.report.making import leave_report, write_run_report

    result = run_told(config, folder, observer, executor)
    leave_report(lambda: write_run_report(folder), observer.note)
    return result
