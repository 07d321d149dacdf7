"""One trial: a mutation in a copy of the repository, and the tests that are to notice it."""

from __future__ import annotations

import compileall
import contextlib
import gc
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutants.mutations import Mutation

SECONDS = 300
"""A test that takes longer, as one does in an endless loop, has noticed the mutation."""
OPTIONS = (
    *("-x", "-q", "--timeout", str(SECONDS), "--rootdir", ".", "-p", "no:cacheprovider"),
    *("-p", "pytest_timeout", "--assert", "plain"),  # faster: nobody reads what a mutant does
)
"""Of pytest: up to the first test that fails."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant.

    `killer` is the test that failed, or None where all passed; `fault` says why there was no
    trial; `seconds` is what it took.
    """

    name: str
    killer: str | None
    fault: str | None
    seconds: float


class Witness:
    """A pytest plugin that keeps the first test that fails, and what could not be collected."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.uncollected: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.uncollected is None:
            self.uncollected = report.nodeid


def try_mutation(mutation: Mutation, sources: Path) -> Outcome:
    """Try one mutation, in a process of its own that has not imported macpo.

    Args:
        mutation: what to try.
        sources: a folder as `copy_sources` makes it, which stays as it is.
    """
    return _try(mutation.name, mutation.tests, sources, mutation)


def try_nothing(tests: Sequence[str], sources: Path) -> Outcome:
    """Run tests on an unchanged copy: what fails there says nothing about a mutation."""
    return _try("no mutation", tests, sources, None)


def copy_sources(root: Path, target: Path) -> None:
    """Copy what the tests need of the repository, and compile it once for all trials."""
    for name in ("src", "tests"):
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", target)
    compileall.compile_dir(target, quiet=1)


def _try(name: str, tests: Sequence[str], sources: Path, mutation: Mutation | None) -> Outcome:
    started = time.monotonic()
    killer, fault = None, None
    with tempfile.TemporaryDirectory(prefix="macpo-mutant-") as home:
        copy = Path(home).resolve() / "copy"
        shutil.copytree(sources, copy)
        try:
            if mutation is not None:
                path = copy / mutation.file
                text = mutation.applied(path.read_text(encoding="utf-8"))
                path.write_text(text, encoding="utf-8")
            killer = _first_failure(copy, tests)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
    return Outcome(name, killer, fault, time.monotonic() - started)


def _first_failure(copy: Path, tests: Sequence[str]) -> str | None:
    """Run tests of a copy on its own sources; return the first that fails.

    Raises:
        RuntimeError: they could not be run, or ran on other sources.
    """
    os.environ["PYTHONPATH"] = str(copy / "src")  # for the processes that tests start
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    gc.freeze()  # what was imported beforehand stays: pytest collects garbage at its end
    sys.path[:0] = [str(copy / "src"), str(copy)]
    ours = _take_out_tests()  # what this process has imported lies outside of the copy
    before = Path.cwd()
    os.chdir(copy)
    witness, output = Witness(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = pytest.main([*OPTIONS, *tests], plugins=[witness])
    finally:
        os.chdir(before)
        _take_out_tests()
        sys.modules.update(ours)
    if witness.uncollected is not None:
        raise RuntimeError(f"{witness.uncollected} could not be imported")
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        last = output.getvalue().strip().splitlines()[-1:]
        raise RuntimeError(f"pytest ended with {status}: {' '.join(last)}")
    used = str(getattr(sys.modules.get("macpo"), "__file__", None))
    if not used.startswith(str(copy)):
        raise RuntimeError(f"{used} was tested and not the copy")
    return witness.failed


def _take_out_tests() -> dict[str, ModuleType]:
    """Let modules of the tests be imported anew, and return those that were there."""
    names = [name for name in sys.modules if name == "tests" or name.startswith("tests.")]
    return {name: sys.modules.pop(name) for name in names}
